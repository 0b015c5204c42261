"""Header blocks, and what gRPC says in them (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).

What we send is literals that enter no table: it costs some sixty bytes a message, and either end can prepare it once.
"""

import base64
import binascii
import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import grpc
from hpack import Decoder, HPACKError

from clients.wire.rpc.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ProtocolError

Field = tuple[str, str]


class Metadatum(NamedTuple):
    """One key and its value, bytes where the key ends in "-bin"."""

    key: str
    value: str | bytes


Metadata = tuple[Metadatum, ...]

MAX_HEADER_BYTES: Final = 32_768
"""Of one block, as it comes, and counted as RFC 9113, 6.5.2 counts a header list."""

CONTENT_TYPE: Final = "application/grpc"
STATUS: Final = "grpc-status"
MESSAGE: Final = "grpc-message"
TIMEOUT: Final = "grpc-timeout"
ENCODING: Final = "grpc-encoding"

CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

HTTP_CODES: Final[dict[str, grpc.StatusCode]] = {
    "400": grpc.StatusCode.INTERNAL,
    "401": grpc.StatusCode.UNAUTHENTICATED,
    "403": grpc.StatusCode.PERMISSION_DENIED,
    "404": grpc.StatusCode.UNIMPLEMENTED,
    "429": grpc.StatusCode.UNAVAILABLE,
    "502": grpc.StatusCode.UNAVAILABLE,
    "503": grpc.StatusCode.UNAVAILABLE,
    "504": grpc.StatusCode.UNAVAILABLE,
}
"""What an answer without gRPC's own status means (doc/http-grpc-status-mapping.md); all others are UNKNOWN."""

_MAX_TIMEOUT: Final = 99_999_999
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_RESERVED: Final = frozenset(("te", "content-type", "host", "connection"))
_MOST_KEPT: Final = 64


def literal(name: str, value: str) -> bytes:
    """A header field that enters no table (RFC 7541, 6.2.2)."""
    return b"\0" + _string(name.encode("ascii")) + _string(value.encode("latin-1"))


def block(fields: Iterable[Field]) -> bytes:
    """*fields* as a header block."""
    return b"".join(literal(name, value) for name, value in fields)


def _string(content: bytes) -> bytes:
    size = len(content)
    if size < 127:
        return bytes((size,)) + content
    # RFC 7541, 5.1: what a prefix of seven bits cannot hold follows in groups of seven, the lowest first.
    parts, rest = bytearray((127,)), size - 127
    while rest >= 128:
        parts.append(rest & 0x7F | 0x80)
        rest >>= 7
    parts.append(rest)
    return bytes(parts) + content


class HeaderReader:
    """Decodes one connection's blocks in their order. A block seen since its table last changed is not read again."""

    def __init__(self, max_bytes: int = MAX_HEADER_BYTES) -> None:
        self._decoder = Decoder(max_header_list_size=max_bytes)
        self._known: dict[bytes, list[Field]] = {}

    def read(self, content: bytes) -> list[Field]:
        """The fields of a block.

        Raises:
            ProtocolError: it is none, or its fields are too large.
        """
        fields = plain_fields(content) or self._known.get(content)
        if fields is not None:
            return fields
        table = self._decoder.header_table
        newest, size = _newest(table.dynamic_entries), table.maxsize
        try:
            fields = [(str(name), str(value)) for name, value in self._decoder.decode(content)]
        except HPACKError as error:
            too_large = type(error).__name__ == "OversizedHeaderListError"
            raise ProtocolError(
                "a header block that cannot be read", ENHANCE_YOUR_CALM if too_large else COMPRESSION_ERROR
            ) from None
        if _newest(table.dynamic_entries) is not newest or table.maxsize != size or len(self._known) >= _MOST_KEPT:
            self._known.clear()
        else:
            self._known[content] = fields
        return fields


def _newest(entries: Sequence[object]) -> object:
    return entries[0] if entries else None


def plain_fields(content: bytes) -> list[Field] | None:
    """The fields of a block like ours: literals of less than 127 bytes that enter no table; None where it is another kind."""
    fields: list[Field] = []
    place, end = 0, len(content)
    try:
        while place < end:
            if content[place]:
                return None
            start = place + 2
            middle = start + content[place + 1]
            place = middle + 1 + content[middle]
            if content[start - 1] >= 127 or content[middle] >= 127 or place > end:
                return None
            fields.append((content[start:middle].decode("ascii"), content[middle + 1 : place].decode("ascii")))
    except (IndexError, UnicodeDecodeError):
        return None
    return fields


def timeout_field(seconds: float) -> str:
    """A grpc-timeout of so many *seconds*, rounded up, in the finest unit that holds it; at least a nanosecond."""
    for unit, size in (("n", 1e9), ("u", 1e6), ("m", 1e3), ("S", 1.0)):
        count = math.ceil(seconds * size)
        if count <= _MAX_TIMEOUT:
            return f"{max(count, 1)}{unit}"
    return f"{min(math.ceil(seconds / 3600), _MAX_TIMEOUT)}H"


def read_timeout(value: str) -> float | None:
    """Seconds; None where it is none: at most eight digits and a unit."""
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * unit


def quoted(message: str) -> str:
    """*message* as a grpc-message: printable ASCII as it is, all else as %XX of UTF-8."""
    if message.isascii() and message.isprintable() and "%" not in message:
        return message
    content = message.encode("utf-8", "replace")
    return "".join(chr(byte) if 32 <= byte < 127 and byte != 37 else f"%{byte:02X}" for byte in content)


def unquoted(value: str) -> str:
    """A grpc-message as text; what is wrong in it stays as it is."""
    return unquote_to_bytes(value).decode("utf-8", "replace") if "%" in value else value


def metadata_fields(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[Field]:
    """*metadata* as header fields: the values of names that end in "-bin" as base64.

    Raises:
        ValueError: a name or a value cannot be a header field.
    """
    fields: list[Field] = []
    for name, value in metadata or ():
        text = name.lower()
        if not text.isascii() or not text.isprintable() or not text or text.startswith((":", "grpc-")) or " " in text:
            raise ValueError("a metadata key is lower-case ASCII, and none of gRPC's own")
        if text.endswith("-bin"):
            content = value if isinstance(value, bytes) else value.encode()
            fields.append((text, base64.b64encode(content).rstrip(b"=").decode("ascii")))
            continue
        plain = value.decode("latin-1") if isinstance(value, bytes) else value
        if not plain.isascii() or not (plain.isprintable() or not plain):
            raise ValueError("a metadata value is printable ASCII")
        fields.append((text, plain))
    return fields


def read_metadata(fields: Iterable[Field]) -> Metadata:
    """What of *fields* is the application's."""
    return tuple(
        Metadatum(name, _binary(value) if name.endswith("-bin") else value)
        for name, value in fields
        if name[:1] != ":" and name not in _RESERVED and not name.startswith("grpc-")
    )


def _binary(value: str) -> bytes:
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4))
    except (binascii.Error, ValueError):
        return b""
