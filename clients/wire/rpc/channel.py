"""The calling end, with the face of `grpc.aio.Channel`: unary calls and streams of bytes to one address, over one connection.

The connection is made when there is something to send. While it cannot be had, calls fail with UNAVAILABLE, at once until the
next attempt is due. A connection that its server gives up (GOAWAY) ends its calls and takes no more; the next call makes another.
Nothing is sent twice: retrying is the caller's decision.
"""

import asyncio
import math
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Self

import grpc
import grpc.aio

from clients.wire.rpc.client_call import CLOSED, CLOSED_DURING, EXPIRED, Call, rpc_error, too_large
from clients.wire.rpc.client_connection import ClientConnection, Patience
from clients.wire.rpc.connection import Bounds
from clients.wire.rpc.headers import CONTENT_TYPE, TIMEOUT, block, literal, metadata_fields, timeout_field
from clients.wire.rpc.sockets import parse_address
from clients.wire.rpc.stream_call import StreamCall

USER_AGENT: Final = "trunkline-grpc"
_CLOSE_SECONDS: Final = 0.1
"""A server that does not take the last bytes, or does not answer TLS's goodbye (grpcio's do not), is left after so long."""

RawMetadata = Iterable[tuple[str, str | bytes]]


class AsyncChannel:
    """Calls to *address*: `host:port`, `[::1]:port` or `unix:path`; by *tls* where there is one.

    *server_name* stands in for the address's host in TLS and as the authority. All methods belong to one event loop.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        bounds: Bounds | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self._bounds = bounds or Bounds()
        self._patience = patience or Patience()
        self._path, self._host, self._port = parse_address(address)
        self._server_name = server_name or self._host or "localhost"
        place = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        self._authority = server_name or ("localhost" if self._path else place)
        self._live: ClientConnection | None = None
        self._connecting: asyncio.Task[ClientConnection | None] | None = None
        self._connections: set[ClientConnection] = set()
        self._num_failures = 0
        self._due = 0.0
        self._why = ""
        self._keepalive = self._patience.keepalive
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<AsyncChannel {self._address}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def unary_unary(self, path: str) -> Callable[..., Awaitable[bytes]]:
        """See grpc.aio."""
        head = self._head(path)

        async def call(request: bytes, timeout: float | None = None, metadata: RawMetadata | None = None) -> bytes:
            begun = await self._begin(head, request, timeout, metadata, is_streaming=False)
            return await begun.answer()

        return call

    def unary_stream(self, path: str) -> Callable[..., "StreamCall"]:
        """See grpc.aio."""
        head = self._head(path)

        def call(request: bytes, timeout: float | None = None, metadata: RawMetadata | None = None) -> StreamCall:
            return StreamCall(lambda: self._begin(head, request, timeout, metadata, is_streaming=True))

        return call

    def stream_stream(self, path: str) -> Callable[..., "StreamCall"]:
        """See grpc.aio."""
        head = self._head(path)

        def call(timeout: float | None = None, metadata: RawMetadata | None = None) -> StreamCall:
            return StreamCall(lambda: self._begin(head, None, timeout, metadata, is_streaming=True))

        return call

    async def close(self, grace: float | None = None) -> None:
        """End all calls, which raise CANCELLED, and the connections; *grace* is grpc.aio's, and not waited for."""
        del grace
        self._is_closed = True
        connecting = self._connecting
        if connecting is not None:
            connecting.cancel()
        for connection in list(self._connections):
            for stream in list(connection.streams.values()):
                assert isinstance(stream, Call)
                stream.cancel(CLOSED_DURING)
            connection.close("the client was closed")
        if connecting is not None:
            await asyncio.wait((connecting,))
        await self._all_ended()
        for connection in list(self._connections):
            connection.abort("the client was closed")
        await self._all_ended()

    async def _all_ended(self) -> None:
        if self._connections:
            await asyncio.wait([connection.ended for connection in self._connections], timeout=_CLOSE_SECONDS)

    def _head(self, path: str) -> bytes:
        """What every call of a method begins with."""
        return block(
            (
                (":method", "POST"),
                (":scheme", "http" if self._tls is None else "https"),
                (":path", path),
                (":authority", self._authority),
                ("te", "trailers"),
                ("content-type", CONTENT_TYPE),
                ("user-agent", USER_AGENT),
                ("grpc-accept-encoding", "identity"),
            )
        )

    async def _begin(
        self, head: bytes, message: bytes | None, timeout: float | None, metadata: RawMetadata | None, *, is_streaming: bool
    ) -> Call:
        until = None if timeout is None or timeout == math.inf else time.monotonic() + timeout
        try:
            rest = block(metadata_fields(metadata)) if metadata else b""
        except ValueError as error:
            raise rpc_error(grpc.StatusCode.INTERNAL, str(error)) from None
        if message is not None and len(message) > self._bounds.max_message_bytes:
            raise too_large(self._bounds).error()
        connection = self._live
        if connection is None or connection.is_full:
            connection = await self._ready(until)
        if until is None:
            return connection.begin(head + rest, message, is_streaming=is_streaming)
        left = until - time.monotonic()
        if left <= 0:
            connection.give_back()
            raise EXPIRED.error()
        call = connection.begin(head + literal(TIMEOUT, timeout_field(left)) + rest, message, is_streaming=is_streaming)
        call.timer = asyncio.get_running_loop().call_later(left, call.expire)
        return call

    async def _ready(self, until: float | None) -> ClientConnection:
        """A connection that takes a call, before *until*."""
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                while True:
                    connection = self._live or await self._connected()
                    await connection.room()
                    if connection.takes_calls:
                        return connection
        except TimeoutError:
            raise EXPIRED.error() from None

    async def _connected(self) -> ClientConnection:
        """The connection, made by whoever asks first, for all. It is made also when that one is cancelled meanwhile."""
        if self._is_closed:
            raise CLOSED.error()
        connecting = self._connecting
        if connecting is None:
            if time.monotonic() < self._due:
                raise rpc_error(grpc.StatusCode.UNAVAILABLE, self._why)
            connecting = self._connecting = asyncio.create_task(self._connect())
        # Not `await connecting`, which would be cancelled with any of those that wait, and raise the same error in all of them.
        # A host that has vanished lets each attempt time out: nobody waits for that again.
        await asyncio.wait((connecting,), timeout=self._patience.again if self._num_failures else None)
        if self._is_closed:
            raise CLOSED_DURING.error()
        connection = connecting.result() if connecting.done() else None
        if connection is None:
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, self._why)
        return connection

    async def _connect(self) -> ClientConnection | None:
        """None where there is none now; `_why` says why."""
        try:
            async with asyncio.timeout(self._patience.connect):
                connection = await self._open()
                await _greeted(connection)
        # ValueError: of a host that cannot be a name, in DNS or TLS.
        except (OSError, TimeoutError, ValueError) as error:
            self._fail(_reason(error))
            return None
        finally:
            self._connecting = None
        if not connection.takes_calls:
            self._fail(connection.why)
            return None
        self._num_failures = 0
        self._live = connection
        return connection

    def _fail(self, why: str) -> None:
        """An attempt failed; the next is due after a pause."""
        patience = self._patience
        self._num_failures += 1
        pause = min(patience.max_backoff, patience.backoff * 2.0 ** min(self._num_failures - 1, 16))
        # Apart, so that many clients of a server that comes back do not come at once.
        self._due = time.monotonic() + pause * random.uniform(0.8, 1.2)  # noqa: S311 (no secret)
        self._why = f"{self._address} cannot be reached: {why}"

    async def _open(self) -> ClientConnection:
        loop = asyncio.get_running_loop()

        def make() -> ClientConnection:
            return ClientConnection(self, self._bounds, self._patience, self._keepalive)

        secure: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls, "server_hostname": self._server_name}
        if self._path:
            _, connection = await loop.create_unix_connection(make, self._path, **secure)
        else:
            _, connection = await loop.create_connection(make, self._host, self._port, **secure)
        return connection

    # What its connections tell

    def remember(self, connection: ClientConnection) -> None:
        """It is there, and will have to be ended."""
        self._connections.add(connection)

    def leave(self, connection: ClientConnection) -> None:
        """It takes no more calls."""
        if self._live is connection:
            self._live = None

    def forget(self, connection: ClientConnection) -> None:
        """It has ended."""
        self._connections.discard(connection)

    def calm_down(self) -> None:
        """A server finds that it is asked too often whether it is there; grpc's own clients do the same then."""
        self._keepalive *= 2


async def _greeted(connection: ClientConnection) -> None:
    """Wait for the server's settings: before them it may be no gRPC server, and how many calls it takes is not known."""
    try:
        await connection.greeted
    except asyncio.CancelledError:
        connection.abort("the server said nothing")
        raise


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError) and not error.strerror:
        return "no connection in time"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
