"""The answering end, with the face of `grpc.aio.Server`: grpcio's handlers, interceptors and contexts, on the event loop.

Differences from grpc.aio: no reflection, no compression of answers, no channel arguments; a handler is begun when its request is
whole; what a handler raises is logged, and told to nobody.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import socket
import ssl
import stat
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import grpc.aio

from clients.wire.rpc import frames as h2
from clients.wire.rpc.channel import parse_address
from clients.wire.rpc.connection import MESSAGE_COST, Bounds, Connection, Stream, peer_name
from clients.wire.rpc.headers import (
    CONTENT_TYPE,
    ENCODING,
    MESSAGE,
    STATUS,
    TIMEOUT,
    Field,
    Metadata,
    block,
    is_grpc,
    metadata_fields,
    quoted,
    read_metadata,
    read_timeout,
)
from clients.wire.rpc.messages import HEAD, MessageError, MessageReader, prefixed

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 8_192

SERVER_BOUNDS: Final = Bounds(max_streams=1_024, stream_window=524_288)
"""The product of the two is what one connection may have waiting for handlers that do not read."""

_GOODBYE: Final = b"trunkbye"
_BACKLOG: Final = 1_024
_MAX_BLIND_BYTES: Final = 4 * 1_048_576
"""What is written to a caller that does not read, beside messages: more is an attack."""
_TURN_BYTES: Final = 262_144
"""A handler that has so much to say at once lets others have their turn."""
_PACKINGS: Final = frozenset(("identity", "deflate", "gzip"))

_HEAD_BLOCK: Final = block(
    ((":status", "200"), ("content-type", CONTENT_TYPE), ("grpc-accept-encoding", "identity, deflate, gzip"))
)
_OK_BLOCK: Final = block(((STATUS, "0"),))
_UNSUPPORTED_BLOCK: Final = block(((":status", "415"),))
_OK: Final = grpc.StatusCode.OK

Handler = Any
"""`grpc.RpcMethodHandler`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    A connection that begins, a frame and a header block arrive within *receive*, or the connection ends; a large frame that still
    comes has ten times as long. A caller that reads nothing of what is written to it is hung up on after *send*. When the server
    stops, callers have *goodbye* to say that they know, and *close* to hang up. It is looked for all that every *sweep*.
    """

    receive: float = 30.0
    send: float = 60.0
    goodbye: float = 1.0
    close: float = 1.0
    sweep: float = 5.0


class CallDetails(grpc.HandlerCallDetails):
    """What an interceptor learns of a call."""

    def __init__(self, method: str, metadata: Metadata) -> None:
        self.method = method
        self.invocation_metadata = metadata


class _ServerCall(Stream):
    """One call: what arrives of it, and its answer."""

    __slots__ = (
        "details",
        "handler",
        "has_sent_head",
        "is_over",
        "is_request_streaming",
        "lying_since",
        "messages",
        "num_held",
        "num_lying",
        "num_sent",
        "peer",
        "reader",
        "task",
        "timer",
        "until",
        "waiter",
    )

    def __init__(self, connection: "_ServerConnection", stream_id: int, details: CallDetails, handler: Handler) -> None:
        super().__init__(connection, stream_id)
        self.details = details
        self.handler = handler
        self.is_request_streaming = bool(handler.request_streaming)
        """Of what was called; an interceptor may have it answered by a handler of another kind."""
        self.messages: deque[bytes] = deque()
        """As they came: compressed ones still are."""
        self.reader = MessageReader(connection.bounds.max_message_bytes)
        self.waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.until: float | None = None
        self.has_sent_head = False
        self.num_held = 0
        """Bytes of a unary call's message whose request has not ended."""
        self.num_sent = 0
        """Bytes since others had their turn."""
        self.is_over = False
        self.peer = connection.peer
        self.num_lying = 0
        self.lying_since = 0.0

    @property
    def server(self) -> "AsyncServer":
        """Whose it is."""
        connection = self.connection
        assert isinstance(connection, _ServerConnection)
        return connection.server

    # Arriving

    def on_headers(self, fields: list[Field], *, is_end: bool) -> None:
        """Trailers, which no caller sends; they are the end all the same."""
        del fields
        if self.is_over:
            return
        if not is_end:
            self.refuse(grpc.StatusCode.INTERNAL, "headers came twice")
            return
        self._end_of_request()

    def on_data(self, content: bytes, *, is_end: bool) -> None:
        """Parts of messages."""
        if self.is_over:
            return
        connection, reader = self.connection, self.reader
        before = reader.num_kept
        try:
            messages = reader.cut(content)
        except MessageError as error:
            connection.num_kept -= before
            reader.num_kept = 0
            self.refuse(_code_of(error), str(error))
            return
        connection.num_kept += reader.num_kept - before
        self.messages.extend(messages)
        if self.is_request_streaming:
            for message in messages:
                self.keep(len(message))
        elif len(self.messages) > 1:
            self.refuse(grpc.StatusCode.INTERNAL, "a call for one message brought several")
            return
        elif messages and not is_end:
            # Nobody reads it before the request has ended.
            self.num_held = len(messages[0])
            connection.num_kept += self.num_held
        if is_end:
            self._end_of_request()
        elif messages:
            self.tell()

    def _end_of_request(self) -> None:
        if self.reader.num_kept:
            self.refuse(grpc.StatusCode.INTERNAL, "the request ended within a message")
        elif self.is_request_streaming:
            self.tell()
        elif len(self.messages) == 1:
            self.start()
        else:
            self.refuse(grpc.StatusCode.INTERNAL, f"a call for one message brought {len(self.messages)}")

    def on_reset(self, code: int) -> None:
        """See `Stream`."""
        del code
        self.leave()

    def on_lost(self, why: str) -> None:
        """See `Stream`."""
        del why
        self.leave()

    def expire(self) -> None:
        """The time is over."""
        if self.is_over:
            self.connection.reset(self, h2.CANCEL)
            return
        self.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def start(self) -> None:
        """All is there that the handler needs to begin."""
        self._let_go()
        self.task = asyncio.get_running_loop().create_task(self.server.run(self))
        self.server.running.add(self.task)
        self.task.add_done_callback(self.server.running.discard)

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        if self.is_over:
            # Its handler was cancelled already, or is through: a second time would cut off what it does at its end.
            return
        self._over()
        if self.task is not None:
            self.task.cancel()

    def _over(self) -> None:
        self.is_over = True
        self.server.num_open -= 1
        self._stop_timer()
        self.connection.num_kept -= self.reader.num_kept
        self.reader.num_kept = 0
        self._let_go()
        self.release()
        self.tell()

    def drop_unsent(self) -> None:
        """See `Stream`."""
        super().drop_unsent()
        self._stop_timer()

    def _stop_timer(self) -> None:
        """An answer that waits for credit still has the call's time to leave."""
        if self.timer is not None and not self.unsent:
            self.timer.cancel()

    def is_left_lying(self, now: float, seconds: float) -> bool:
        """Whether it is answered, and nothing of the rest of its answer left for *seconds*."""
        if not self.is_over or self.num_lying != self.num_unsent:
            self.num_lying, self.lying_since = self.num_unsent, now
        return now - self.lying_since > seconds

    def _let_go(self) -> None:
        self.connection.num_kept -= self.num_held
        self.num_held = 0

    # Reading

    def tell(self) -> None:
        """Who reads looks again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def next(self) -> bytes | None:
        """The next message of a stream; None at its end.

        Raises:
            MessageError: it is not compressed as it says.
        """
        while not self.messages:
            if self.is_ended_there or self.is_over:
                return None
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        message = self.messages.popleft()
        self.consumed(len(message))
        return self.reader.unpacked(message)

    # Answering

    def answer(self, message: bytes, trailers: bytes) -> None:
        """All of a unary answer, in one piece where there is room for it."""
        if self.is_over:
            return
        connection, size = self.connection, HEAD.size + len(message)
        if self.has_sent_head or not connection.can_send_at_once(self, size):
            self.send_head()
            connection.send_data(self, prefixed(message), is_end=False)
            self.end(trailers)
            return
        connection.spend(self, size)
        self.is_ended_here = True
        connection.write(
            b"".join(
                (
                    h2.frame(h2.HEADERS, h2.END_HEADERS, self.id, _HEAD_BLOCK),
                    h2.head(h2.DATA, 0, self.id, size),
                    HEAD.pack(0, len(message)),
                    message,
                    h2.header_frames(trailers, self.id, h2.END_STREAM, connection.peer_frame_bytes),
                )
            )
        )
        self._ended()

    def send_head(self, metadata: Iterable[tuple[str, str | bytes]] = ()) -> None:
        """What comes before the first message."""
        if not self.has_sent_head and not self.is_over:
            extra = block(metadata_fields(metadata)) if metadata else b""
            self.has_sent_head = True
            self.connection.send_headers(self, _HEAD_BLOCK + extra, is_end=False)

    async def send(self, message: bytes) -> None:
        """A message of a stream, once there is room."""
        self.send_head()
        if not self.is_over:
            self.connection.send_data(self, prefixed(message), is_end=False)
            await self.has_room()
            self.num_sent += len(message) + MESSAGE_COST
            if self.num_sent > _TURN_BYTES:
                self.num_sent = 0
                await asyncio.sleep(0)

    def end(self, trailers: bytes) -> None:
        """The status."""
        if self.is_over:
            return
        if not self.has_sent_head:
            self.has_sent_head = True
            trailers = _HEAD_BLOCK + trailers
        self.connection.send_headers(self, trailers, is_end=True)
        self._ended()

    def _ended(self) -> None:
        self.is_through = True
        self._over()
        self.connection.settle(self)

    def refuse(self, code: grpc.StatusCode, message: str) -> None:
        """End it before its handler does."""
        if self.is_over:
            return
        if self.unsent:
            # A status would wait behind an answer that its caller does not take.
            self.leave()
            self.connection.reset(self, h2.CANCEL)
            return
        self.end(status_block(code, message))
        if self.task is not None:
            self.task.cancel()


def _code_of(error: MessageError) -> grpc.StatusCode:
    return grpc.StatusCode.RESOURCE_EXHAUSTED if error.is_too_large else grpc.StatusCode.INTERNAL


def status_block(code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, str | bytes]] = ()) -> bytes:
    """The trailers of a call that ends so."""
    fields: list[Field] = [(STATUS, str(code.value[0]))]
    if message:
        fields.append((MESSAGE, quoted(message)))
    return block([*fields, *metadata_fields(trailing)])


class Context:
    """A call as its handler sees it; `grpc.aio.ServicerContext`'s face."""

    __slots__ = ("_call", "_callbacks", "_code", "_details", "_trailing")

    def __init__(self, call: _ServerCall) -> None:
        self._call = call
        self._code = _OK
        self._details = ""
        self._trailing: tuple[tuple[str, str | bytes], ...] = ()
        self._callbacks: list[Callable[[Any], None]] = []

    def invocation_metadata(self) -> Metadata:
        """What the caller sent beside its request."""
        return self._call.details.invocation_metadata

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None where it has none."""
        until = self._call.until
        return None if until is None else max(0.0, until - time.monotonic())

    def peer(self) -> str:
        """Who calls, as gRPC writes it."""
        return self._call.peer

    def peer_identities(self) -> None:
        """Not told."""

    def peer_identity_key(self) -> None:
        """Not told."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Nothing: who may call is decided by keys."""
        return {}

    def set_compression(self, compression: grpc.Compression) -> None:
        """Answers are not compressed."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status, once the handler is through."""
        self._code = code

    def set_details(self, details: str) -> None:
        """The status's message."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """What goes with the status."""
        self._trailing = tuple(trailing_metadata)

    def code(self) -> grpc.StatusCode:
        """As it was set."""
        return self._code

    def details(self) -> str:
        """As they were set."""
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """As it was set."""
        return self._trailing

    async def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """What goes before the first message."""
        self._call.send_head(tuple(initial_metadata))

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> None:
        """End the call now; raises what nobody should catch.

        Raises:
            grpc.aio.AbortError: always.
        """
        # As grpc.aio does: whoever aborts does not mean that all is well.
        self._code, self._details = (grpc.StatusCode.UNKNOWN, "") if code is _OK else (code, details)
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise grpc.aio.AbortError

    async def read(self) -> Any:
        """The next message of a stream, or grpc.aio.EOF."""
        message = await self._call.next()
        return grpc.aio.EOF if message is None else _parsed(self._call.handler, message)

    async def write(self, message: Any) -> None:
        """A message of the answer."""
        serialize = self._call.handler.response_serializer
        await self._call.send(serialize(message) if serialize else message)

    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._call.is_over and not self._call.is_ended_here

    def done(self) -> bool:
        """Whether it is over."""
        return self._call.is_over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """*callback* is called with this context when the handler is through."""
        self._callbacks.append(callback)

    def through(self) -> None:
        """The handler has ended."""
        for callback in self._callbacks:
            try:
                callback(self)
            except Exception:  # whatever it is, the others are called
                _log.exception("a callback of a gRPC call failed")

    def trailers(self) -> bytes:
        """The status as a header block.

        Raises:
            ValueError: what was set cannot be sent.
        """
        if self._code is _OK and not self._details and not self._trailing:
            return _OK_BLOCK
        return status_block(self._code, self._details, self._trailing)


class _Requests:
    """A stream's requests, as its handler iterates over them."""

    __slots__ = ("_call",)

    def __init__(self, call: _ServerCall) -> None:
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self._call.next()
        if message is None:
            raise StopAsyncIteration
        return _parsed(self._call.handler, message)


class _NotParsed(Exception):
    """A request is not the message that it should be."""


def _parsed(handler: Handler, message: bytes) -> Any:
    if handler.request_deserializer is None:
        return message
    try:
        return handler.request_deserializer(message)
    except Exception:  # whatever a parser raises
        raise _NotParsed from None


class _ServerConnection(Connection):
    """One caller's connection."""

    def __init__(self, server: "AsyncServer", bounds: Bounds) -> None:
        super().__init__(bounds)
        self.server = server
        self.peer = ""
        self.begun = time.monotonic()
        self._frame_since: float | None = None
        self._block_since: float | None = None
        self._last_block: bytearray | None = None
        self._closing_since: float | None = None
        self._stalled_since: float | None = None
        self._num_unwritten = 0
        self._num_blind = 0
        self._has_said_all = False
        self._preface: bytes | None = b""
        self._taken_id = 0
        """The stream that was taken last."""
        self._is_stopping = False
        self._goodbye: asyncio.TimerHandle | None = None
        self._closer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        if len(self.server.connections) >= self.server.max_connections or self.server.is_stopping:
            self.abort("there is no room for another connection")
            return
        self.peer = peer_name(transport)
        self.server.remember(self)
        bounds = self.bounds
        ours = (
            (h2.MAX_CONCURRENT_STREAMS, bounds.max_streams),
            (h2.INITIAL_WINDOW_SIZE, bounds.stream_window),
            (h2.MAX_FRAME_SIZE, bounds.max_frame_bytes),
            (h2.MAX_HEADER_LIST_SIZE, bounds.max_header_bytes),
        )
        self.write(h2.settings(ours) + h2.window_update(0, bounds.connection_window - h2.DEFAULT_WINDOW))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        for timer in (self._goodbye, self._closer):
            if timer is not None:
                timer.cancel()
        self.server.forget(self)

    def take(self, data: bytes) -> None:
        """See `Connection`; the preface comes first."""
        if self.is_lost or self._has_said_all:
            return
        if self._preface is not None:
            data = self._preface + data
            if not data.startswith(h2.PREFACE[: len(data)]):
                self.abort("what came is not HTTP/2")
                return
            if len(data) < len(h2.PREFACE):
                self._preface = data
                return
            self._preface, data = None, data[len(h2.PREFACE) :]
        num_cut = self._frames.num_cut
        super().take(data)
        if not self._frames.is_within_frame:
            self._frame_since = None
        elif self._frame_since is None or self._frames.num_cut > num_cut:
            self._frame_since = self.heard_at
        if self._block is not self._last_block:
            self._last_block = self._block
            self._block_since = None if self._block is None else self.heard_at

    def write(self, data: bytes) -> None:
        """See `Connection`; a caller that asks and asks, and reads no answer, is hung up on."""
        if self.is_lost or self._has_said_all:
            return
        if self._is_paused:
            self._num_blind += len(data)
            if self._num_blind > _MAX_BLIND_BYTES:
                self.abort("the caller does not read")
                return
        self.transport.write(data)

    def resume_writing(self) -> None:
        """See asyncio."""
        self._num_blind = 0
        self._stalled_since = None
        super().resume_writing()

    def send_data(self, stream: Stream, content: bytes, *, is_end: bool) -> None:
        """See `Connection`; who lets answers pile up is hung up on."""
        super().send_data(stream, content, is_end=is_end)
        if self.num_unsent > self.bounds.max_unsent_bytes:
            self.abort("the caller does not take its answers")

    def sweep(self, now: float) -> None:
        """End it when it takes its time."""
        patience = self.server.patience
        for stream in list(self.waiting.values()):
            if isinstance(stream, _ServerCall) and stream.is_left_lying(now, patience.send):
                self.reset(stream, h2.CANCEL)
        if self.transport.is_closing() or self._has_said_all:
            self._closing_since = self._closing_since or now
            if now - self._closing_since > 10 * patience.receive:
                self.transport.abort()
        elif self._is_late(now, patience.receive):
            self.abort("a frame took too long")
        elif self._is_stalled(now, patience.send):
            self.abort("the caller does not read")

    def _is_late(self, now: float, seconds: float) -> bool:
        if self._preface is not None:
            return now - self.begun > seconds
        if self._block_since is not None:
            return now - self._block_since > seconds
        if self._frame_since is None:
            return False
        # The rest of a large frame may take longer, as long as it comes at a rate that is worth waiting for.
        is_coming = now - self.heard_at < min(1.0, seconds)
        return now - self._frame_since > (10 * seconds if is_coming else seconds)

    def _is_stalled(self, now: float, seconds: float) -> bool:
        """Whether nothing of what was written has left for *seconds*."""
        # By TLS the transport tells nothing of what it wrote, but pauses us all the same.
        size = max(self.transport.get_write_buffer_size(), int(self._is_paused))
        before, self._num_unwritten = self._num_unwritten, size
        if not self._num_unwritten or self._num_unwritten < before:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        return self._stalled_since is not None and now - self._stalled_since > seconds

    @property
    def last_taken_id(self) -> int:
        """See `Connection`."""
        return self._taken_id

    def open_stream(self, stream_id: int, fields: list[Field], *, is_end: bool) -> None:
        """A call begins."""
        if not stream_id & 1:
            raise h2.ProtocolError("a client's streams have odd numbers")
        self.last_id = stream_id
        if self._is_stopping and self._goodbye is None:
            # The caller was told which calls were the last.
            self._control()
            self.write(h2.rst_stream(stream_id, h2.REFUSED_STREAM))
            return
        self._taken_id = stream_id
        if len(self.streams) >= self.bounds.max_streams or self.server.is_full:
            self._control()
            self.write(h2.rst_stream(stream_id, h2.REFUSED_STREAM))
            return
        found = dict(fields)
        path = found.get(":path", "")
        if found.get(":method") != "POST" or not path or not is_grpc(found.get("content-type", "")):
            self._control()
            head = self.header_frames(_UNSUPPORTED_BLOCK, stream_id, h2.END_STREAM)
            self.write(head + h2.rst_stream(stream_id, h2.NO_ERROR))
            return
        self._open_call(stream_id, path, found, fields, is_end=is_end)

    def _open_call(self, stream_id: int, path: str, found: Mapping[str, str], fields: list[Field], *, is_end: bool) -> None:
        details = CallDetails(path, read_metadata(fields))
        handler, why = self._handler_of(details, found.get(ENCODING, "identity"))
        call = _ServerCall(self, stream_id, details, handler or _NO_HANDLER)
        self.server.num_open += 1
        call.is_ended_there = is_end
        self.streams[stream_id] = call
        if handler is None:
            call.end(why)
            return
        if ENCODING in found:
            call.reader = MessageReader(self.bounds.max_message_bytes, found[ENCODING])
        if TIMEOUT in found:
            timeout = read_timeout(found[TIMEOUT])
            if timeout is None:
                call.refuse(grpc.StatusCode.INTERNAL, "grpc-timeout is not one")
                return
            call.until = self.heard_at + timeout
            call.timer = asyncio.get_running_loop().call_later(timeout, call.expire)
        if handler.request_streaming:
            call.start()
        if is_end and not handler.request_streaming:
            call.refuse(grpc.StatusCode.INTERNAL, "a call for one message brought none")

    def _handler_of(self, details: CallDetails, encoding: str) -> tuple[Handler | None, bytes]:
        """The handler, or why there is none, as trailers."""
        try:
            handler = self.server.handler_of(details)
        except Exception:  # whatever a service raises: the other calls of this connection are not to blame
            _log.exception("a service could not say who handles a gRPC call")
            return None, status_block(grpc.StatusCode.UNKNOWN, "the server met an internal error")
        if handler is None:
            return None, status_block(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        if encoding not in _PACKINGS:
            return None, status_block(grpc.StatusCode.UNIMPLEMENTED, "messages are taken as they are, and by gzip and deflate")
        return handler, b""

    # Stopping

    def stop(self) -> None:
        """Take no more calls, in a way that loses none: those on their way still come in before the caller's answer to a ping."""
        if self.is_lost or self._is_stopping:
            return
        self._is_stopping = True
        self.write(h2.goaway(h2.MAX_STREAM_ID, h2.NO_ERROR) + h2.frame(h2.PING, 0, 0, _GOODBYE))
        self._goodbye = asyncio.get_running_loop().call_later(self.server.patience.goodbye, self._say_goodbye)

    def on_pong(self, content: bytes) -> None:
        """See `Connection`."""
        if content == _GOODBYE:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self._goodbye is None or self.is_lost:
            return
        self._goodbye.cancel()
        self._goodbye = None
        self.write(h2.goaway(self._taken_id, h2.NO_ERROR))
        self.on_stream_over()

    def on_stream_over(self) -> None:
        """See `Connection`."""
        if self._is_stopping and self._goodbye is None and not self.streams and not self.is_lost:
            self._finish("the server is stopping")

    def fail(self, why: str, code: int) -> None:
        """See `Connection`; the calls end at once, and what is still on its way is not looked at."""
        if self.is_lost or self._has_said_all:
            return
        self._why = self._why or why
        self.write(h2.goaway(self._taken_id, code, why.encode("ascii", "replace")))
        self._lose_streams()
        self._finish(why)

    def _finish(self, why: str) -> None:
        """Say that nothing more comes, and let the caller hang up.

        To hang up first, while something of the caller's is not read, would destroy what is on its way to it.
        """
        if self._has_said_all or self.transport.is_closing():
            return
        self._has_said_all = True
        self._why = self._why or why
        if not self.transport.can_write_eof():
            self.close(why)
            return
        self._closer = asyncio.get_running_loop().call_later(self.server.patience.close, self._hang_up)
        # The caller may be gone, and the transport not know it yet.
        with contextlib.suppress(OSError):
            self.transport.write_eof()


_NO_HANDLER: Final[Any] = grpc.unary_unary_rpc_method_handler(lambda *_: None)


class AsyncServer:
    """Answers calls by grpcio's handlers.

    *interceptors*: `grpc.aio.ServerInterceptor`s, the first one outermost. *max_running* calls are worked on at a time, of all
    callers; more are refused as HTTP/2 refuses streams, which callers read as UNAVAILABLE. Above *max_connections*, new ones are
    hung up on.
    """

    def __init__(
        self,
        interceptors: Sequence[Any] = (),
        *,
        bounds: Bounds | None = None,
        patience: Patience | None = None,
        max_running: int = 65_536,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.bounds = bounds or SERVER_BOUNDS
        self.patience = patience or Patience()
        self.max_running = max_running
        self.max_connections = max_connections
        self.num_open = 0
        """Calls that came in and are not over."""
        self.connections: set[_ServerConnection] = set()
        self.running: set[asyncio.Task[None]] = set()
        self.is_stopping = False
        self._generic: list[Any] = []
        self._interceptors = tuple(interceptors)
        self._listeners: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        self._servers: list[asyncio.Server] = []
        self._paths: list[tuple[str, int]] = []
        self._sweeping: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._stopped = asyncio.Event()

    # What grpc.aio.Server has

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        """See grpc.aio."""
        self._generic.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """What generated code calls beside the above; there is nothing more to know."""

    def add_insecure_port(self, address: str) -> int:
        """Listen on `host:port` or `unix:path`; the port, 0 for a path.

        Raises:
            RuntimeError: it cannot be listened on.
        """
        return self._listen(address, None)

    def add_secure_port(self, address: str, context: ssl.SSLContext) -> int:
        """`add_insecure_port`'s twin, by TLS."""
        context.set_alpn_protocols(["h2"])
        return self._listen(address, context)

    async def start(self) -> None:
        """Take calls."""
        loop = asyncio.get_running_loop()

        def make() -> _ServerConnection:
            return _ServerConnection(self, self.bounds)

        for listener, context in self._listeners:
            secure: dict[str, Any] = {} if context is None else {"ssl": context, **_tls_bounds(self.patience)}
            if listener.family == socket.AF_UNIX:
                self._servers.append(await loop.create_unix_server(make, sock=listener, backlog=_BACKLOG, **secure))
            else:
                self._servers.append(await loop.create_server(make, sock=listener, backlog=_BACKLOG, **secure))
        self._listeners.clear()
        self._sweeping = asyncio.create_task(self._sweep())

    async def stop(self, grace: float | None = None) -> None:
        """Take no more calls; those under way have *grace* seconds, and are cancelled then."""
        self.is_stopping = True
        self._stop_listening()
        for connection in list(self.connections):
            connection.stop()
        if grace:
            await self._wait_until_empty(grace)
        await self._end_all()
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped; whether *timeout* was over before."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    # Its own

    def handler_of(self, details: CallDetails) -> Handler | None:
        """The handler of a method."""
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                return handler
        return None

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another call. Handlers may outlast their calls."""
        return max(self.num_open, len(self.running)) >= self.max_running

    def remember(self, connection: _ServerConnection) -> None:
        """It has begun."""
        self.connections.add(connection)
        self._empty.clear()

    def forget(self, connection: _ServerConnection) -> None:
        """It has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def run(self, call: _ServerCall) -> None:
        """Have *call* answered, whatever its handler does."""
        context = Context(call)
        try:
            await self._answer(call, context)
        except _NotParsed:
            call.end(status_block(grpc.StatusCode.INTERNAL, "the request could not be parsed"))
        except MessageError as error:
            call.end(status_block(_code_of(error), str(error)))
        except asyncio.CancelledError:
            call.end(status_block(grpc.StatusCode.CANCELLED, "the call was cancelled"))
            raise
        except Exception:  # whatever it is, the caller learns that it was not the request
            _log.exception("a handler of gRPC calls failed")
            call.end(status_block(grpc.StatusCode.UNKNOWN, "the server met an internal error"))
        finally:
            context.through()

    async def _answer(self, call: _ServerCall, context: Context) -> None:
        try:
            handler = await self._intercepted(call) if self._interceptors else call.handler
            if handler is None:
                call.end(status_block(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
                return
            call.handler = handler
            if handler.response_streaming:
                await self._stream(call, handler, context)
                call.end(context.trailers())
            else:
                await self._single(call, handler, context)
        except grpc.aio.AbortError:
            call.end(context.trailers())

    async def _intercepted(self, call: _ServerCall) -> Handler | None:
        async def innermost(details: Any) -> Handler | None:
            return call.handler if details is call.details else self.handler_of(details)

        continuation: Callable[[Any], Awaitable[Any]] = innermost
        for interceptor in reversed(self._interceptors):
            continuation = _around(interceptor, continuation)
        return await continuation(call.details)

    async def _single(self, call: _ServerCall, handler: Handler, context: Context) -> None:
        if handler.request_streaming:
            answer = await handler.stream_unary(_Requests(call), context)
        else:
            answer = await handler.unary_unary(await _request(call, handler), context)
        if context.code() is not _OK:
            call.end(context.trailers())
            return
        call.answer(handler.response_serializer(answer) if handler.response_serializer else answer, context.trailers())

    async def _stream(self, call: _ServerCall, handler: Handler, context: Context) -> None:
        if handler.request_streaming:
            answers = handler.stream_stream(_Requests(call), context)
        else:
            answers = handler.unary_stream(await _request(call, handler), context)
        if not inspect.isasyncgen(answers) and not hasattr(answers, "__aiter__"):
            # It writes by itself.
            await answers
            return
        serialize = handler.response_serializer
        try:
            async for answer in answers:
                await call.send(serialize(answer) if serialize else answer)
        finally:
            # Iterators that are no generators have nothing to close.
            if hasattr(answers, "aclose"):
                await answers.aclose()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.patience.sweep)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.sweep(now)

    async def _end_all(self) -> None:
        for connection in list(self.connections):
            for stream in list(connection.streams.values()):
                assert isinstance(stream, _ServerCall)
                if stream.unsent:
                    # It hears so from the connection's end: a status would wait behind what it does not take.
                    stream.leave()
                else:
                    stream.refuse(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
            connection.close("the server is stopping")
        if self.running:
            _, left = await asyncio.wait(self.running, timeout=self.patience.close)
            if left:
                _log.warning("%d handlers of gRPC calls go on though their calls are over", len(left))
        await self._wait_until_empty(self.patience.close)
        for connection in list(self.connections):
            connection.transport.abort()
        await self._wait_until_empty(None)
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping

    async def _wait_until_empty(self, seconds: float | None) -> None:
        if self.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()

    def _stop_listening(self) -> None:
        """Once: a path may be another server's the next time."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        listeners, self._listeners = self._listeners, []
        for listener, _ in listeners:
            listener.close()
        paths, self._paths = self._paths, []
        for path, number in paths:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == number:  # noqa: PTH116 (a socket's name, as it was bound)
                    os.unlink(path)  # noqa: PTH108

    def _listen(self, address: str, context: ssl.SSLContext | None) -> int:
        try:
            path, host, port = parse_address(address)
            listener = _unix_socket(path) if path else _tcp_socket(host, port)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"{address} cannot be listened on: {error}") from None
        self._listeners.append((listener, context))
        if path:
            self._paths.append((path, os.stat(path).st_ino))  # noqa: PTH116
            return 0
        return int(listener.getsockname()[1])


async def _request(call: _ServerCall, handler: Handler) -> Any:
    """The one request of a call for one message."""
    message = await call.next()
    if message is None:
        # Its interceptor chose a handler for one message, and its caller sent none.
        raise _NotParsed
    return _parsed(handler, message)


def _tls_bounds(patience: Patience) -> dict[str, float]:
    return {"ssl_handshake_timeout": patience.receive, "ssl_shutdown_timeout": 10 * patience.close}


def _around(interceptor: Any, continuation: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    async def call(details: Any) -> Any:
        return await interceptor.intercept_service(continuation, details)

    return call


def _tcp_socket(host: str, port: int) -> socket.socket:
    family, kind, number, _, place = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind, number)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6 and host == "::":
        # As gRPC does: all addresses, of both kinds.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return _listening(listener, place)


def _unix_socket(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        # What a server that was killed left.
        if stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 (may be abstract or long)
            os.unlink(path)  # noqa: PTH108
    return _listening(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)


def _listening(listener: socket.socket, place: Any) -> socket.socket:
    """*listener* at *place*, now and not when it starts: until somebody listens, another server can bind the same port."""
    try:
        listener.bind(place)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
