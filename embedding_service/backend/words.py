"""Which rows of a table a text is the mean of: the text is cut into words, and a word the table lacks into its parts.

`WORDS` names the rule; it is part of a table's fingerprint, so a change of the rule is a change of its name:

- A word is a run of letters, digits and marks, with single joiners (- ' . , : / & @ · _) between them: *o'brien*, *1,000*,
  *line-up*. Single letters with a full stop after each keep the last one: *u.s.* All else (punctuation, symbols) is no word.
- ’ is read as ', and ‐ and ‑ as -; selectors of a character's variant are not read.
- Where all keys of a table are lower case, so is the text made.
- A word that is no key is read as its parts: before an English ending (*do n't*, *it 's*: the Penn Treebank's cut, which
  GloVe's texts had), then between joiners, then between scripts.
- A part in a script written without spaces (Chinese, Japanese, Thai, …) is read from the left by the longest key, of at most
  `LONGEST_MATCH` characters; what begins no key is missing.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, groupby, islice
from typing import Final

from clients.wire.text import normalize_text

WORDS: Final = "trunkline-words/1"
LONGEST_MATCH: Final = 8

Lookup = Callable[[Sequence[str]], Sequence[int]]
"""The row of each key, -1 for one the table lacks."""

_VARIANTS: Final = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
_SAME: Final = {ord("’"): "'", ord("‐"): "-", ord("‑"): "-", **dict.fromkeys(_VARIANTS)}
_JOINERS: Final = "-'.,:/&@·_"
_ENDING: Final = re.compile(r"(?:n't|'s|'re|'ve|'m|'ll|'d)\Z", re.IGNORECASE | re.ASCII)
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Myanmar, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana and iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_IS_UNSPACED: Final = re.compile(f"[{_UNSPACED}]+")
_SCRIPTS: Final = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_MATCHES_AT_ONCE: Final = 65_536
_PARTS: Final = re.compile(f"[{re.escape(_JOINERS)}]+")


@dataclass(slots=True)
class ReadText:
    """The rows a text is the mean of, one for each word found, and the words that were not, both in the text's order."""

    rows: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def split_words(text: str) -> list[str]:
    """The words of a normalised text, by the first two rules of this module; its case stays."""
    found: list[str] = _pattern().findall(text.translate(_SAME))
    return found


@cache
def _pattern() -> "re.Pattern[str]":
    # Python's \w lacks the marks that many scripts write vowels with, and the joiners that Persian puts inside words.
    letter, letters = r"[^\W_]", rf"[^\W_](?:[^\W_]|[\u200c\u200d{_marks()}])*"
    return re.compile(rf"(?:{letter}\.){{2,}}(?!{letter})|{letters}(?:[{re.escape(_JOINERS)}]{letters})*")


def _marks() -> str:
    points = [point for point in range(0x300, 0x20000) if unicodedata.category(chr(point))[0] == "M"]
    runs = [[point for _, point in run] for _, run in groupby(enumerate(points), key=lambda pair: pair[1] - pair[0])]
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)


def parts(word: str) -> list[str]:
    """What *word* is read as where the table lacks it; [word] where it has no parts."""
    stem, ending = _cut_ending(word)
    if ending and not stem:
        return [word]
    # One ending at most: a word made of thousands would be cut thousands of times.
    if ending and not _cut_ending(stem)[1]:
        return [stem, ending]
    pieces = [piece for piece in _PARTS.split(word) if piece]
    return pieces if len(pieces) > 1 or pieces != [word] else _SCRIPTS.findall(word)


def _cut_ending(word: str) -> tuple[str, str]:
    ending = _ENDING.search(word, max(0, len(word) - 3))
    return (word[: ending.start()], ending[0]) if ending else (word, "")


def read_texts(texts: Iterable[str], rows_of: Lookup, *, is_lowercase: bool) -> list[ReadText]:
    """Normalise *texts* and find their rows; *rows_of* is called a few times, each with many distinct keys."""
    normalized = map(normalize_text, texts)
    split = [split_words(text.lower() if is_lowercase else text) for text in normalized]
    reader = _Reader(rows_of)
    reader.learn({word: None for words in split for word in words})
    return [reader.read(words) for words in split]


class _Reader:
    """What the table knows of the words of some texts. Asks it level by level, not word by word."""

    def __init__(self, rows_of: Lookup) -> None:
        self._rows_of = rows_of
        self._rows: dict[str, int] = {}

    def learn(self, words: Iterable[str]) -> None:
        """Look up *words*, the parts of those that are missing, and so on."""
        wanted = dict.fromkeys(words)
        unspaced = []
        while wanted:
            missing = self._ask(wanted)
            wanted = {}
            for word in missing:
                pieces = parts(word)
                if pieces != [word]:
                    wanted.update((piece, None) for piece in pieces if piece not in self._rows)
                elif _IS_UNSPACED.match(word):
                    unspaced.append(word)
        matches = chain.from_iterable(map(_matches, unspaced))
        while asked := list(islice(matches, _MATCHES_AT_ONCE)):
            self._rows.update((match, row) for match, row in zip(asked, self._rows_of(asked), strict=True) if row >= 0)

    def _ask(self, wanted: Iterable[str]) -> list[str]:
        words = list(wanted)
        rows = self._rows_of(words)
        self._rows.update(zip(words, rows, strict=True))
        return [word for word, row in zip(words, rows, strict=True) if row < 0]

    def read(self, words: Iterable[str]) -> ReadText:
        text = ReadText()
        for word in words:
            self._read(word, text)
        return text

    def _read(self, word: str, text: ReadText) -> None:
        if self._rows[word] >= 0:
            text.rows.append(self._rows[word])
            return
        pieces = parts(word)
        if pieces != [word]:
            for piece in pieces:
                self._read(piece, text)
        elif _IS_UNSPACED.match(word):
            self._read_unspaced(word, text)
        else:
            text.missing.append(word)

    def _read_unspaced(self, word: str, text: ReadText) -> None:
        start, unknown = 0, ""
        while start < len(word):
            longest = range(min(LONGEST_MATCH, len(word) - start), 0, -1)
            stretches = (word[start : start + size] for size in longest)
            match = next((stretch for stretch in stretches if self._rows.get(stretch, -1) >= 0), "")
            if match and unknown:
                text.missing.append(unknown)
                unknown = ""
            if match:
                text.rows.append(self._rows[match])
            else:
                unknown += word[start]
            start += len(match) or 1
        if unknown:
            text.missing.append(unknown)


def _matches(word: str) -> Iterator[str]:
    """Every stretch of *word* that may be a key."""
    for start in range(len(word)):
        for size in range(1, min(LONGEST_MATCH, len(word) - start) + 1):
            yield word[start : start + size]
