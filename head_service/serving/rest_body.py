"""A request's body, bounded while it arrives, whether it comes plain or compressed with gzip."""

import zlib
from collections.abc import AsyncIterator
from typing import Final

GZIP: Final = 16 + zlib.MAX_WBITS
"""zlib's number for "a gzip header and nothing else"."""


class BodyError(Exception):
    """The body cannot be had; *status* is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


async def read_body(sent: AsyncIterator[bytes], encoding: str, max_bytes: int) -> bytes:
    """All of *sent*, decompressed as *encoding* (the header Content-Encoding) says.

    The reference takes whatever names gzip there, and anything else for plain.

    Raises:
        BodyError: 413: longer than *max_bytes*, before or after decompression; 415: another encoding; 400: broken gzip.
    """
    words = encoding.lower()
    if "gzip" in words:
        return await _gunzipped(sent, max_bytes)
    if words.strip() not in {"", "identity"}:
        raise BodyError(415, "only gzip is understood as a content encoding")
    body = bytearray()
    async for part in sent:
        body += part
        _check(len(body), max_bytes)
    return bytes(body)


async def _gunzipped(sent: AsyncIterator[bytes], max_bytes: int) -> bytes:
    unpacker, body = zlib.decompressobj(GZIP), bytearray()
    num_sent = 0
    try:
        async for part in sent:
            num_sent += len(part)
            _check(num_sent, max_bytes)
            # One byte more than there is room for shows that there is more.
            body += unpacker.decompress(part, max_bytes + 1 - len(body))
            _check(len(body), max_bytes)
    except zlib.error:
        raise BodyError(400, "the body is not gzip although its content encoding says so") from None
    if num_sent and not unpacker.eof:
        raise BodyError(400, "the gzip body ends early")
    return bytes(body)


def _check(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise BodyError(413, f"the body is longer than {max_bytes} bytes")
