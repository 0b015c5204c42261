"""Real texts to measure with."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clients.wire.text import TextEncoder

SHORT_MEDIAN_TOKENS = 24
SHORT_MAX_TOKENS = 64


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


def texts_of(path: Path) -> list[str]:
    """The column `text` of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]
