"""What goes into a head: a vector a text, or a vector a token; and how texts of many lengths become batches of little padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
RowNumbers = NDArray[np.int64]

PADDED_TO: Final = 8
"""Texts of a batch are padded to a multiple of it: fewer distinct shapes to prepare kernels for."""

_BATCHES_A_POOL: Final = 32
_LEAST_SHARE: Final = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class TokenFeatures:
    """A vector a token, text behind text in one array, which may be a file mapped into memory.

    *rows* is float16 or float32 [all tokens, width]; text i owns *lengths[i]* of them from *starts[i]* on.
    """

    rows: NDArray[np.floating[Any]]
    starts: RowNumbers
    lengths: RowNumbers

    @classmethod
    def of(cls, texts: Sequence[NDArray[np.floating[Any]]]) -> "TokenFeatures":
        """From one array a text, [tokens, width]."""
        lengths = np.array([len(text) for text in texts], np.int64)
        return cls(np.concatenate(texts), np.cumsum(lengths) - lengths, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def width(self) -> int:
        """Of a token's vector."""
        return int(self.rows.shape[1])

    def take(self, texts: RowNumbers) -> "TokenFeatures":
        """Those of *texts*; the array is shared."""
        return TokenFeatures(self.rows, self.starts[texts], self.lengths[texts])

    def padded(self, texts: RowNumbers) -> tuple[FloatArray, FloatArray]:
        """(vectors float32 [texts, tokens, width], mask float32 [texts, tokens]: 1 where there is a token)."""
        longest = int(self.lengths[texts].max(initial=1))
        num_tokens = -(-longest // PADDED_TO) * PADDED_TO
        vectors = np.zeros((len(texts), num_tokens, self.width), np.float32)
        for place, (start, length) in enumerate(zip(self.starts[texts], self.lengths[texts], strict=True)):
            vectors[place, :length] = self.rows[start : start + length]
        mask = (np.arange(num_tokens) < self.lengths[texts][:, None]).astype(np.float32)
        return vectors, mask


Features = FloatArray | TokenFeatures
"""Pooled: float32 [texts, width]."""


def width_of(features: Features) -> int:
    """Of each vector."""
    return features.width if isinstance(features, TokenFeatures) else int(features.shape[1])


def take(features: Features, texts: RowNumbers) -> Features:
    """Those of *texts*."""
    return features.take(texts) if isinstance(features, TokenFeatures) else features[texts]


def inputs_of(features: Features, texts: RowNumbers) -> tuple[FloatArray, ...]:
    """A batch as a head takes it: the vectors, and the mask where they are of tokens."""
    return features.padded(texts) if isinstance(features, TokenFeatures) else (np.asarray(features[texts], np.float32),)


def standardisation(features: Features, max_rows: int = 200_000) -> tuple[FloatArray, FloatArray]:
    """(shift, scale), float32 [width], with which (vector - shift) * scale has numbers of mean 0 and standard deviation 1.

    A number that hardly varies is not blown up to what the others are: it is mostly rounding. Of tokens, some texts are looked at
    that have *max_rows* or so.
    """
    rows = features
    if isinstance(features, TokenFeatures):
        every = max(1, int(features.lengths.sum()) // max_rows)
        texts = range(0, len(features), every)
        rows = np.concatenate([features.rows[features.starts[i] : features.starts[i] + features.lengths[i]] for i in texts])
    wide = np.asarray(rows, np.float64)
    deviation = wide.std(axis=0)
    least = max(float(np.median(deviation)) * _LEAST_SHARE, 1e-6)
    return wide.mean(axis=0).astype(np.float32), (1.0 / np.maximum(deviation, least)).astype(np.float32)


def shuffled_batches(features: Features, size: int, random: np.random.Generator) -> Iterator[RowNumbers]:
    """Every text once, in batches of *size* in an order that *random* draws; of tokens, each of texts of about one length."""
    order = random.permutation(len(features))
    if not isinstance(features, TokenFeatures):
        yield from np.split(order, range(size, len(order), size))
        return
    batches: list[RowNumbers] = []
    for start in range(0, len(order), size * _BATCHES_A_POOL):
        pool = order[start : start + size * _BATCHES_A_POOL]
        by_length = pool[features.lengths[pool].argsort(kind="stable")]
        batches += np.split(by_length, range(size, len(by_length), size))
    for place in random.permutation(len(batches)):
        yield batches[place]


def even_batches(features: Features, max_rows: int = 1_024, max_tokens: int = 16_384) -> Iterator[RowNumbers]:
    """Every text once, by length, in batches of at most *max_rows* and of about *max_tokens* with their padding."""
    if not isinstance(features, TokenFeatures):
        yield from np.split(np.arange(len(features)), range(max_rows, len(features), max_rows))
        return
    order = features.lengths.argsort(kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and end - start < max_rows and (end - start + 1) * features.lengths[order[end]] <= max_tokens:
            end += 1
        yield order[start:end]
        start = end
