"""Real texts to measure with."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clients.wire.text import TextEncoder

SHORT_MEDIAN_TOKENS = 24
SHORT_MAX_TOKENS = 64


def short_texts(candidates: Sequence[str], encoder: TextEncoder, count: int = 2_000) -> list[str]:
    """SHORT: of *candidates* in order, those of at most 64 tokens, without the shortest ones that keep the median below 24.

    Raises:
        ValueError: the candidates are all shorter than that.
    """
    lengths = np.array([len(item.ids) for item in encoder.encode(list(candidates))])
    fitting = np.flatnonzero(lengths <= SHORT_MAX_TOKENS)
    by_length = fitting[np.argsort(lengths[fitting], kind="stable")]
    for dropped in range(len(by_length)):
        kept = by_length[dropped:]
        if np.median(lengths[kept]) >= SHORT_MEDIAN_TOKENS:
            return [candidates[index] for index in sorted(kept)][:count]
    raise ValueError(f"no part of these texts has a median of {SHORT_MEDIAN_TOKENS} tokens")


def texts_of(path: Path) -> list[str]:
    """The column `text` of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]
