"""What both ends of an HTTP/2 connection share: frames in and out, streams, flow control, and an end in order.

A connection owns its streams and both directions' windows. What a stream may not send yet waits in the stream, in order, and
goes out when the other end gives credit. What a stream's owner has not read yet is not credited: a slow reader slows the writer.
"""

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from clients.wire.metadata import MAX_MESSAGE_BYTES
from clients.wire.rpc import frames as h2
from clients.wire.rpc.frames import Frame, FrameReader, ProtocolError
from clients.wire.rpc.headers import MAX_HEADER_BYTES, READ_BEYOND, Field, HeaderReader, HeadersTooLargeError
from clients.wire.rpc.turns import TurnTransport

_ROOM_BYTES: Final = 256 * 1024
"""A stream with more than this still to send has no room for more."""

_CONTROL_SECONDS: Final = 10.0
_LINGER_SECONDS: Final = 5.0
"""Who takes nothing for so long of what is left to write when we hang up is given up: it may have stopped reading."""

_TABLE_BYTES: Final = 4_096
"""Of header compression, where nothing else is said (RFC 9113, 6.5.2)."""

_NO_TABLE: Final = b"\x20"
"""The table has no room from here on (RFC 7541, 6.3)."""

_MAX_SETTINGS: Final = 64
"""In one frame: there are six."""

MESSAGE_COST: Final = 64
"""Bytes that a message takes beside itself while it waits to be read: also empty ones are not for nothing."""

_STREAMS_PER_FRAME: Final = 64
"""Streams that one frame may change before it counts as more than one."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one connection. *max_control_frames* in ten seconds: more is an attack, and ends it.

    Windows have 65,535 bytes or more, and frames 16,384: the other end may send so much before it has read our settings.
    """

    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_streams: int = 4_096
    max_header_bytes: int = MAX_HEADER_BYTES
    max_frame_bytes: int = 1_048_576
    stream_window: int = 4 * 1_048_576
    connection_window: int = 32 * 1_048_576
    max_kept_bytes: int = 512 * 1_048_576
    max_unsent_bytes: int = 512 * 1_048_576
    max_control_frames: int = 20_000


@dataclass(slots=True)
class _Unsent:
    """Of a stream: *content* is a header block or data, of which *start* bytes went out; *is_sent*: all of it."""

    content: bytes
    is_headers: bool
    is_end: bool
    start: int = 0
    is_sent: bool = False


class Stream(ABC):
    """One stream. Its kinds say what becomes of what arrives; all methods belong to the connection's event loop."""

    __slots__ = (
        "_owed",
        "_room",
        "_unread",
        "connection",
        "id",
        "is_ended_here",
        "is_ended_there",
        "is_through",
        "num_unsent",
        "receive_window",
        "send_window",
        "unsent",
    )

    def __init__(self, connection: "Connection", stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.send_window = connection.peer_stream_window
        self.receive_window = connection.bounds.stream_window
        self.unsent: deque[_Unsent] = deque()
        self.num_unsent = 0
        """Bytes of data that wait for credit."""
        self.is_ended_here = False
        """Whether the last thing to send was sent, or waits in `unsent`."""
        self.is_ended_there = False
        self.is_through = False
        """Whether what may still arrive is of no interest."""
        self._room: list[asyncio.Future[None]] = []
        self._owed = 0
        self._unread = 0

    @abstractmethod
    def on_headers(self, fields: list[Field], *, is_end: bool) -> None:
        """A header block arrived, the first or the last."""

    @abstractmethod
    def on_data(self, content: bytes, *, is_end: bool) -> None:
        """Data arrived."""

    @abstractmethod
    def on_reset(self, code: int) -> None:
        """The other end gave the stream up; it is over."""

    def on_too_large(self) -> None:
        """A header block came that is larger than it may be; the stream is given up."""
        self.on_reset(h2.ENHANCE_YOUR_CALM)

    @abstractmethod
    def on_lost(self, why: str) -> None:
        """The connection ended; so did the stream."""

    def keep(self, num_bytes: int) -> None:
        """A message of so many bytes waits for this stream's reader: while that is half a window, its writer gets no credit."""
        self._unread += num_bytes + MESSAGE_COST

    def consumed(self, num_bytes: int) -> None:
        """A message of so many bytes was read."""
        self._unread -= num_bytes + MESSAGE_COST
        self.credit(0)

    def credit(self, num_bytes: int) -> None:
        """Let the other end send *num_bytes* more, and what it is owed, unless too much is unread."""
        self._owed += num_bytes
        half = self.connection.bounds.stream_window // 2
        if not self._owed or self._owed < half // 2 or self._unread >= max(1, half) or self.is_ended_there:
            return
        # A stream that is over gets none (RFC 9113, 5.1).
        if self.id in self.connection.streams:
            self.receive_window += self._owed
            self.connection.write(h2.window_update(self.id, self._owed))
        self._owed = 0

    async def has_room(self) -> None:
        """Wait until little is left to send, or the stream is over."""
        while self.num_unsent > _ROOM_BYTES:
            waiter = asyncio.get_running_loop().create_future()
            self._room.append(waiter)
            await waiter

    def release(self) -> None:
        """Who waits for room looks again."""
        while self._room:
            waiter = self._room.pop()
            if not waiter.done():
                waiter.set_result(None)

    def drop_unsent(self) -> None:
        """Nothing of it will be sent any more; nobody waits for that."""
        self.unsent.clear()
        self.connection.num_unsent -= self.num_unsent
        self.num_unsent = 0
        self.connection.waiting.pop(self.id, None)
        self.release()


class Connection(asyncio.Protocol, ABC):
    """One end. Kinds of it open streams: `open_stream` at the answering end, their own methods at the calling one."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.transport: TurnTransport = None  # type: ignore[assignment]  # there from `connection_made` on
        self.streams: dict[int, Stream] = {}
        self.waiting: dict[int, Stream] = {}
        """Streams with something unsent, the one that had its turn last at the end."""
        self.last_id = 0
        """Of the newest stream there was; the calling end opens all."""
        self.peer_stream_window = h2.DEFAULT_WINDOW
        self.peer_frame_bytes = h2.DEFAULT_FRAME_BYTES
        self.peer_max_streams = h2.MAX_STREAM_ID
        self.send_window = h2.DEFAULT_WINDOW
        self.receive_window = bounds.connection_window
        self.heard_at = time.monotonic()
        self.num_kept = 0
        """Bytes of messages that are not whole, of all streams."""
        self.num_unsent = 0
        """Bytes that wait for credit, of all streams."""
        self.is_lost = False
        self._frames = FrameReader(bounds.max_frame_bytes)
        self._headers = HeaderReader(bounds.max_header_bytes)
        self._block: bytearray | None = None
        self._block_frame = Frame(0, 0, 0, b"")
        self._owed = 0
        self._is_paused = False
        self._is_greeted = False
        self._table_update = b""
        """What the next header block begins with."""
        self._has_given_up_table = False
        self._why = ""
        self._linger: asyncio.TimerHandle | None = None
        self._control_since = 0.0
        self._num_control = 0
        self._has_progressed = False
        """Whether there were data since the last ping."""
        self._has_credit = False
        """Whether what waits may go out once all frames that are there are read."""
        self._on_frame: dict[int, Callable[[Frame], None]] = {
            h2.DATA: self._on_data,
            h2.HEADERS: self._on_headers,
            h2.CONTINUATION: self._on_continuation,
            h2.RST_STREAM: self._on_rst_stream,
            h2.SETTINGS: self._on_settings,
            h2.PING: self._on_ping,
            h2.GOAWAY: self._on_goaway,
            h2.WINDOW_UPDATE: self._on_window_update,
            h2.PUSH_PROMISE: self._on_push_promise,
            h2.PRIORITY: self._on_priority,
        }

    # What the kinds say

    @abstractmethod
    def open_stream(self, stream_id: int, fields: list[Field], *, is_end: bool) -> None:
        """Headers came on a stream that was never open."""

    @property
    def last_taken_id(self) -> int:
        """Of the newest stream that the other end opened."""
        return 0

    def refuse_stream(self, stream_id: int, *, is_end: bool) -> None:
        """Headers came that are larger than they may be, on a stream that was never open."""
        self.open_stream(stream_id, [], is_end=is_end)

    def on_peer_goes(self, last_stream_id: int, code: int) -> None:
        """The other end takes no stream after *last_stream_id*."""

    def on_pong(self, content: bytes) -> None:
        """A ping of ours was answered."""

    def on_settings(self) -> None:
        """The other end's settings came."""

    def on_stream_over(self) -> None:
        """There is one stream less."""

    def on_down(self) -> None:
        """No stream can be opened any more, though some may be open."""

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = cast("TurnTransport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self.heard_at = time.monotonic()
        try:
            self.take(data)
        except ProtocolError as error:
            self.fail(str(error), error.code)

    def take(self, data: bytes) -> None:
        """Frames, or the beginning or rest of them."""
        for one in self._frames.feed(data):
            if self.is_lost:
                return
            if not self._is_greeted:
                self._greet(one)
            if self._block is not None and (one.kind != h2.CONTINUATION or one.stream_id != self._block_frame.stream_id):
                raise ProtocolError("a header block was interrupted")
            handle = self._on_frame.get(one.kind)
            # Kinds that nobody here knows are to be ignored (RFC 9113, 4.1).
            if handle is not None:
                handle(one)
        if self._has_credit:
            self._has_credit = False
            self._share()

    def _greet(self, one: Frame) -> None:
        if one.kind != h2.SETTINGS or one.flags & h2.ACK:
            raise ProtocolError("the first frame is not SETTINGS")
        self._is_greeted = True

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self.is_lost = True
        self._why = self._why or (f"the connection broke: {exc}" if exc else "the connection was closed")
        self.on_down()
        if self._linger is not None:
            self._linger.cancel()
        self._lose_streams()
        # It holds this connection, which would stay until the collector finds both.
        self._on_frame.clear()

    def _lose_streams(self) -> None:
        """All streams are over, and told why."""
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.drop_unsent()
            stream.on_lost(self._why)

    def pause_writing(self) -> None:
        """See asyncio."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """See asyncio."""
        self._is_paused = False
        self._send_all()

    # Sending

    def write(self, data: bytes) -> None:
        """Bytes of whole frames."""
        if not self.is_lost:
            self.transport.write(data)

    def send_headers(self, stream: Stream, block: bytes, *, is_end: bool) -> None:
        """A header block, after all that the stream sent before."""
        stream.is_ended_here = stream.is_ended_here or is_end
        if stream.id not in self.streams:
            return
        if stream.unsent:
            stream.unsent.append(_Unsent(block, is_headers=True, is_end=is_end))
            return
        self.write(self.header_frames(block, stream.id, h2.END_STREAM if is_end else 0))
        if is_end:
            self.settle(stream)

    def header_frames(self, block: bytes, stream_id: int, flags: int) -> bytes:
        """The frames of *block*, which are to be written next."""
        if self._table_update:
            block, self._table_update = self._table_update + block, b""
        return h2.header_frames(block, stream_id, flags, self.peer_frame_bytes)

    def send_data(self, stream: Stream, content: bytes, *, is_end: bool) -> None:
        """Data, as soon as the other end lets it."""
        stream.is_ended_here = stream.is_ended_here or is_end
        if stream.id not in self.streams:
            return
        stream.unsent.append(_Unsent(content, is_headers=False, is_end=is_end))
        self._wait_for_credit(stream, len(content))
        if len(stream.unsent) == 1:
            self._send(stream)

    def can_send_at_once(self, stream: Stream, num_bytes: int) -> bool:
        """Whether data of *num_bytes* fits into one frame and all windows now, and headers are as they were prepared."""
        return not (
            stream.unsent
            or self._table_update
            or self._is_paused
            or num_bytes > self.peer_frame_bytes
            or num_bytes > stream.send_window
            or num_bytes > self.send_window
        )

    def spend(self, stream: Stream, num_bytes: int) -> None:
        """Of both windows, for data that the caller writes itself."""
        stream.send_window -= num_bytes
        self.send_window -= num_bytes
        self._has_progressed = True

    def _wait_for_credit(self, stream: Stream, num_bytes: int) -> None:
        stream.num_unsent += num_bytes
        self.num_unsent += num_bytes

    def _send_all(self) -> None:
        """Each stream that waits, in its turn, also with what needs no credit: a pause held up all of them."""
        for stream in list(self.waiting.values()):
            if self._is_paused:
                break
            self._send(stream)

    def _share(self) -> None:
        """Credit of the connection came after it had none: in turn, or the oldest stream could starve all others."""
        for stream in list(self.waiting.values()):
            if self._is_paused or not self.send_window:
                break
            self._send(stream)

    def _send(self, stream: Stream) -> None:
        """As much of what *stream* has to send as the windows let out."""
        has_sent = False
        # In pieces, after each of which the transport may say that it is enough.
        while not self._is_paused and not self.is_lost and (piece := self._piece(stream)):
            self.write(piece)
            has_sent = True
        if has_sent or not stream.unsent:
            self.waiting.pop(stream.id, None)
        if stream.unsent:
            self.waiting[stream.id] = stream
        elif stream.is_ended_here:
            self.settle(stream)
        if has_sent:
            stream.release()

    def _piece(self, stream: Stream) -> bytes:
        """The next frames of *stream*, of about `_ROOM_BYTES`; empty where no window lets any out."""
        parts: list[bytes] = []
        room = _ROOM_BYTES
        while stream.unsent and room > 0:
            item = stream.unsent[0]
            flags = h2.END_STREAM if item.is_end else 0
            if item.is_headers:
                parts.append(self.header_frames(item.content, stream.id, flags))
            else:
                room -= self._take_data(stream, item, flags, room, parts)
                if not item.is_sent:
                    break
            stream.unsent.popleft()
        return b"".join(parts)

    def _take_data(self, stream: Stream, item: _Unsent, flags: int, room: int, parts: list[bytes]) -> int:
        """Put frames of *item*, of about *room* bytes, into *parts*; how many bytes they carry."""
        size, first = len(item.content), item.start
        while not item.is_sent and item.start - first < room:
            count = max(0, min(size - item.start, stream.send_window, self.send_window, self.peer_frame_bytes))
            if not count and item.start < size:
                break
            stop = item.start + count
            item.is_sent = stop == size
            parts.append(h2.head(h2.DATA, flags if item.is_sent else 0, stream.id, count))
            parts.append(item.content[item.start : stop])
            self.spend(stream, count)
            self._wait_for_credit(stream, -count)
            item.start = stop
        return item.start - first

    def reset(self, stream: Stream, code: int) -> None:
        """Give *stream* up."""
        if self.streams.pop(stream.id, None) is not None:
            self.write(h2.rst_stream(stream.id, code))
            self._over(stream)

    def settle(self, stream: Stream) -> None:
        """*stream* is over once both ends have said all; the other end need not say the rest to one that is through."""
        if not stream.is_ended_here or stream.unsent:
            return
        if not stream.is_ended_there:
            if stream.is_through:
                self.reset(stream, h2.NO_ERROR)
        elif self.streams.pop(stream.id, None) is not None:
            self._over(stream)

    def _over(self, stream: Stream) -> None:
        stream.drop_unsent()
        self.on_stream_over()

    def fail(self, why: str, code: int) -> None:
        """Say what is wrong, and hang up."""
        if self.is_lost:
            return
        self._why = self._why or why
        self.on_down()
        self.write(h2.goaway(self.last_taken_id, code, why.encode("ascii", "replace")))
        self.is_lost = True
        self._lose_streams()
        self._hang_up()

    def abort(self, why: str) -> None:
        """Hang up without a word: the other end does not hear any."""
        self._why = self._why or why
        self.on_down()
        self.is_lost = True
        self.transport.abort()

    def close(self, why: str) -> None:
        """Hang up when all is written, or the other end does not take it."""
        self._why = self._why or why
        self.on_down()
        self._hang_up()

    def _hang_up(self) -> None:
        self.transport.close()
        if self._linger is None:
            self._wait_for_end(-1)

    def _wait_for_end(self, num_gone: int) -> None:
        """Give up who takes nothing more than the *num_gone* bytes that it had taken before."""
        gone = self.transport.num_gone
        if gone <= num_gone:
            self.transport.abort()
        else:
            self._linger = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._wait_for_end, gone)

    # Frames

    def _on_data(self, one: Frame) -> None:
        size = len(one.payload)
        self.receive_window -= size
        if self.receive_window < 0:
            raise ProtocolError("more data than there was credit for", h2.FLOW_CONTROL_ERROR)
        self._credit(size)
        content, is_end = h2.unpadded(h2.DATA, one.flags, one.payload), bool(one.flags & h2.END_STREAM)
        stream = self.streams.get(one.stream_id)
        if content:
            self._has_progressed = True
        elif stream is None or not is_end:
            self._control()
        if stream is None:
            # Of a stream that is over: the other end may not know yet.
            self._check_begun(one.stream_id)
            return
        if stream.is_ended_there:
            raise ProtocolError("data after the end of a stream", h2.STREAM_CLOSED)
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise ProtocolError("more data than the stream had credit for", h2.FLOW_CONTROL_ERROR)
        stream.is_ended_there = is_end
        stream.on_data(content, is_end=is_end)
        if self.num_kept > self.bounds.max_kept_bytes:
            raise ProtocolError("too much of unfinished messages", h2.ENHANCE_YOUR_CALM)
        stream.credit(size)
        if is_end:
            self.settle(stream)

    def _is_begun(self, stream_id: int) -> bool:
        return bool(stream_id & 1) and stream_id <= self.last_id

    def _check_begun(self, stream_id: int) -> None:
        if not self._is_begun(stream_id):
            raise ProtocolError("a frame of a stream that there never was")

    def _credit(self, num_bytes: int) -> None:
        self._owed += num_bytes
        if self._owed >= self.bounds.connection_window // 4:
            self.receive_window += self._owed
            self.write(h2.window_update(0, self._owed))
            self._owed = 0

    def _on_headers(self, one: Frame) -> None:
        if not one.stream_id:
            raise ProtocolError("headers without a stream")
        self._block = bytearray(h2.unpadded(h2.HEADERS, one.flags, one.payload))
        self._block_frame = one
        self._maybe_whole(one)

    def _on_continuation(self, one: Frame) -> None:
        if self._block is None:
            raise ProtocolError("the rest of a header block without its beginning")
        self._block += one.payload
        if not one.payload:
            self._control()
        self._maybe_whole(one)

    def _maybe_whole(self, one: Frame) -> None:
        assert self._block is not None
        if len(self._block) > READ_BEYOND * self.bounds.max_header_bytes:
            raise ProtocolError("a header block larger than it may be", h2.ENHANCE_YOUR_CALM)
        if not one.flags & h2.END_HEADERS:
            return
        first, content = self._block_frame, bytes(self._block)
        self._block = None
        # Also of a stream that is over: the table of the next block depends on it.
        is_end = bool(first.flags & h2.END_STREAM)
        stream = self.streams.get(first.stream_id)
        try:
            fields = self._headers.read(content)
        except HeadersTooLargeError:
            self._on_too_large(first.stream_id, stream, is_end=is_end)
            return
        if stream is None:
            if self._is_begun(first.stream_id):
                # Of a stream that is over: the other end may not know yet.
                self._control()
            else:
                self.open_stream(first.stream_id, fields, is_end=is_end)
            return
        if stream.is_ended_there:
            raise ProtocolError("headers after the end of a stream", h2.STREAM_CLOSED)
        stream.is_ended_there = is_end
        stream.on_headers(fields, is_end=is_end)
        if is_end:
            self.settle(stream)

    def _on_too_large(self, stream_id: int, stream: Stream | None, *, is_end: bool) -> None:
        """The other calls of this connection are not to blame."""
        self._control(READ_BEYOND)
        if stream is not None:
            stream.on_too_large()
            self.reset(stream, h2.ENHANCE_YOUR_CALM)
        elif not self._is_begun(stream_id):
            self.refuse_stream(stream_id, is_end=is_end)

    def _on_rst_stream(self, one: Frame) -> None:
        code = h2.read_u32(one.payload)
        self._check_begun(one.stream_id)
        self._control()
        stream = self.streams.pop(one.stream_id, None)
        if stream is not None:
            stream.on_reset(code)
            self._over(stream)

    def _on_settings(self, one: Frame) -> None:
        if one.stream_id:
            raise ProtocolError("settings of a stream")
        if one.flags & h2.ACK:
            if one.payload:
                raise ProtocolError("settings that say both", h2.FRAME_SIZE_ERROR)
            return
        self._control(1 + len(self.streams) // _STREAMS_PER_FRAME)
        values = h2.read_settings(one.payload)
        if len(values) > _MAX_SETTINGS:
            raise ProtocolError("more settings than there are", h2.ENHANCE_YOUR_CALM)
        window = self.peer_stream_window
        for name, value in values:
            if name == h2.INITIAL_WINDOW_SIZE:
                window = value
            self._set(name, value)
        if window != self.peer_stream_window:
            self._resize(window)
        self.write(h2.frame(h2.SETTINGS, h2.ACK, 0))
        self.on_settings()
        self._has_credit = True

    def _set(self, name: int, value: int) -> None:
        if name == h2.INITIAL_WINDOW_SIZE:
            if value > h2.MAX_WINDOW:
                raise ProtocolError("a window larger than there are", h2.FLOW_CONTROL_ERROR)
        elif name == h2.HEADER_TABLE_SIZE:
            if value < _TABLE_BYTES and not self._has_given_up_table:
                # It wants to hear that its table is smaller, though nothing of ours is in it (RFC 7541, 4.2).
                self._table_update, self._has_given_up_table = _NO_TABLE, True
        elif name == h2.ENABLE_PUSH:
            if value > 1:
                raise ProtocolError("a setting that is neither yes nor no")
        elif name == h2.MAX_FRAME_SIZE:
            if not h2.DEFAULT_FRAME_BYTES <= value < 2**24:
                raise ProtocolError("a frame size that there is not")
            self.peer_frame_bytes = value
        elif name == h2.MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value

    def _resize(self, window: int) -> None:
        """Also of streams that are open, whose windows may become negative (RFC 9113, 6.9.2)."""
        change = window - self.peer_stream_window
        self.peer_stream_window = window
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > h2.MAX_WINDOW:
                raise ProtocolError("a window larger than there are", h2.FLOW_CONTROL_ERROR)

    def _on_ping(self, one: Frame) -> None:
        if one.stream_id:
            raise ProtocolError("a ping of a stream")
        if len(one.payload) != 8:
            raise ProtocolError("a ping of a wrong size", h2.FRAME_SIZE_ERROR)
        if one.flags & h2.ACK:
            self.on_pong(one.payload)
            return
        # Some clients measure with a ping for each answer or so.
        if self._has_progressed:
            self._has_progressed = False
        else:
            self._control()
        self.write(h2.frame(h2.PING, h2.ACK, 0, one.payload))

    def _on_goaway(self, one: Frame) -> None:
        if one.stream_id:
            raise ProtocolError("a stream's goodbye")
        self._control()
        last, code, _ = h2.read_goaway(one.payload)
        self.on_peer_goes(last, code)

    def _on_window_update(self, one: Frame) -> None:
        credit = h2.read_u32(one.payload) & h2.MAX_WINDOW
        if not credit:
            raise ProtocolError("credit of nothing")
        if not one.stream_id:
            was_spent = not self.send_window
            self.send_window += credit
            if self.send_window > h2.MAX_WINDOW:
                raise ProtocolError("more credit than there is", h2.FLOW_CONTROL_ERROR)
            if was_spent:
                self._has_credit = True
            return
        stream = self.streams.get(one.stream_id)
        if stream is not None:
            stream.send_window += credit
            if stream.send_window > h2.MAX_WINDOW:
                raise ProtocolError("more credit than there is", h2.FLOW_CONTROL_ERROR)
            if stream.unsent:
                self._send(stream)
        else:
            self._check_begun(one.stream_id)

    def _on_push_promise(self, _: Frame) -> None:
        raise ProtocolError("nobody asked for a push")

    def _on_priority(self, one: Frame) -> None:
        if not one.stream_id:
            raise ProtocolError("a priority without a stream")
        if len(one.payload) != 5:
            raise ProtocolError("a priority of a wrong size", h2.FRAME_SIZE_ERROR)
        self._control()

    def _control(self, count: int = 1) -> None:
        """Another frame that costs its sender nothing, and us as much as *count*. While it takes no answers, they pile up."""
        if self.heard_at - self._control_since > _CONTROL_SECONDS and not self._is_paused:
            self._control_since, self._num_control = self.heard_at, 0
        self._num_control += count
        if self._num_control > self.bounds.max_control_frames:
            raise ProtocolError("too many frames that say nothing", h2.ENHANCE_YOUR_CALM)


def peer_name(transport: asyncio.BaseTransport) -> str:
    """Whom a transport leads to, as gRPC writes it: `ipv4:1.2.3.4:5678`, `ipv6:[::1]:5678` or `unix:`."""
    address: Any = transport.get_extra_info("peername")
    if isinstance(address, tuple) and len(address) >= 2:
        return f"ipv6:[{address[0]}]:{address[1]}" if ":" in str(address[0]) else f"ipv4:{address[0]}:{address[1]}"
    return "unix:"
