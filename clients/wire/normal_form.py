"""Unicode's normal forms, in time that grows no faster than the text.

The standard library puts the marks on one letter into their order by insertion, so that a letter with a million marks keeps it
busy for minutes (Unicode Standard Annex #15 has a "stream-safe text process" against just such texts). Here long runs of marks
are put into order beforehand, which changes nothing of the result.
"""

import re
import unicodedata
from functools import cache
from itertools import groupby
from typing import Final, Literal

Form = Literal["NFC", "NFKC"]

MANY_MARKS: Final = 32
"""In a row. No language writes half as many."""

_IN_TWO_MARKS: Final = "\u0f73\u0f75\u0f81"
"""Letters, by their class, that stand for nothing but marks."""


def normal_form(form: Form, text: str) -> str:
    """What `unicodedata.normalize` gives."""
    return text if text.isascii() else unicodedata.normalize(form, _many_marks().sub(_in_order, text))


def _in_order(marks: re.Match[str]) -> str:
    """The canonical ordering of *marks*: each decomposed, then by their classes, those of one class in the order they came."""
    parts = [part for mark in marks[0] for part in unicodedata.normalize("NFD", mark)]
    return "".join(sorted(parts, key=unicodedata.combining))


@cache
def _many_marks() -> re.Pattern[str]:
    points = [point for point in range(0x300, 0x20000) if unicodedata.combining(chr(point)) or chr(point) in _IN_TWO_MARKS]
    runs = [[point for _, point in run] for _, run in groupby(enumerate(points), key=lambda pair: pair[1] - pair[0])]
    ranges = "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)
    return re.compile(f"[{ranges}]{{{MANY_MARKS},}}+")
