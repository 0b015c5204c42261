"""HTTP/2 frames: bytes to frames and back. Numbers and names are those of RFC 9113."""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB
INADEQUATE_SECURITY: Final = 0xC

DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_BYTES: Final = 16_384
MAX_WINDOW: Final = 2**31 - 1
MAX_STREAM_ID: Final = 2**31 - 1

_HEAD: Final = struct.Struct(">HBBBI")
_U32: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")
_TWO_U32: Final = struct.Struct(">II")


class ProtocolError(Exception):
    """The other end broke the protocol; *code* is HTTP/2's for it. The connection is of no more use."""

    def __init__(self, message: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


class Frame(NamedTuple):
    """One frame, its payload as it came."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame's bytes."""
    return head(kind, flags, stream_id, len(payload)) + payload


def head(kind: int, flags: int, stream_id: int, num_bytes: int) -> bytes:
    """A frame's first nine bytes, before *num_bytes* of payload."""
    return _HEAD.pack(num_bytes >> 8, num_bytes & 0xFF, kind, flags, stream_id)


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values))


def window_update(stream_id: int, credit: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, _U32.pack(credit))


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, _U32.pack(code))


def goaway(last_stream_id: int, code: int, why: bytes = b"") -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, _TWO_U32.pack(last_stream_id, code) + why)


def header_frames(block: bytes, stream_id: int, flags: int, max_bytes: int) -> bytes:
    """A header block in a HEADERS frame and as many CONTINUATIONs as it takes."""
    if len(block) <= max_bytes:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [frame(HEADERS, flags, stream_id, block[:max_bytes])]
    for start in range(max_bytes, len(block), max_bytes):
        last = END_HEADERS if start + max_bytes >= len(block) else 0
        parts.append(frame(CONTINUATION, last, stream_id, block[start : start + max_bytes]))
    return b"".join(parts)


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Names and values.

    Raises:
        ProtocolError: it is not made of settings.
    """
    if len(payload) % _SETTING.size:
        raise ProtocolError("SETTINGS of a wrong size", FRAME_SIZE_ERROR)
    return list(_SETTING.iter_unpack(payload))


def read_u32(payload: bytes) -> int:
    """The number of a WINDOW_UPDATE (without its reserved bit) or RST_STREAM.

    Raises:
        ProtocolError: it is of another size.
    """
    if len(payload) != _U32.size:
        raise ProtocolError("a frame of a wrong size", FRAME_SIZE_ERROR)
    (value,) = _U32.unpack(payload)
    return int(value)


def read_goaway(payload: bytes) -> tuple[int, int, bytes]:
    """(last stream, code, why).

    Raises:
        ProtocolError: it is too short.
    """
    if len(payload) < _TWO_U32.size:
        raise ProtocolError("GOAWAY of a wrong size", FRAME_SIZE_ERROR)
    last, code = _TWO_U32.unpack_from(payload)
    return last & MAX_STREAM_ID, code, payload[_TWO_U32.size :]


def unpadded(kind: int, flags: int, payload: bytes) -> bytes:
    """What a DATA or HEADERS frame holds beside padding and priority.

    Raises:
        ProtocolError: there is more padding than payload.
    """
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise ProtocolError("padding without its length", FRAME_SIZE_ERROR)
        start, end = 1, end - payload[0]
    if kind == HEADERS and flags & PRIORITISED:
        start += 5
    if start > len(payload):
        raise ProtocolError("a frame shorter than its flags say", FRAME_SIZE_ERROR)
    if start > end:
        raise ProtocolError("more padding than payload")
    return payload[start:end] if start or end < len(payload) else payload


class FrameReader:
    """Cuts what arrives into frames of at most *max_bytes*."""

    __slots__ = ("_kept", "_max_bytes", "_missing", "num_cut")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept = bytearray()
        """Of a frame that is not whole. It grows in place: a frame that comes byte by byte is not copied for each."""
        self._missing = HEAD_BYTES
        """Bytes until there is a head to read or a whole frame."""
        self.num_cut = 0
        """Frames that came whole so far."""

    @property
    def is_within_frame(self) -> bool:
        """Whether the rest of a frame is still to come."""
        return bool(self._kept)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole with *data*.

        Raises:
            ProtocolError: a frame is larger than it may be.
        """
        content: bytes | memoryview = data
        if self._kept:
            self._kept += data
            if len(self._kept) < self._missing:
                return
            # Not a slice of it, which would be a copy more.
            content, self._kept = memoryview(self._kept), bytearray()
        start, end = 0, len(content)
        self._missing = HEAD_BYTES
        while end - start >= HEAD_BYTES:
            high, low, kind, flags, stream_id = _HEAD.unpack_from(content, start)
            size = high << 8 | low
            if size > self._max_bytes:
                raise ProtocolError("a frame larger than it may be", FRAME_SIZE_ERROR)
            stop = start + HEAD_BYTES + size
            if stop > end:
                self._missing = HEAD_BYTES + size
                break
            payload = bytes(content[start + HEAD_BYTES : stop])
            start = stop
            self.num_cut += 1
            yield Frame(kind, flags, stream_id & MAX_STREAM_ID, payload)
        if start < end:
            self._kept += content[start:]
