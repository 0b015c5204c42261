"""Real texts to measure with."""

import csv
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from clients.wire.text import TextEncoder
from trunkline.demo_data import prepare_demo_data

SHORT_MEDIAN_TOKENS = 24
SHORT_MAX_TOKENS = 64
LONG_MIN_TOKENS = 256
LONG_MAX_TOKENS = 512
LONG_SHARE = 0.05
NO_TRUNCATION: Final = 1_000_000
"""Tokens an encoder must take for lengths to be those of the texts themselves."""

NUM_LONG: Final = 200
WorkloadName = Literal["short", "mix", "long"]
WORKLOADS: Final[tuple[WorkloadName, ...]] = ("short", "mix", "long")


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts, and of each whether it is "short" or "long"."""

    name: WorkloadName
    texts: list[str]
    classes: list[str]

    def __repr__(self) -> str:
        return f"<Workload {self.name} [{len(self.texts)} texts, {self.classes.count('long')} long]>"


def load_workload(name: WorkloadName, cache_dir: Path, tokenizer_json: bytes) -> Workload:
    """SHORT, MIX or LONG of the demo's data: tweets, and for long texts documents of newsgroups."""
    heads = {head.name: head for head in prepare_demo_data(cache_dir, print)}
    encoder = TextEncoder(tokenizer_json, max_tokens=NO_TRUNCATION)
    tweets = texts_of(heads["sentiment"].train_csv)
    if name == "short":
        texts = short_texts(tweets, encoder)
    elif name == "mix":
        texts = mix_texts(tweets, texts_of(heads["newsgroup"].train_csv), encoder)
    else:
        texts = long_texts(texts_of(heads["newsgroup"].train_csv), encoder, NUM_LONG)
    return Workload(name, texts, classes_of(texts, encoder))


def short_texts(candidates: Sequence[str], encoder: TextEncoder, count: int = 2_000) -> list[str]:
    """SHORT: *count* of *candidates*, in their order, of at most 64 tokens and with a median of 24.

    The longest are left out while the median is above it, the shortest while it is below; of the rest every n-th is taken.

    Raises:
        ValueError: the candidates are all shorter, or all longer, than that.
    """
    lengths = np.array([len(item.ids) for item in encoder.encode(list(candidates))])
    fitting = np.flatnonzero(lengths <= SHORT_MAX_TOKENS)
    kept = fitting[np.argsort(lengths[fitting], kind="stable")]
    while len(kept) and np.median(lengths[kept]) > SHORT_MEDIAN_TOKENS:
        kept = kept[:-1]
    while len(kept) and np.median(lengths[kept]) < SHORT_MEDIAN_TOKENS:
        kept = kept[1:]
    if not len(kept):
        raise ValueError(f"no part of these texts has a median of {SHORT_MEDIAN_TOKENS} tokens")
    every = max(1, len(kept) // count)
    return [candidates[index] for index in sorted(kept[::every][:count])]


def mix_texts(
    candidates: Sequence[str], documents: Sequence[str], encoder: TextEncoder, count: int = 2_000, seed: int = 0
) -> list[str]:
    """MIX: `short_texts` of *candidates*, of which `long_texts` of *documents* replace `LONG_SHARE`, in an order *seed* draws.

    *encoder* truncates nothing, so that lengths are the texts' own. There is at least one long text.

    Raises:
        ValueError: there are too few texts of a kind.
    """
    short = short_texts(candidates, encoder, count)
    long = long_texts(documents, encoder, max(1, round(len(short) * LONG_SHARE)), seed)
    mixed = _evenly(short, len(short) - len(long)) + long
    random.Random(seed).shuffle(mixed)  # noqa: S311 (repeatable, no secret)
    return mixed


def long_texts(documents: Sequence[str], encoder: TextEncoder, count: int, seed: int = 0) -> list[str]:
    """*count* real texts of 256 to 512 tokens: documents of such a length, taken evenly.

    Where these are too few, neighbouring documents are joined and cut at a word to a length that *seed* draws.

    Raises:
        ValueError: there is too little text for as many.
    """
    lengths = _lengths(documents, encoder)
    fitting = [text for text, length in zip(documents, lengths, strict=True) if LONG_MIN_TOKENS <= length <= LONG_MAX_TOKENS]
    if len(fitting) >= count:
        return _evenly(fitting, count)
    rest = [text for text, length in zip(documents, lengths, strict=True) if not LONG_MIN_TOKENS <= length <= LONG_MAX_TOKENS]
    for text in _joined(rest, encoder, random.Random(seed)):  # noqa: S311 (repeatable, no secret)
        fitting.append(text)
        if len(fitting) == count:
            return fitting
    raise ValueError(f"these documents make only {len(fitting)} texts of {LONG_MIN_TOKENS} to {LONG_MAX_TOKENS} tokens")


def _joined(documents: Sequence[str], encoder: TextEncoder, chance: random.Random) -> Iterator[str]:
    words: list[str] = []
    for document in documents:
        words += document.split()
        wanted = chance.randint(LONG_MIN_TOKENS, LONG_MAX_TOKENS)
        if _length(words, encoder) < wanted:
            continue
        # The longest beginning that fits; its length grows with the number of words.
        fits = bisect_right(range(1, len(words) + 1), wanted, key=lambda end: _length(words[:end], encoder))
        if _length(words[:fits], encoder) >= LONG_MIN_TOKENS:
            yield " ".join(words[:fits])
        words = []


def _evenly(texts: Sequence[str], count: int) -> list[str]:
    return [texts[place * len(texts) // count] for place in range(count)]


def classes_of(texts: Sequence[str], encoder: TextEncoder) -> list[str]:
    """Of each text "long" when it has 256 tokens or more, else "short"."""
    return ["long" if length >= LONG_MIN_TOKENS else "short" for length in _lengths(texts, encoder)]


def _lengths(texts: Sequence[str], encoder: TextEncoder) -> list[int]:
    return [len(encoded.ids) for encoded in encoder.encode(texts)]


def _length(words: Sequence[str], encoder: TextEncoder) -> int:
    return _lengths([" ".join(words)], encoder)[0]


def texts_of(path: Path) -> list[str]:
    """The column `text` of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]
