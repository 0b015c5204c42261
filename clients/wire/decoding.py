"""What msgspec raises of bytes that are not what they should be, and what of it may be told."""

import re
from typing import Any, Final

import msgspec

NOT_DECODED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Not JSON, or JSON of another shape; strings that are not UTF-8; lists within lists without end."""

MAX_TOLD: Final = 200
_WITHIN: Final = re.compile(r"` - at `\$[^`]*`$")


def told_of_shape(error: msgspec.ValidationError, kind: Any) -> str:
    """What is wrong with a body that should be a *kind*: its types and places; a field or word of the caller's own is left out.

    Of *kind*, when it is a struct, the fields are named where the body has another one.
    """
    message = str(error)
    if message.startswith("Object contains unknown field"):
        return "it has an unknown field" + ("" if _WITHIN.search(message) else _known_fields(kind))
    if message.startswith("Invalid enum value"):
        _, at, place = message.rpartition(" - at ")
        return f"a word is none of those to choose from{at}{place}"[:MAX_TOLD]
    return message[:MAX_TOLD]


def _known_fields(kind: Any) -> str:
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return ""
    return f"; it takes {', '.join(sorted(field.encode_name for field in msgspec.structs.fields(kind)))}"
