"""The calling end, with the face of `grpc.aio.Channel`: unary calls and streams of bytes to one address, over one connection.

The connection is made when there is something to send. While it cannot be had, calls fail with UNAVAILABLE, at once until the
next attempt is due. A connection that its server gives up (GOAWAY) ends its calls and takes no more; the next call makes another.
Nothing is sent twice: retrying is the caller's decision.
"""

import asyncio
import contextlib
import math
import random
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import grpc
import grpc.aio

from clients.wire.rpc import frames as h2
from clients.wire.rpc.connection import Bounds, Connection, Stream
from clients.wire.rpc.headers import (
    CODES,
    CONTENT_TYPE,
    HTTP_CODES,
    MESSAGE,
    STATUS,
    TIMEOUT,
    Field,
    block,
    is_grpc,
    literal,
    metadata_fields,
    read_metadata,
    timeout_field,
    unquoted,
)
from clients.wire.rpc.messages import MessageError, MessageReader, prefixed

USER_AGENT: Final = "trunkline-grpc"
_CLOSE_SECONDS: Final = 0.1
"""A server that does not take the last bytes, or does not answer TLS's goodbye (grpcio's do not), is left after so long."""

_LATE_SECONDS: Final = 0.02

MAX_PINGS_WITHOUT_DATA: Final = 2
"""Servers take more for an attack: grpc's own send no more either (GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA)."""

_LAST_STREAM_ID: Final = 2**30
_RESET_CODES: Final = {
    h2.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    h2.CANCEL: grpc.StatusCode.CANCELLED,
    h2.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
    h2.INADEQUATE_SECURITY: grpc.StatusCode.PERMISSION_DENIED,
}
"""What a reset means (doc/PROTOCOL-HTTP2.md); all others are INTERNAL."""

RawMetadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    A connection is made within *connect*; after a failed attempt the next waits *backoff*, twice as long each time, at most
    *max_backoff*, and calls wait for it no longer than *again*. Where calls wait and nothing came for *keepalive*, the server is
    asked, and given up when it does not answer within *keepalive_timeout*.
    """

    connect: float = 5.0
    again: float = 0.2
    backoff: float = 0.1
    max_backoff: float = 1.0
    keepalive: float = 10.0
    keepalive_timeout: float = 5.0


def rpc_error(code: grpc.StatusCode, message: str, trailing: Iterable[Field] = ()) -> grpc.aio.AioRpcError:
    """What a call that did not end well raises, as grpc.aio's do."""
    metadata = grpc.aio.Metadata(*read_metadata(trailing))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, message, None)


class _Ending(NamedTuple):
    """How a call ended that did not end well.

    It is kept instead of the error, which is made for each who asks: an error that is raised holds the frames it passed through,
    and so whoever kept it.
    """

    code: grpc.StatusCode
    message: str
    trailing: tuple[Field, ...] = ()

    def error(self) -> grpc.aio.AioRpcError:
        """What to raise."""
        return rpc_error(self.code, self.message, self.trailing)


_EXPIRED: Final = _Ending(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
_CANCELLED: Final = _Ending(grpc.StatusCode.CANCELLED, "the call was cancelled")
_CLOSED_DURING: Final = _Ending(grpc.StatusCode.CANCELLED, "the client was closed during the call")
_CLOSED: Final = _Ending(grpc.StatusCode.CANCELLED, "the client is closed")


class _Call(Stream):
    """One call's stream: messages as they come, and how it ended."""

    __slots__ = ("_messages", "_reader", "_waiter", "ending", "has_headers", "is_over", "is_streaming", "loop", "timer")

    def __init__(self, connection: "_ClientConnection", stream_id: int, *, is_streaming: bool) -> None:
        super().__init__(connection, stream_id)
        self.is_streaming = is_streaming
        self.has_headers = False
        self.is_over = False
        self.ending: _Ending | None = None
        """None while it is under way, and where it ended well."""
        self.loop = asyncio.get_running_loop()
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
            self._give_up(_Ending(grpc.StatusCode.INTERNAL, "the server sent headers twice"), h2.PROTOCOL_ERROR)
            return
        found = dict(fields)
        if found.get(":status", "").startswith("1"):
            return
        self.has_headers = True
        if found.get(":status") != "200" or not is_grpc(found.get("content-type", "")):
            self._give_up(_http_ending(found), h2.CANCEL)

    def on_data(self, content: bytes, *, is_end: bool) -> None:
        """Parts of messages."""
        if not self.has_headers:
            self._give_up(_Ending(grpc.StatusCode.INTERNAL, "the server sent data before headers"), h2.PROTOCOL_ERROR)
            return
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
            self._give_up(_Ending(code, str(error)), h2.CANCEL)
            return
        connection.num_kept += self._reader.num_kept - before
        if is_end:
            self._end(_Ending(grpc.StatusCode.INTERNAL, "the answer ended without a status"))
        elif self._messages:
            self._tell_of_messages()

    def _tell_of_messages(self) -> None:
        if self.is_streaming:
            self._tell()
        elif len(self._messages) > 1:
            self._give_up(_Ending(grpc.StatusCode.INTERNAL, "the server answered several messages to a call for one"), h2.CANCEL)

    def on_reset(self, code: int) -> None:
        """See `Stream`."""
        status = _RESET_CODES.get(code, grpc.StatusCode.INTERNAL)
        self._end(_Ending(status, f"the server gave the call up (HTTP/2 error {code})"))

    def on_lost(self, why: str) -> None:
        """See `Stream`."""
        self._end(_Ending(grpc.StatusCode.UNAVAILABLE, why))

    # Ending

    def expire(self) -> None:
        """The time is over."""
        self._give_up(_EXPIRED, h2.CANCEL)

    def cancel(self, ending: _Ending = _CANCELLED) -> None:
        """Nobody waits for it any more."""
        self._give_up(ending, h2.CANCEL)

    def _give_up(self, ending: _Ending, code: int) -> None:
        if not self.is_over:
            self._end(ending)
            self.connection.reset(self, code)

    def _end(self, ending: _Ending | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.ending = ending
        self.connection.num_kept -= self._reader.num_kept
        self._reader.num_kept = 0
        if self.timer is not None:
            self.timer.cancel()
        if self.is_ended_there and (self.unsent or not self.is_ended_here):
            # It has said all it will, and need not hear the rest.
            self.connection.reset(self, h2.NO_ERROR)
        self.release()
        self._tell()

    # Reading

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise asyncio.InvalidStateError("somebody else reads this call")
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def answer(self) -> bytes:
        """A unary call's one message."""
        try:
            if not self.is_over:
                await self._wait()
        except BaseException:
            self.cancel()
            raise
        if self.ending is not None:
            raise self.ending.error()
        if len(self._messages) != 1:
            raise rpc_error(grpc.StatusCode.INTERNAL, f"the server answered {len(self._messages)} messages to a call for one")
        return self._messages[0]

    async def next(self) -> bytes | None:
        """A stream's next message; None at its end. Who is cancelled meanwhile has cancelled the call."""
        while not self._messages:
            if self.ending is not None:
                raise self.ending.error()
            if self.is_over:
                return None
            try:
                await self._wait()
            except asyncio.CancelledError:
                self.cancel()
                raise
        message = self._messages.popleft()
        self.consumed(len(message))
        return message


def _outcome(fields: list[Field], *, is_alone: bool) -> _Ending | None:
    """What trailers say; *is_alone*: nothing came before them. None: all is well."""
    found = dict(fields)
    status = found.get(STATUS, "")
    if not status:
        is_foreign = is_alone and (found.get(":status") != "200" or not is_grpc(found.get("content-type", "")))
        return _http_ending(found) if is_foreign else _Ending(grpc.StatusCode.UNKNOWN, "the answer ended without a status")
    if status == "0":
        return None
    code = CODES.get(int(status)) if len(status) <= 2 and status.isascii() and status.isdigit() else None
    return _Ending(code or grpc.StatusCode.UNKNOWN, unquoted(found.get(MESSAGE, "")), tuple(fields))


def _http_ending(found: dict[str, str]) -> _Ending:
    status = found.get(":status", "")
    if status == "200":
        return _Ending(grpc.StatusCode.UNKNOWN, "what answered is no gRPC server")
    return _Ending(HTTP_CODES.get(status, grpc.StatusCode.UNKNOWN), f"the server answered HTTP {status[:3]}")


class _ClientConnection(Connection):
    """One connection to a server, until it breaks or the server gives it up."""

    def __init__(self, channel: "AsyncChannel", bounds: Bounds, patience: Patience, keepalive: float) -> None:
        super().__init__(bounds)
        self._channel = channel
        self.patience = patience
        self.keepalive = keepalive
        self.takes_calls = True
        loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[None] = loop.create_future()
        """Done once the server's settings came, or it is clear that they will not."""
        self.ended: asyncio.Future[None] = loop.create_future()
        self._next_id = 1
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._num_called = 0
        """Of those that waited, who were called and did not begin yet; their places are theirs."""
        self._watch: asyncio.TimerHandle | None = None
        self._pings = 0
        self._pinged_at = 0.0

    @property
    def is_full(self) -> bool:
        """Whether the server takes no other call now, or others were first."""
        return bool(self._waiting) or len(self.streams) + self._num_called >= self.peer_max_streams

    @property
    def why(self) -> str:
        """Why it takes no calls."""
        return self._why

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._channel.remember(self)
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
        self.ended.set_result(None)
        if self._watch is not None:
            self._watch.cancel()

    def on_settings(self) -> None:
        """See `Connection`."""
        if not self.greeted.done():
            self.greeted.set_result(None)
        self._call_in()

    def fail(self, why: str, code: int) -> None:
        """See `Connection`."""
        super().fail(why if self.greeted.done() else "what answered does not speak HTTP/2", code)

    def on_down(self) -> None:
        """See `Connection`."""
        self.takes_calls = False
        self._channel.leave(self)
        if not self.greeted.done():
            self.greeted.set_result(None)
        self._call_in()

    def open_stream(self, stream_id: int, fields: list[Field], *, is_end: bool) -> None:
        """A server opens none."""
        raise h2.ProtocolError("a server opened a stream")

    def on_peer_goes(self, last_stream_id: int, code: int) -> None:
        """See `Connection`."""
        if code == h2.ENHANCE_YOUR_CALM:
            self._channel.calm_down()
        self.on_down()
        for stream in [stream for stream in self.streams.values() if stream.id > last_stream_id]:
            self.streams.pop(stream.id, None)
            stream.drop_unsent()
            stream.on_lost("the server is stopping and did not take the call")
        self._close_when_idle()

    def on_stream_over(self) -> None:
        """See `Connection`."""
        self._call_in()
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if not self.takes_calls and not self.streams and not self.is_lost:
            self.close("the server is stopping")

    def send_data(self, stream: Stream, content: bytes, *, is_end: bool) -> None:
        """See `Connection`."""
        self._pings = 0
        super().send_data(stream, content, is_end=is_end)

    async def room(self) -> None:
        """Wait until the server takes another call; who does not begin it then calls `give_back`."""
        if not self.is_full or not self.takes_calls:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._waiting.pop(waiter, None)
            else:
                self._num_called -= 1
                self._call_in()
            raise
        self._num_called -= 1

    def give_back(self) -> None:
        """A place is free again that nobody took."""
        self._call_in()

    def _call_in(self) -> None:
        """As many of those that wait as there are places; all, where there will be none."""
        while self._waiting and (not self.takes_calls or len(self.streams) + self._num_called < self.peer_max_streams):
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.done():
                self._num_called += 1
                waiter.set_result(None)

    def begin(self, head: bytes, message: bytes | None, *, is_streaming: bool) -> _Call:
        """Open a stream with *head*, a header block, and, where there is one, its only message."""
        content = None if message is None else prefixed(message)
        call = _Call(self, self._next_id, is_streaming=is_streaming)
        self.last_id, self._next_id = call.id, call.id + 2
        if self._next_id > _LAST_STREAM_ID:
            self.on_down()
        self.streams[call.id] = call
        self._pings = 0
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self.keepalive, self._look)
        self._send_beginning(call, head, content)
        return call

    def _send_beginning(self, call: _Call, head: bytes, content: bytes | None) -> None:
        if content is None:
            self.send_headers(call, head, is_end=False)
            return
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
        now = time.monotonic()
        if self._pinged_at > self.heard_at:
            due = self._pinged_at + self.patience.keepalive_timeout
            if now >= due + _LATE_SECONDS:
                self.abort("the server does not answer any more")
                return
            if now >= due:
                # A loop that was held up looks at its clocks before it reads what has come meanwhile.
                due = now + _LATE_SECONDS
        elif now < self.heard_at + self.keepalive:
            due = self.heard_at + self.keepalive
        elif self._pings < MAX_PINGS_WITHOUT_DATA:
            self._pings += 1
            self._pinged_at = now
            self.write(h2.frame(h2.PING, 0, 0, b"trunklin"))
            due = now + self.patience.keepalive_timeout
        else:
            due = now + self.keepalive
        self._watch = asyncio.get_running_loop().call_later(due - now, self._look)


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
        self._live: _ClientConnection | None = None
        self._connecting: asyncio.Task[_ClientConnection | None] | None = None
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
        """End all calls, which raise CANCELLED, and the connections; *grace* is grpc.aio's, and not waited for."""
        del grace
        self._is_closed = True
        connecting = self._connecting
        if connecting is not None:
            connecting.cancel()
        for connection in list(self._connections):
            for stream in list(connection.streams.values()):
                assert isinstance(stream, _Call)
                stream.cancel(_CLOSED_DURING)
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
    ) -> _Call:
        until = None if timeout is None or timeout == math.inf else time.monotonic() + timeout
        try:
            rest = block(metadata_fields(metadata)) if metadata else b""
        except ValueError as error:
            raise rpc_error(grpc.StatusCode.INTERNAL, str(error)) from None
        if message is not None and len(message) > self._bounds.max_message_bytes:
            raise _too_large(self._bounds).error()
        connection = self._live
        if connection is None or connection.is_full:
            connection = await self._ready(until)
        if until is None:
            return connection.begin(head + rest, message, is_streaming=is_streaming)
        left = until - time.monotonic()
        if left <= 0:
            connection.give_back()
            raise _EXPIRED.error()
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
                    if connection.takes_calls:
                        return connection
        except TimeoutError:
            raise _EXPIRED.error() from None

    async def _connected(self) -> _ClientConnection:
        """The connection, made by whoever asks first, for all. It is made also when that one is cancelled meanwhile."""
        if self._is_closed:
            raise _CLOSED.error()
        connecting = self._connecting
        if connecting is None:
            if time.monotonic() < self._due:
                raise rpc_error(grpc.StatusCode.UNAVAILABLE, self._why)
            connecting = self._connecting = asyncio.create_task(self._connect())
        # Not `await connecting`, which would be cancelled with any of those that wait, and raise the same error in all of them.
        # A host that has vanished lets each attempt time out: nobody waits for that again.
        await asyncio.wait((connecting,), timeout=self._patience.again if self._num_failures else None)
        if self._is_closed:
            raise _CLOSED_DURING.error()
        connection = connecting.result() if connecting.done() else None
        if connection is None:
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, self._why)
        return connection

    async def _connect(self) -> _ClientConnection | None:
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

    async def _open(self) -> _ClientConnection:
        loop = asyncio.get_running_loop()

        def make() -> _ClientConnection:
            return _ClientConnection(self, self._bounds, self._patience, self._keepalive)

        secure: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls, "server_hostname": self._server_name}
        if self._path:
            _, connection = await loop.create_unix_connection(make, self._path, **secure)
        else:
            _, connection = await loop.create_connection(make, self._host, self._port, **secure)
        return connection

    # What its connections tell

    def remember(self, connection: _ClientConnection) -> None:
        """It is there, and will have to be ended."""
        self._connections.add(connection)

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


async def _greeted(connection: _ClientConnection) -> None:
    """Wait for the server's settings: before them it may be no gRPC server, and how many calls it takes is not known."""
    try:
        await connection.greeted
    except asyncio.CancelledError:
        connection.abort("the server said nothing")
        raise


def _too_large(bounds: Bounds) -> _Ending:
    return _Ending(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message is larger than {bounds.max_message_bytes} bytes")


class StreamCall:
    """A stream, with the face of grpc.aio's. It begins with the first thing that is asked of it.

    As there, the call is cancelled when somebody is cancelled who waits for it, and when nobody holds it any more.
    """

    def __init__(self, begin: Callable[[], Awaitable[_Call]]) -> None:
        self._begin = begin
        self._call: _Call | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._ending: _Ending | None = None
        """Why it never began."""

    def __del__(self) -> None:
        call = self._call
        if call is not None and not call.is_over:
            # The collector may run in any thread, and after the loop.
            with contextlib.suppress(RuntimeError):
                call.loop.call_soon_threadsafe(call.cancel)

    async def write(self, message: bytes) -> None:
        """Send *message*, once there is room for it.

        Raises:
            asyncio.InvalidStateError: the call is over; reading says how it ended.
            grpc.aio.AioRpcError: it could not begin.
        """
        call = await self._begun()
        if call.is_over or call.is_ended_here:
            raise asyncio.InvalidStateError("the call is over")
        if len(message) > call.connection.bounds.max_message_bytes:
            call.cancel(_too_large(call.connection.bounds))
        else:
            call.connection.send_data(call, prefixed(message), is_end=False)
            try:
                await call.has_room()
            except asyncio.CancelledError:
                call.cancel()
                raise
        if call.is_over:
            raise asyncio.InvalidStateError("the call is over")

    async def done_writing(self) -> None:
        """Say that nothing more is coming."""
        call = await self._begun()
        if not call.is_over and not call.is_ended_here:
            call.connection.send_data(call, b"", is_end=True)

    def cancel(self) -> bool:
        """Give the call up; whether it was still under way."""
        if self._call is not None:
            is_under_way = not self._call.is_over
            self._call.cancel()
            return is_under_way
        is_under_way = self._ending is None
        self._ending = self._ending or _CANCELLED
        if self._beginning is not None:
            self._beginning.cancel()
        return is_under_way

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message = await (await self._begun()).next()
        if message is None:
            raise StopAsyncIteration
        return message

    async def _begun(self) -> _Call:
        return self._call or await self._first()

    async def _first(self) -> _Call:
        """Whoever comes first begins it, and who comes meanwhile waits for that."""
        if self._ending is None:
            if self._beginning is None:
                self._beginning = asyncio.create_task(self._start())
            await self._wait_for(self._beginning)
        if self._call is None:
            raise (self._ending or _CANCELLED).error()
        return self._call

    async def _wait_for(self, beginning: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait((beginning,))
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not beginning.cancelled():
            beginning.result()

    async def _start(self) -> None:
        try:
            self._call = await self._begin()
        except grpc.aio.AioRpcError as error:
            self._ending = self._ending or _Ending(error.code(), error.details() or "")


def parse_address(address: str) -> tuple[str, str, int]:
    """(path, "", 0) of `unix:path`, or ("", host, port) of `host:port`, also behind `dns:///`, `ipv4:` and `ipv6:`.

    Raises:
        ValueError: it is neither.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        if not path:
            raise ValueError(f"{address!r} is not unix:PATH")
        return path, "", 0
    plain = address.removeprefix("dns:").removeprefix("///").removeprefix("ipv4:").removeprefix("ipv6:")
    host, _, port = plain.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535 or not host:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return "", host.removeprefix("[").removesuffix("]"), int(port)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError) and not error.strerror:
        return "no connection in time"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
