"""Header blocks, and what gRPC says in them (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).

What we send is literals that enter no table: it costs some sixty bytes a message, and either end can prepare it once.
"""

import base64
import binascii
import math
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import grpc
from hpack import Decoder, HPACKError, OversizedHeaderListError

from clients.wire.rpc.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, PROTOCOL_ERROR, ProtocolError

Field = tuple[str, str]


class Metadatum(NamedTuple):
    """One key and its value, bytes where the key ends in "-bin"."""

    key: str
    value: str | bytes


Metadata = tuple[Metadatum, ...]

MAX_HEADER_BYTES: Final = 32_768
"""Of one block's fields, as RFC 9113, 6.5.2 counts a header list."""

READ_BEYOND: Final = 4
"""Blocks of so many times as much are read all the same, and only their calls refused: the table of the next depends on them."""

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
_RESERVED: Final = frozenset(
    ("te", "content-type", "host", "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
)
_KEY: Final = re.compile(r"[0-9a-z_.\-]+")
_TIMEOUT_BEGINS: Final = b"\0" + bytes((len(TIMEOUT),)) + TIMEOUT.encode()
_NAME: Final = re.compile(r":?[\x21-\x39\x3b-\x40\x5b-\x7e]+")
_USUAL: Final = frozenset(
    (
        ":method",
        ":scheme",
        ":path",
        ":authority",
        ":status",
        "te",
        "content-type",
        "user-agent",
        "grpc-accept-encoding",
        "accept-encoding",
        ENCODING,
        TIMEOUT,
        STATUS,
        MESSAGE,
    )
)
_MOST_KEPT: Final = 64
_MOST_KEPT_BYTES: Final = 1_024
"""Of one block that is not read again: a larger one is not worth its memory."""

_ENTRY_BYTES: Final = 32
"""What a field counts beside its name and value (RFC 9113, 6.5.2)."""


def is_grpc(content_type: str) -> bool:
    """Whether the content is gRPC's: `application/grpc`, also with a `+` or `;` after it, but not grpc-web."""
    return content_type.startswith(CONTENT_TYPE) and content_type[len(CONTENT_TYPE) :][:1] in {"", "+", ";"}


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


class HeadersTooLargeError(Exception):
    """A block was read, and its fields are larger than they may be."""


class HeaderReader:
    """Decodes one connection's blocks in their order.

    A block seen since its table last changed is not read again, nor is what the calls of a method have in common. The fields may
    be those that are remembered: they are for reading only.

    A value is octets to HTTP/2, each of which is a character here (ISO 8859-1), as `literal` writes them.
    """

    def __init__(self, max_bytes: int = MAX_HEADER_BYTES) -> None:
        self._max_bytes = max_bytes
        self._decoder = Decoder(max_header_list_size=READ_BEYOND * max_bytes)
        self._known: dict[bytes, list[Field]] = {}
        self._plain: dict[bytes, list[Field]] = {}

    def read(self, content: bytes) -> list[Field]:
        """The fields of a block.

        Raises:
            HeadersTooLargeError: its fields are too large; the next block can be read.
            ProtocolError: it is none, its fields are much too large, or they are none that HTTP has.
        """
        fields = self._plain_fields(content)
        if fields:
            # A literal takes three bytes beside its name and value.
            if len(content) + (_ENTRY_BYTES - 3) * len(fields) > self._max_bytes:
                raise HeadersTooLargeError
            return fields
        fields = self._known.get(content)
        return self._decoded(content) if fields is None else fields

    def _plain_fields(self, content: bytes) -> list[Field] | None:
        """`plain_fields`, which is asked only once for what calls have in common: all that stands before their timeouts."""
        # In a plain block a zero begins a field, or is a value's length, and then another follows: this is no field's middle.
        place = content.find(_TIMEOUT_BEGINS)
        head = content[:place] if place > 0 else content
        fields = self._plain.get(head)
        if fields is None:
            fields = plain_fields(head)
            if fields is None:
                return None
            if len(head) <= _MOST_KEPT_BYTES:
                if len(self._plain) >= _MOST_KEPT:
                    self._plain.clear()
                self._plain[head] = fields
        if place <= 0:
            return fields
        rest = plain_fields(content[place:])
        return None if rest is None else fields + rest

    def _decoded(self, content: bytes) -> list[Field]:
        table = self._decoder.header_table
        newest, num_entries, size = _newest(table.dynamic_entries), len(table.dynamic_entries), table.maxsize
        try:
            found = self._decoder.decode(content, raw=True)
        except OversizedHeaderListError:
            raise ProtocolError("a header list larger than it may be", ENHANCE_YOUR_CALM) from None
        except HPACKError:
            raise ProtocolError("a header block that cannot be read", COMPRESSION_ERROR) from None
        fields = [(_text(name), _text(value)) for name, value in found]
        if not are_well_formed(fields):
            raise ProtocolError("a header field that there is not", PROTOCOL_ERROR)
        # New entries come first and old ones leave last: with these three the same, so is the table.
        is_same = _newest(table.dynamic_entries) is newest and len(table.dynamic_entries) == num_entries and table.maxsize == size
        if not is_same or len(self._known) >= _MOST_KEPT:
            self._known.clear()
        if sum(len(name) + len(value) + _ENTRY_BYTES for name, value in fields) > self._max_bytes:
            raise HeadersTooLargeError
        if is_same and len(content) <= _MOST_KEPT_BYTES:
            self._known[content] = fields
        return fields


def _newest(entries: Sequence[object]) -> object:
    return entries[0] if entries else None


def _text(octets: bytes | str) -> str:
    return octets if isinstance(octets, str) else octets.decode("latin-1")


def are_well_formed(fields: Iterable[Field]) -> bool:
    """Whether names and values have only what they may (RFC 9113, 8.2.1): no capitals, no lines, no end of a string."""
    return all(
        (name in _USUAL or _NAME.fullmatch(name)) and not ("\n" in value or "\r" in value or "\0" in value)
        for name, value in fields
    )


def plain_fields(content: bytes) -> list[Field] | None:
    """The fields of a block like ours: printable literals of less than 127 bytes that enter no table; None of another kind."""
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
            name, value = content[start:middle].decode("ascii"), content[middle + 1 : place].decode("ascii")
            if not value.isprintable() or not (name in _USUAL or _NAME.fullmatch(name)):
                return None
            fields.append((name, value))
    except (IndexError, UnicodeDecodeError):
        return None
    return fields


def timeout_field(seconds: float) -> str:
    """A grpc-timeout of so many *seconds*, rounded up, in the finest unit that holds it: from a nanosecond to all hours."""
    for unit, size in (("n", 1e9), ("u", 1e6), ("m", 1e3), ("S", 1.0), ("M", 1 / 60), ("H", 1 / 3600)):
        if seconds * size <= _MAX_TIMEOUT:
            return f"{max(math.ceil(seconds * size), 1)}{unit}"
    return f"{_MAX_TIMEOUT}H"


def read_timeout(value: str) -> float | None:
    """Seconds; None where it is none: at most eight digits and a unit."""
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * unit


def quoted(message: str) -> str:
    """*message* as a grpc-message: printable ASCII as it is, all else as %XX of UTF-8."""
    if message.isascii() and message.isprintable() and "%" not in message and message.strip(" ") == message:
        return message
    content = message.encode("utf-8", "replace")
    # A field's value neither begins nor ends with a space (RFC 9113, 8.2.1).
    first, last = len(content) - len(content.lstrip(b" ")), len(content.rstrip(b" "))
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte != 37 and first <= place < last else f"%{byte:02X}"
        for place, byte in enumerate(content)
    )


def unquoted(value: str) -> str:
    """A grpc-message as text; what is wrong in it stays as it is."""
    if "%" not in value and value.isascii():
        return value
    # Where UTF-8 came as it is, each octet of it is a character here.
    return unquote_to_bytes(value.encode("latin-1", "replace")).decode("utf-8", "replace")


def metadata_fields(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[Field]:
    """*metadata* as header fields: the values of names that end in "-bin" as base64.

    Raises:
        ValueError: a name or a value cannot be a header field.
    """
    fields: list[Field] = []
    for name, value in metadata or ():
        text = name.lower()
        if not _KEY.fullmatch(text) or text in _RESERVED or text.startswith("grpc-"):
            raise ValueError("a metadata key is of 0-9 a-z _ - . and none of gRPC's or HTTP's own")
        if text.endswith("-bin"):
            content = value if isinstance(value, bytes) else value.encode()
            fields.append((text, base64.b64encode(content).rstrip(b"=").decode("ascii")))
            continue
        plain = value.decode("latin-1") if isinstance(value, bytes) else value
        if not plain.isascii() or not (plain.isprintable() or not plain):
            raise ValueError("a metadata value is printable ASCII")
        # Spaces around it are no part of a field's value (RFC 9113, 8.2.1).
        fields.append((text, plain.strip(" ")))
    return fields


def read_metadata(fields: Iterable[Field]) -> Metadata:
    """What of *fields* is the application's."""
    found: list[Metadatum] = []
    for name, value in fields:
        if name[:1] == ":" or name in _RESERVED or name.startswith("grpc-"):
            continue
        if name.endswith("-bin"):
            # Who passes it on may have joined several by commas.
            found.extend(Metadatum(name, _binary(part.strip(" "))) for part in value.split(","))
        else:
            found.append(Metadatum(name, value))
    return tuple(found)


def _binary(value: str) -> bytes:
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4))
    except (binascii.Error, ValueError):
        return b""
