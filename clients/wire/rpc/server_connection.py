"""One caller's connection: its calls begin here, and it ends when its caller takes too long or too much."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from clients.wire.rpc import frames as h2
from clients.wire.rpc.connection import Bounds, Connection, Stream, peer_name
from clients.wire.rpc.headers import ENCODING, TIMEOUT, Field, block, is_grpc, read_metadata, read_timeout
from clients.wire.rpc.messages import MessageReader
from clients.wire.rpc.server_call import CallDetails, Handler, ServerCall, status_block
from clients.wire.rpc.turns import TurnTransport

if TYPE_CHECKING:
    from clients.wire.rpc.server import AsyncServer

_log = logging.getLogger(__name__)

_GOODBYE: Final = b"trunkbye"
_MAX_BLIND_BYTES: Final = 4 * 1_048_576
"""What is written to a caller that does not read, beside messages: more is an attack."""
_PACKINGS: Final = frozenset(("identity", "deflate", "gzip"))
_UNSUPPORTED_BLOCK: Final = block(((":status", "415"),))
_TOO_LARGE_BLOCK: Final = status_block(grpc.StatusCode.RESOURCE_EXHAUSTED, "the metadata are larger than they may be")
_NO_HANDLER: Final[Any] = grpc.unary_unary_rpc_method_handler(lambda *_: None)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    A connection that begins, a frame and a header block arrive within *receive*, or the connection ends; a large frame that
    still comes has ten times as long. So has the request of a call for one message, as long as parts of it come within
    *receive*. A caller that reads nothing of what is written to it is hung up on after *send*. When the server stops, callers
    have *goodbye* to say that they know, and *close* to hang up. It is looked for all that every *sweep*.
    """

    receive: float = 30.0
    send: float = 60.0
    goodbye: float = 1.0
    close: float = 1.0
    sweep: float = 5.0


class ServerConnection(Connection):
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
        self._num_gone = 0
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
        self._turns = TurnTransport(transport, self.streams)
        super().connection_made(self._turns)
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
        # Before a request is whole nobody has asked for a key, and each counts as a call that is open.
        for stream in list(self.streams.values()):
            if isinstance(stream, ServerCall) and stream.is_late(now, patience.receive):
                stream.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "the request took too long")
        for stream in list(self.waiting.values()):
            if isinstance(stream, ServerCall) and stream.is_left_lying(now, patience.send):
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
        has_more = self._is_paused or self._turns.is_waiting
        before, self._num_gone = self._num_gone, self._turns.num_gone
        if not has_more or self._num_gone > before:
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
        if not self._is_taken(stream_id):
            return
        found = dict(fields)
        path = found.get(":path", "")
        if found.get(":method") != "POST" or not path or not is_grpc(found.get("content-type", "")):
            self._control()
            head = self.header_frames(_UNSUPPORTED_BLOCK, stream_id, h2.END_STREAM)
            self.write(head + h2.rst_stream(stream_id, h2.NO_ERROR))
            return
        self._open_call(stream_id, path, found, fields, is_end=is_end)

    def refuse_stream(self, stream_id: int, *, is_end: bool) -> None:
        """See `Connection`."""
        if self._is_taken(stream_id):
            self._begin(stream_id, CallDetails("", ()), _NO_HANDLER, is_end=is_end).end(_TOO_LARGE_BLOCK)

    def _is_taken(self, stream_id: int) -> bool:
        """Whether another call may begin, which is told otherwise."""
        if not stream_id & 1:
            raise h2.ProtocolError("a client's streams have odd numbers")
        self.last_id = stream_id
        # A caller that was told which calls were the last has none of these counted.
        if not (self._is_stopping and self._goodbye is None):
            self._taken_id = stream_id
            if len(self.streams) < self.bounds.max_streams and not self.server.is_full:
                return True
        self._control()
        self.write(h2.rst_stream(stream_id, h2.REFUSED_STREAM))
        return False

    def _begin(self, stream_id: int, details: CallDetails, handler: Handler, *, is_end: bool) -> ServerCall:
        call = ServerCall(self, stream_id, details, handler)
        self.server.num_open += 1
        call.is_ended_there = is_end
        self.streams[stream_id] = call
        return call

    def _open_call(self, stream_id: int, path: str, found: Mapping[str, str], fields: list[Field], *, is_end: bool) -> None:
        details = CallDetails(path, read_metadata(fields))
        handler, why = self._handler_of(details, found.get(ENCODING, "identity"))
        call = self._begin(stream_id, details, handler or _NO_HANDLER, is_end=is_end)
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
