"""A request body as the reference reads it: RapidJSON's grammar and words around the standard library's parser.

What that parser alone would do otherwise: the first of equal keys counts, not the last; what follows the document is not
read; a number too big for a double is an error; members that nobody asked for may be nested as deep as they like.
NaN, Infinity and -Infinity are numbers. Source: util/json_tensor.cc (ParseJson), RapidJSON's error/en.h.
"""

import json
import math
import re
from collections.abc import Collection
from json import JSONDecodeError
from typing import Any, Final

import msgspec

from head_service.serving.errors import MAX_ECHO_CHARACTERS, invalid

MAX_DEPTH: Final = 1_000_000
"""Of a member that nobody asked for; reading on costs time and answers nothing."""

_SPACE: Final = re.compile(r"[ \t\n\r]*+")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_WORD: Final = re.compile(r"true|false|null|NaN|-?Infinity")
_LONG_EXPONENT: Final = re.compile(r"[eE]\+?[0-9]{3}")
_BLOCK: Final = 100
"""Characters looked at together for long runs of digits."""

_STRING_WORDS: Final = {
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid control character": "Invalid encoding in string.",
    "Invalid \\u": "Incorrect hex digit after \\u escape in string.",
    "Invalid \\escape": "Invalid escape character in string.",
}
"""From how the standard library begins its words to RapidJSON's."""

_STRINGS: Final = json.JSONDecoder()
_MISSING_COMMA: Final = "Missing a comma or } after an object member."


class _Broken(Exception):
    """Where and why it is no JSON; *at* counts characters."""

    def __init__(self, why: str, at: int) -> None:
        super().__init__(why)
        self.why = why
        self.at = at


def parse_object(body: bytes, wanted: Collection[str]) -> tuple[dict[str, Any], str]:
    """The members of the top-level object that are *wanted*, and the document as far as a message may show it.

    Bytes that are no UTF-8 come through as surrogates, which `str.encode("utf-8", "surrogateescape")` turns back.

    Raises:
        ServingError: INVALID_ARGUMENT: it is no JSON, or no object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    if (quick := _quick(body, wanted)) is not None:
        return quick, printable(body[:MAX_ECHO_CHARACTERS].decode("utf-8", "replace"))
    text = body.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    start = _after_space(text, 0)
    excerpt = printable(text[start : start + MAX_ECHO_CHARACTERS])
    try:
        if start == len(text):
            raise _Broken("The document is empty.", start)  # noqa: TRY301 (all of them become one answer)
        if text[start] != "{":
            _skipped(text, start)
            raise invalid(f"JSON Value: {excerpt} Is not object")
        return _members(text, start, wanted), excerpt
    except _Broken as broken:
        offset = len(text[: broken.at].encode("utf-8", "surrogateescape"))
        raise invalid(f"JSON Parse error: {broken.why} at offset: {offset}") from None


def _quick(body: bytes, wanted: Collection[str]) -> dict[str, Any] | None:
    """The members of a body without nested objects that a strict and much faster parser takes; None: it is not plainly one.

    An integer beyond 64 bits stays one here, which is no other tensor than the double that it would be.
    """
    if body.count(b"{") != 1 or _has_digit_block(body):
        return None
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if body.count(b":") != len(found):
        # Equal keys, of which it keeps the last; or a colon in a text, which is no matter.
        return None
    return {name: value for name, value in found.items() if name in wanted}


def printable(text: str) -> str:
    """*text* without what no answer could carry."""
    return text.encode("utf-8", "replace").decode()


def _members(text: str, start: int, wanted: Collection[str]) -> dict[str, Any]:
    decoder = _decoder(exact=_may_be_too_big(text))
    found: dict[str, Any] = {}
    at = _after_space(text, start + 1)
    if text[at : at + 1] == "}":
        return found
    while True:
        name, at = _name(text, at)
        if name in wanted and name not in found:
            found[name], at = _value(decoder, text, at)
        else:
            at = _ignored(decoder, text, at)
        at = _after_space(text, at)
        if text[at : at + 1] == "}":
            return found
        if text[at : at + 1] != ",":
            raise _Broken(_MISSING_COMMA, at)
        at = _after_space(text, at + 1)


def _name(text: str, at: int) -> tuple[str, int]:
    """The member's name at *at*, and where its value begins."""
    if text[at : at + 1] != '"':
        raise _Broken("Missing a name for object member.", at)
    name, end = _string(text, at)
    end = _after_space(text, end)
    if text[end : end + 1] != ":":
        raise _Broken("Missing a colon after a name of object member.", end)
    return name, _after_space(text, end + 1)


def _value(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, at)
    except (JSONDecodeError, OverflowError):
        # It finds the same fault, in the reference's words.
        _skipped(text, at)
        raise _Broken("Invalid value.", at) from None
    except RecursionError:
        _skipped(text, at)
        raise invalid("JSON Value is nested deeper than any tensor") from None


def _ignored(decoder: json.JSONDecoder, text: str, at: int) -> int:
    """Where the value at *at* ends, which may be nested deeper than the quick way goes."""
    try:
        return decoder.raw_decode(text, at)[1]
    except (JSONDecodeError, OverflowError, RecursionError):
        return _skipped(text, at)


def _skipped(text: str, at: int) -> int:
    """Where the value at *at* ends. It is checked as it would be read, on a stack of our own."""
    closing: list[str] = []
    while True:
        at = _after_space(text, at)
        opened = text[at : at + 1]
        if opened in {"[", "{"}:
            end = "]" if opened == "[" else "}"
            at = _after_space(text, at + 1)
            if text[at : at + 1] != end:
                if len(closing) == MAX_DEPTH:
                    raise _Broken("Nested too deeply.", at)
                closing.append(end)
                at = at if end == "]" else _name(text, at)[1]
                continue
            at += 1
        else:
            at = _scalar_end(text, at)
        while closing:
            at = _after_space(text, at)
            if text[at : at + 1] != closing[-1]:
                break
            closing.pop()
            at += 1
        if not closing:
            return at
        if text[at : at + 1] != ",":
            raise _Broken("Missing a comma or ] after an array element." if closing[-1] == "]" else _MISSING_COMMA, at)
        at += 1
        if closing[-1] == "}":
            at = _name(text, _after_space(text, at))[1]


def _scalar_end(text: str, at: int) -> int:
    if match := _NUMBER.match(text, at):
        if math.isinf(float(match[0])):
            raise _Broken("Number too big to be stored in double.", at)
        return match.end()
    if match := _WORD.match(text, at):
        return match.end()
    if text[at : at + 1] != '"':
        raise _Broken("Invalid value.", at)
    return _string(text, at)[1]


def _string(text: str, at: int) -> tuple[str, int]:
    try:
        name, end = _STRINGS.raw_decode(text, at)
    except JSONDecodeError as error:
        words = (words for start, words in _STRING_WORDS.items() if error.msg.startswith(start))
        raise _Broken(next(words, "Invalid value."), error.pos) from None
    return str(name), end


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _may_be_too_big(text: str) -> bool:
    """Whether a number beyond a double may be in *text*: every such one has a long exponent or a whole block of digits."""
    return _LONG_EXPONENT.search(text) is not None or _has_digit_block(text)


def _has_digit_block(text: str | bytes) -> bool:
    return any(text[start : start + _BLOCK].isdigit() for start in range(0, len(text), _BLOCK))


def _decoder(*, exact: bool) -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_first_wins, parse_int=_integer, parse_float=_float if exact else None)


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    found.clear()
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def _integer(digits: str) -> int | float:
    """An integer of 64 bits, signed or not; a longer one is a double, as in RapidJSON."""
    if len(digits) <= 20:
        number = int(digits)
        if -(2**63) <= number < 2**64:
            return number
    return _float(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise OverflowError
    return number
