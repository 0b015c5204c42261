"""gRPC's messages within a stream's data: a byte that says whether it is compressed, its length in four, and itself."""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

HEAD: Final = struct.Struct(">BI")

"""Of parts of messages: each that is kept by itself takes some fifty bytes more than it holds."""


class Packed(bytes):
    """A message that is still compressed."""

    __slots__ = ()


class MessageError(Exception):
    """What came is no message that can be taken. *is_too_large*: it is larger than it may be."""

    def __init__(self, message: str, *, is_too_large: bool = False) -> None:
        super().__init__(message)
        self.is_too_large = is_too_large


def prefixed(message: bytes) -> bytes:
    """*message* as it travels."""
    return HEAD.pack(0, len(message)) + message


def inflated(message: bytes, encoding: str, max_bytes: int) -> bytes:
    """A compressed *message* as it was, of at most *max_bytes*.

    Raises:
        MessageError: it is not compressed as it says, or too large.
    """
    # 16 and 32 have zlib expect gzip's head, and either its own or gzip's.
    wbits = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}.get(encoding)
    if wbits is None:
        raise MessageError(f"a message is compressed, and its encoding is {encoding[:32] or 'not told'}")
    unpacker = zlib.decompressobj(wbits)
    try:
        content = unpacker.decompress(message, max_bytes + 1)
    except zlib.error:
        raise MessageError(f"a message is not {encoding}") from None
    if len(content) > max_bytes:
        raise MessageError(f"a message is larger than {max_bytes} bytes", is_too_large=True)
    if not unpacker.eof or unpacker.unused_data:
        raise MessageError(f"a message is not whole {encoding}")
    return content


class MessageReader:
    """Cuts a stream's data into messages of at most *max_bytes*; *encoding* is that of compressed ones."""

    __slots__ = ("_encoding", "_kept", "_max_bytes", "_missing", "num_kept")

    def __init__(self, max_bytes: int, encoding: str = "") -> None:
        self._max_bytes = max_bytes
        self._encoding = encoding
        self._kept = bytearray()
        """Of a message that is not whole. It grows in place, and holds no more than what came, however small the pieces."""
        self._missing = HEAD.size
        """Bytes until there is a head to read or a whole message."""
        self.num_kept = 0
        """Bytes of a message that is not whole."""

    @property
    def encoding(self) -> str:
        """Of compressed messages; "" where none was told."""
        return self._encoding

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole with *data*.

        Raises:
            MessageError: see there.
        """
        for message in self.cut(data):
            yield self.unpacked(message)

    def unpacked(self, message: bytes) -> bytes:
        """One of `cut`'s as it was before it was compressed.

        Raises:
            MessageError: it is not compressed as it says, or too large.
        """
        return inflated(message, self._encoding, self._max_bytes) if isinstance(message, Packed) else message

    def cut(self, data: bytes) -> list[bytes]:
        """The messages that are whole with *data*, compressed ones as `Packed`: they may become a thousand times larger.

        Raises:
            MessageError: one is too large, or what came is none.
        """
        content: bytes | memoryview = data
        if self._kept:
            self._kept += data
            self.num_kept = len(self._kept)
            if self.num_kept < self._missing:
                return []
            # Not a slice of it, which would be a copy more.
            content, self._kept = memoryview(self._kept), bytearray()
        start, end = 0, len(content)
        messages: list[bytes] = []
        self._missing = HEAD.size
        while end - start >= HEAD.size:
            flag, size = HEAD.unpack_from(content, start)
            if flag > 1:
                raise MessageError("what came is no gRPC message")
            if size > self._max_bytes:
                raise MessageError(f"a message is larger than {self._max_bytes} bytes", is_too_large=True)
            stop = start + HEAD.size + size
            if stop > end:
                self._missing = HEAD.size + size
                break
            message = bytes(content[start + HEAD.size : stop])
            messages.append(Packed(message) if flag else message)
            start = stop
        if start < end:
            self._kept += content[start:]
        self.num_kept = end - start
        return messages
