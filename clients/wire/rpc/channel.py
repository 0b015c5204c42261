"""The calling end, with the face of `grpc.aio.Channel`: unary calls and streams of bytes to one address, over one connection.

The connection is made when there is something to send. While it cannot be had, calls fail with UNAVAILABLE, at once until the
next attempt is due. A connection that its server gives up (GOAWAY) ends its calls and takes no more; the next call makes another.
Nothing is sent twice: retrying is the caller's decision.
"""

import asyncio
import random
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import grpc.aio

from clients.wire.rpc import frames as h2
from clients.wire.rpc.connection import Bounds, Connection, Stream
from clients.wire.rpc.headers import (
    CODES,
    CONTENT_TYPE,
    ENCODING,
    HTTP_CODES,
    MESSAGE,
    STATUS,
    TIMEOUT,
    Field,
    block,
    literal,
    metadata_fields,
    read_metadata,
    timeout_field,
    unquoted,
)
from clients.wire.rpc.messages import MessageError, MessageReader, prefixed

USER_AGENT: Final = "trunkline-grpc"
MAX_PINGS_WITHOUT_DATA: Final = 2
"""Servers take more for an attack: grpc's own send no more either (GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA)."""

_LAST_STREAM_ID: Final = 2**30
_RESET_CODES: Final = {
    h2.NO_ERROR: grpc.StatusCode.INTERNAL,
    h2.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    h2.CANCEL: grpc.StatusCode.CANCELLED,
    h2.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""What a reset means (doc/PROTOCOL-HTTP2.md); all others are INTERNAL."""

RawMetadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    A connection is made within *connect*; after a failed attempt the next waits *backoff*, twice as long each time, at most
    *max_backoff*. Where calls wait and nothing came for *keepalive*, the server is asked, and given up when it does not answer
    within *keepalive_timeout*.
    """

    connect: float = 5.0
    backoff: float = 0.1
    max_backoff: float = 1.0
    keepalive: float = 10.0
    keepalive_timeout: float = 5.0


def rpc_error(code: grpc.StatusCode, message: str, trailing: Iterable[Field] = ()) -> grpc.aio.AioRpcError:
    """What a call that did not end well raises, as grpc.aio's do."""
    metadata = grpc.aio.Metadata(*read_metadata(trailing))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, message, None)


class _Call(Stream):
    """One call's stream: messages as they come, and how it ended."""

    __slots__ = ("_messages", "_reader", "_waiter", "error", "has_headers", "is_over", "is_streaming", "timer")

    def __init__(self, connection: "_ClientConnection", stream_id: int, *, is_streaming: bool) -> None:
        super().__init__(connection, stream_id)
        self.is_streaming = is_streaming
        self.has_headers = False
        self.is_over = False
        self.error: grpc.aio.AioRpcError | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._messages: deque[bytes] = deque()
        self._reader = MessageReader(connection.bounds.max_message_bytes)
        self._waiter: asyncio.Future[None] | None = None

    # Arriving

    def on_headers(self, fields: list[Field], *, is_end: bool) -> None:
        """The first block, or the last, or both in one."""
        if is_end:
            self._end(_outcome(fields, is_alone=not self.has_headers))
            return
        if self.has_headers:
            self._give_up(rpc_error(grpc.StatusCode.INTERNAL, "the server sent headers twice"), h2.PROTOCOL_ERROR)
            return
        found = dict(fields)
        if found.get(":status", "").startswith("1"):
            return
        self.has_headers = True
        if found.get(":status") != "200" or not found.get("content-type", "").startswith(CONTENT_TYPE):
            self._give_up(_http_error(found), h2.CANCEL)

    def on_data(self, content: bytes, *, is_end: bool) -> None:
        """Parts of messages."""
        connection, before = self.connection, self._reader.num_kept
        try:
            for message in self._reader.feed(content):
                self._messages.append(message)
                if self.is_streaming:
                    self.keep(len(message))
        except MessageError as error:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if error.is_too_large else grpc.StatusCode.INTERNAL
            connection.num_kept -= before
            self._reader.num_kept = 0
            self._give_up(rpc_error(code, str(error)), h2.CANCEL)
            return
        connection.num_kept += self._reader.num_kept - before
        if is_end:
            self._end(rpc_error(grpc.StatusCode.INTERNAL, "the answer ended without a status"))
        elif self._messages and self.is_streaming:
            self._tell()

    def on_reset(self, code: int) -> None:
        """See `Stream`."""
        self._end(
            rpc_error(_RESET_CODES.get(code, grpc.StatusCode.INTERNAL), f"the server gave the call up (HTTP/2 error {code})")
        )

    def on_lost(self, why: str) -> None:
        """See `Stream`."""
        self._end(rpc_error(grpc.StatusCode.UNAVAILABLE, why))

    # Ending

    def expire(self) -> None:
        """The time is over."""
        self._give_up(rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), h2.CANCEL)

    def cancel(self, message: str = "the call was cancelled") -> None:
        """Nobody waits for it any more."""
        self._give_up(rpc_error(grpc.StatusCode.CANCELLED, message), h2.CANCEL)

    def _give_up(self, error: grpc.aio.AioRpcError, code: int) -> None:
        if not self.is_over:
            self._end(error)
            self.connection.reset(self, code)

    def _end(self, error: grpc.aio.AioRpcError | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.error = error
        self.connection.num_kept -= self._reader.num_kept
        self._reader.num_kept = 0
        if self.timer is not None:
            self.timer.cancel()
        if not self.is_ended_here and self.is_ended_there:
            # It has said all it will, and need not hear the rest.
            self.connection.reset(self, h2.NO_ERROR)
        self.release()
        self._tell()

    # Reading

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _raise_error(self) -> None:
        error = self.error
        try:
            if error is not None:
                raise error
        finally:
            # What is raised holds this frame; both would stay until the collector finds them.
            del error

    async def answer(self) -> bytes:
        """A unary call's one message."""
        try:
            if not self.is_over:
                await self._wait()
        except BaseException:
            self.cancel()
            raise
        try:
            self._raise_error()
        finally:
            self.error = None
        if len(self._messages) != 1:
            raise rpc_error(grpc.StatusCode.INTERNAL, f"the server answered {len(self._messages)} messages to a call for one")
        return self._messages[0]

    async def next(self) -> bytes | None:
        """A stream's next message; None at its end."""
        while not self._messages:
            self._raise_error()
            if self.is_over:
                return None
            await self._wait()
        message = self._messages.popleft()
        self.consumed(len(message))
        return message


def _outcome(fields: list[Field], *, is_alone: bool) -> grpc.aio.AioRpcError | None:
    """What trailers say; *is_alone*: nothing came before them. None: all is well."""
    found = dict(fields)
    status = found.get(STATUS, "")
    if is_alone and found.get(":status", "200") != "200" and not status:
        return _http_error(found)
    if status == "0":
        return None
    code = CODES.get(int(status), grpc.StatusCode.UNKNOWN) if status.isascii() and status.isdigit() else grpc.StatusCode.UNKNOWN
    return rpc_error(code, unquoted(found.get(MESSAGE, "")), fields)


def _http_error(found: dict[str, str]) -> grpc.aio.AioRpcError:
    status = found.get(":status", "")
    if status == "200":
        return rpc_error(grpc.StatusCode.UNKNOWN, "what answered is no gRPC server")
    return rpc_error(HTTP_CODES.get(status, grpc.StatusCode.UNKNOWN), f"the server answered HTTP {status[:3]}")


class _ClientConnection(Connection):
    """One connection to a server, until it breaks or the server gives it up."""

    def __init__(self, channel: "AsyncChannel", bounds: Bounds, patience: Patience) -> None:
        super().__init__(bounds)
        self._channel = channel
        self.patience = patience
        self.keepalive = patience.keepalive
        self.takes_calls = True
        self._next_id = 1
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._pings = 0
        self._pinged_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        bounds = self.bounds
        ours = (
            (h2.ENABLE_PUSH, 0),
            (h2.INITIAL_WINDOW_SIZE, bounds.stream_window),
            (h2.MAX_FRAME_SIZE, bounds.max_frame_bytes),
            (h2.MAX_HEADER_LIST_SIZE, bounds.max_header_bytes),
        )
        self.write(h2.PREFACE + h2.settings(ours) + h2.window_update(0, bounds.connection_window - h2.DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        self._channel.forget(self)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
        if self._watch is not None:
            self._watch.cancel()

    def on_down(self) -> None:
        """See `Connection`."""
        self.takes_calls = False
        self._channel.leave(self)

    def open_stream(self, stream_id: int, fields: list[Field], *, is_end: bool) -> None:
        """Only of calls that are over: a server opens none."""
        if not stream_id & 1 or stream_id >= self._next_id:
            raise h2.ProtocolError("a server opened a stream")

    def on_peer_goes(self, last_stream_id: int, code: int) -> None:
        """See `Connection`."""
        if code == h2.ENHANCE_YOUR_CALM:
            self._channel.calm_down()
        self.on_down()
        for stream in [stream for stream in self.streams.values() if stream.id > last_stream_id]:
            self.streams.pop(stream.id, None)
            stream.on_lost("the server is stopping and did not take the call")
        self._close_when_idle()

    def on_stream_over(self) -> None:
        """See `Connection`."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if not self.takes_calls and not self.streams and not self.is_lost:
            self.close("the server is stopping")

    def send_data(self, stream: Stream, content: bytes, *, is_end: bool) -> None:
        """See `Connection`."""
        self._pings = 0
        super().send_data(stream, content, is_end=is_end)

    async def room(self) -> None:
        """Wait until the server takes another call."""
        while len(self.streams) >= self.peer_max_streams and not self.is_lost:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def begin(self, head: bytes, message: bytes | None, *, is_streaming: bool) -> _Call:
        """Open a stream with *head*, a header block, and, where there is one, its only message."""
        call = _Call(self, self._next_id, is_streaming=is_streaming)
        self._next_id += 2
        if self._next_id > _LAST_STREAM_ID:
            self.on_down()
        self.streams[call.id] = call
        self._pings = 0
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self.keepalive, self._look)
        self._send_beginning(call, head, message)
        return call

    def _send_beginning(self, call: _Call, head: bytes, message: bytes | None) -> None:
        if message is None:
            self.send_headers(call, head, is_end=False)
            return
        content = prefixed(message)
        size = len(content)
        if len(head) <= self.peer_frame_bytes and self.can_send_at_once(call, size):
            self.spend(call, size)
            call.is_ended_here = True
            first = h2.frame(h2.HEADERS, h2.END_HEADERS, call.id, head)
            self.write(first + h2.head(h2.DATA, h2.END_STREAM, call.id, size) + content)
            return
        self.send_headers(call, head, is_end=False)
        self.send_data(call, content, is_end=True)

    # Is anybody there

    def _look(self) -> None:
        """After a while with calls: ask a server that is silent, and give it up when it stays so."""
        self._watch = None
        if self.is_lost or not self.streams:
            return
        loop, silent = asyncio.get_running_loop(), time.monotonic() - self.heard_at
        if self._pinged_at > self.heard_at and silent >= self.patience.keepalive_timeout:
            self.abort("the server does not answer any more")
            return
        wait = self.keepalive
        if silent >= self.keepalive and self._pings < MAX_PINGS_WITHOUT_DATA:
            self._pings += 1
            self._pinged_at = time.monotonic()
            self.write(h2.frame(h2.PING, 0, 0, b"trunklin"))
            wait = self.patience.keepalive_timeout
        self._watch = loop.call_later(wait, self._look)


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
        self._server_name = server_name or self._host
        authority = server_name or ("localhost" if self._path else address)
        self._authority = authority
        self._live: _ClientConnection | None = None
        self._connecting: asyncio.Task[_ClientConnection] | None = None
        self._connections: set[_ClientConnection] = set()
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
        """End all calls, which raise CANCELLED, and the connection; *grace* is grpc.aio's, and not waited for."""
        del grace
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for connection in list(self._connections):
            for stream in list(connection.streams.values()):
                assert isinstance(stream, _Call)
                stream.cancel("the client was closed during the call")
            connection.close("the client was closed")
        # The transports end at the loop's next turn.
        await asyncio.sleep(0)

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
                (f"{ENCODING[:5]}accept-encoding", "identity"),
            )
        )

    async def _begin(
        self, head: bytes, message: bytes | None, timeout: float | None, metadata: RawMetadata | None, *, is_streaming: bool
    ) -> _Call:
        until = None if timeout is None else time.monotonic() + timeout
        try:
            rest = block(metadata_fields(metadata)) if metadata else b""
        except ValueError as error:
            raise rpc_error(grpc.StatusCode.INTERNAL, str(error)) from None
        if message is not None and len(message) > self._bounds.max_message_bytes:
            raise rpc_error(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message is larger than {self._bounds.max_message_bytes} bytes"
            )
        connection = self._live
        if connection is None or len(connection.streams) >= connection.peer_max_streams:
            connection = await self._ready(until)
        if until is None:
            return connection.begin(head + rest, message, is_streaming=is_streaming)
        left = until - time.monotonic()
        if left <= 0:
            raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        call = connection.begin(head + literal(TIMEOUT, timeout_field(left)) + rest, message, is_streaming=is_streaming)
        call.timer = asyncio.get_running_loop().call_later(left, call.expire)
        return call

    async def _ready(self, until: float | None) -> _ClientConnection:
        """A connection that takes a call, before *until*."""
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                while True:
                    connection = self._live or await self._connected()
                    await connection.room()
                    if connection.takes_calls and not connection.is_lost:
                        return connection
        except TimeoutError:
            raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None

    async def _connected(self) -> _ClientConnection:
        """The connection, made by whoever asks first, for all."""
        if self._is_closed:
            raise rpc_error(grpc.StatusCode.CANCELLED, "the client is closed")
        if self._connecting is None:
            if time.monotonic() < self._due:
                raise rpc_error(grpc.StatusCode.UNAVAILABLE, self._why)
            self._connecting = asyncio.create_task(self._connect())
        try:
            return await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise rpc_error(grpc.StatusCode.CANCELLED, "the client was closed during the call") from None

    async def _connect(self) -> _ClientConnection:
        patience = self._patience
        try:
            async with asyncio.timeout(patience.connect):
                connection = await self._open()
        except (OSError, TimeoutError) as error:
            self._num_failures += 1
            pause = min(patience.max_backoff, patience.backoff * 2.0 ** min(self._num_failures - 1, 16))
            # Apart, so that many clients of a server that comes back do not come at once.
            self._due = time.monotonic() + pause * random.uniform(0.8, 1.2)  # noqa: S311 (no secret)
            self._why = f"{self._address} cannot be reached: {_reason(error)}"
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, self._why) from None
        finally:
            self._connecting = None
        self._num_failures = 0
        connection.keepalive = self._keepalive
        self._live = connection
        self._connections.add(connection)
        return connection

    async def _open(self) -> _ClientConnection:
        loop = asyncio.get_running_loop()

        def make() -> _ClientConnection:
            return _ClientConnection(self, self._bounds, self._patience)

        secure: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls, "server_hostname": self._server_name}
        if self._path:
            _, connection = await loop.create_unix_connection(make, self._path, **secure)
        else:
            _, connection = await loop.create_connection(make, self._host, self._port, **secure)
        return connection

    # What its connections tell

    def leave(self, connection: _ClientConnection) -> None:
        """It takes no more calls."""
        if self._live is connection:
            self._live = None

    def forget(self, connection: _ClientConnection) -> None:
        """It has ended."""
        self._connections.discard(connection)

    def calm_down(self) -> None:
        """A server finds that it is asked too often whether it is there; grpc's own clients do the same then."""
        self._keepalive *= 2


class StreamCall:
    """A stream, with the face of grpc.aio's. It begins with the first thing that is asked of it."""

    def __init__(self, begin: Callable[[], Awaitable[_Call]]) -> None:
        self._begin = begin
        self._call: _Call | None = None
        self._beginning: asyncio.Task[_Call] | None = None
        self._is_cancelled = False

    async def write(self, message: bytes) -> None:
        """Send *message*, once there is room for it.

        Raises:
            asyncio.InvalidStateError: the call is over; reading says how it ended.
        """
        call = await self._begun()
        if call.is_over or call.is_ended_here:
            raise asyncio.InvalidStateError("the call is over")
        call.connection.send_data(call, prefixed(message), is_end=False)
        await call.has_room()

    async def done_writing(self) -> None:
        """Say that nothing more is coming."""
        call = await self._begun()
        if not call.is_over and not call.is_ended_here:
            call.connection.send_data(call, b"", is_end=True)

    def cancel(self) -> bool:
        """Give the call up; whether it was still under way."""
        self._is_cancelled = True
        if self._beginning is not None and not self._beginning.done():
            self._beginning.cancel()
        if self._call is None or self._call.is_over:
            return False
        self._call.cancel()
        return True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        call = await self._begun()
        while (message := await call.next()) is not None:
            yield message

    async def _begun(self) -> _Call:
        """Whoever comes first begins it, and who comes meanwhile waits for that."""
        if self._call is not None:
            return self._call
        if self._is_cancelled:
            raise rpc_error(grpc.StatusCode.CANCELLED, "the call was cancelled")
        if self._beginning is None:
            self._beginning = asyncio.ensure_future(self._begin())
        try:
            self._call = await asyncio.shield(self._beginning)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise rpc_error(grpc.StatusCode.CANCELLED, "the call was cancelled") from None
        return self._call


def parse_address(address: str) -> tuple[str, str, int]:
    """(path, "", 0) of `unix:path`, or ("", host, port) of `host:port`, also behind `dns:///`, `ipv4:` and `ipv6:`.

    Raises:
        ValueError: it is neither.
    """
    if address.startswith("unix:"):
        return address.removeprefix("unix:").removeprefix("//"), "", 0
    plain = address.removeprefix("dns:").removeprefix("///").removeprefix("ipv4:").removeprefix("ipv6:")
    host, _, port = plain.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535 or not host:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return "", host.removeprefix("[").removesuffix("]"), int(port)


def _reason(error: OSError | TimeoutError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError) and not error.strerror:
        return "no connection in time"
    return error.strerror or str(error) or type(error).__name__
