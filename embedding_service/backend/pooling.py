"""From a forward pass to vectors: how a view reads the hidden states. Pure numpy, float32 throughout."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedding_service.backend import BackendError, Batch, BatchResult, FloatArray, Pooling, View

Lengths = NDArray[np.int64]
_Pool = Callable[[FloatArray, Lengths, Lengths], FloatArray]

_LEAST_NORM: Final[Mapping[int, float]] = {4: 1e-12, 8: 1e-300}
"""By the bytes of a number: below it a vector is taken for zeros."""


def padded(token_ids: Sequence[Sequence[int]], pair_at: Sequence[int] = ()) -> tuple[dict[str, NDArray[np.int64]], Lengths]:
    """The inputs of a graph of the onnxruntime dialect (`models.graph`), and the rows' lengths. Padding is id 0, mask 0."""
    lengths = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros(mask.shape, dtype=np.int64)
    for row, values in zip(ids, token_ids, strict=True):
        row[: len(values)] = values
    positions = np.tile(2 * np.arange(mask.shape[1]), (len(mask), 1))
    if any(pair_at):
        positions += _segments(mask.shape[1], pair_at)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask}, lengths


def _segments(width: int, pair_at: Sequence[int]) -> NDArray[np.int64]:
    """1 from where a row's second text begins, else 0; int64 [rows, width]."""
    begins = np.array([begin or width for begin in pair_at], dtype=np.int64)
    return (np.arange(width) >= begins[:, None]).astype(np.int64)


def flattened(token_ids: Sequence[Sequence[int]], pair_at: Sequence[int] = ()) -> tuple[dict[str, NDArray[np.int64]], Lengths]:
    """The inputs of a graph of the flat dialect (`models.graph`), and the rows' lengths.

    The grid of attention is as wide as the longest row, rounded up to a multiple of 8: its products then fill whole vector
    registers, which saves more than the padding costs. In all but small batches a few spare tokens at the end round their
    number up, since an engine compiles kernels for each number it has not seen.
    """
    lengths = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
    width, num_tokens = _rounded_up(int(lengths.max()), 8), int(lengths.sum())
    spare = _rounded_up(num_tokens, _TOKENS_STEP) - num_tokens if num_tokens >= 4 * _TOKENS_STEP else 0
    present = np.arange(width) < lengths[:, None]
    places = np.flatnonzero(present)
    grid = np.zeros(present.shape, dtype=np.int64)
    grid[present] = np.arange(num_tokens)
    ids = np.zeros(num_tokens + spare, dtype=np.int64)
    ids[:num_tokens] = np.fromiter(chain.from_iterable(token_ids), dtype=np.int64, count=num_tokens)
    places = np.pad(places, (0, spare))
    positions = 2 * (places % width)
    if any(pair_at):
        positions += _segments(width, pair_at).reshape(-1)[places]
    inputs = {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": present.astype(np.int64),
        "grid": grid,
        "places": places,
    }
    return inputs, lengths


_TOKENS_STEP: Final = 16


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def read_views(hidden: Mapping[int, FloatArray], lengths: Lengths, batch: Batch) -> BatchResult:
    """Read each row by each of its views.

    *hidden* maps a layer to float32 [tokens, width], row after row without padding; what follows the last row is ignored.
    A view is computed once for all rows that ask for it. The arrays own their memory: *hidden* may be reused.

    Raises:
        BackendError: a vector has a number that is not finite.
    """
    results: BatchResult = [[_NOTHING] * len(views) for views in batch.views]
    starts = np.cumsum(lengths) - lengths
    for view, places in rows_by_view(batch.views).items():
        rows = [row for row, _ in places]
        states = hidden[view.layer][: lengths.sum()]
        if rows == list(range(len(lengths))):
            vectors = _read(states, starts, lengths, view)
        else:
            picked = np.concatenate([states[starts[row] : starts[row] + lengths[row]] for row in rows])
            own = lengths[rows]
            vectors = _read(picked, np.cumsum(own) - own, own, view)
        for (row, index), vector in zip(places, vectors, strict=True):
            results[row][index] = vector
    return results


_NOTHING: Final[FloatArray] = np.empty(0, dtype=np.float32)


def rows_by_view(views: Sequence[Sequence[View]]) -> dict[View, list[tuple[int, int]]]:
    """For each view the places it is asked for at: (row, index among the row's views)."""
    first = views[0]
    if len(first) == len(set(first)) and all(others == first for others in views):
        return {view: [(row, index) for row in range(len(views))] for index, view in enumerate(first)}
    places: dict[View, list[tuple[int, int]]] = {}
    for row, wanted in enumerate(views):
        for index, view in enumerate(wanted):
            places.setdefault(view, []).append((row, index))
    return places


def _read(states: FloatArray, starts: Lengths, lengths: Lengths, view: View) -> Sequence[FloatArray]:
    if view.pooling == "tokens":
        return [finish(rows.copy(), view) for rows in np.split(states, starts[1:])]
    return list(finish(_POOLS[view.pooling](states, starts, lengths), view))


def finish(vectors: NDArray[np.floating[Any]], view: View) -> FloatArray:
    """Check, cut and scale *vectors*, float32 or float64 [any, width]; a vector of zeros stays one.

    Raises:
        BackendError: a number is not finite.
    """
    if not np.isfinite(vectors).all():
        raise BackendError("the forward pass gave numbers that are not finite")
    if view.dims:
        vectors = vectors[:, : view.dims]
    if view.normalize:
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        vectors = vectors / np.maximum(norms, vectors.dtype.type(_LEAST_NORM[vectors.itemsize]))[:, None]
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _mean(states: FloatArray, starts: Lengths, lengths: Lengths) -> FloatArray:
    sums = np.add.reduceat(states, starts, axis=0)
    return np.asarray(sums / lengths[:, None], dtype=np.float32)


def _maximum(states: FloatArray, starts: Lengths, lengths: Lengths) -> FloatArray:
    del lengths
    largest: FloatArray = np.maximum.reduceat(states, starts, axis=0)
    return largest


def _first(states: FloatArray, starts: Lengths, lengths: Lengths) -> FloatArray:
    del lengths
    return states[starts]


def _last(states: FloatArray, starts: Lengths, lengths: Lengths) -> FloatArray:
    last: FloatArray = states[starts + lengths - 1]
    return last


def _mean_max(states: FloatArray, starts: Lengths, lengths: Lengths) -> FloatArray:
    return np.concatenate([_mean(states, starts, lengths), _maximum(states, starts, lengths)], axis=1)


_POOLS: Final[dict[Pooling, _Pool]] = {
    "mean": _mean,
    "cls": _first,
    "max": _maximum,
    "mean_max": _mean_max,
    "sep": _last,
}
