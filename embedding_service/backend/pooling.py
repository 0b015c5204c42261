"""From a forward pass to vectors: how a view reads the hidden states. Pure numpy, float32 throughout."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedding_service.backend import BackendError, Batch, BatchResult, FloatArray, Pooling, View

Lengths = NDArray[np.int64]
_Pool = Callable[[FloatArray, Lengths], FloatArray]


def padded(token_ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64], Lengths]:
    """Token ids and mask, int64 [rows, longest], and the rows' lengths. Padding is id 0, mask 0."""
    lengths = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros(mask.shape, dtype=np.int64)
    for row, values in zip(ids, token_ids, strict=True):
        row[: len(values)] = values
    return ids, mask, lengths


def read_views(hidden: Mapping[int, FloatArray], lengths: Lengths, batch: Batch) -> BatchResult:
    """Read each row by each of its views. *hidden* maps a layer to float32 [rows, longest, width].

    A view is computed once for all rows that ask for it. The arrays own their memory: *hidden* may be reused.

    Raises:
        BackendError: a vector has a number that is not finite.
    """
    results: BatchResult = [[_NOTHING] * len(views) for views in batch.views]
    for view, places in _places(batch.views).items():
        rows = [row for row, _ in places]
        states = hidden[view.layer]
        if len(rows) == len(lengths) and rows == list(range(len(rows))):
            vectors = _read(states, lengths, view)
        else:
            vectors = _read(states[rows], lengths[rows], view)
        for (row, index), vector in zip(places, vectors, strict=True):
            results[row][index] = vector
    return results


_NOTHING: Final[FloatArray] = np.empty(0, dtype=np.float32)


def _places(views: Sequence[Sequence[View]]) -> dict[View, list[tuple[int, int]]]:
    first = views[0]
    if len(first) == len(set(first)) and all(others == first for others in views):
        return {view: [(row, index) for row in range(len(views))] for index, view in enumerate(first)}
    places: dict[View, list[tuple[int, int]]] = {}
    for row, wanted in enumerate(views):
        for index, view in enumerate(wanted):
            places.setdefault(view, []).append((row, index))
    return places


def _read(states: FloatArray, lengths: Lengths, view: View) -> Sequence[FloatArray]:
    if view.pooling == "tokens":
        return [_finish(row[:length].copy(), view) for row, length in zip(states, lengths, strict=True)]
    return list(_finish(_POOLS[view.pooling](states, lengths), view))


def _finish(vectors: FloatArray, view: View) -> FloatArray:
    """Check, cut and scale *vectors*, float32 [any, width]."""
    if not np.isfinite(vectors).all():
        raise BackendError("the forward pass gave numbers that are not finite")
    if view.dims:
        vectors = vectors[:, : view.dims]
    if view.normalize:
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        vectors = vectors / np.maximum(norms, np.float32(1e-12))[:, None]
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _mask(states: FloatArray, lengths: Lengths) -> NDArray[np.bool_]:
    return np.arange(states.shape[1]) < lengths[:, None]


def _is_full(states: FloatArray, lengths: Lengths) -> bool:
    return bool((lengths == states.shape[1]).all())


def _mean(states: FloatArray, lengths: Lengths) -> FloatArray:
    weights = _mask(states, lengths) / lengths[:, None].astype(np.float32)
    mean: FloatArray = np.matmul(weights[:, None, :].astype(np.float32), states)[:, 0]
    return mean


def _maximum(states: FloatArray, lengths: Lengths) -> FloatArray:
    if not _is_full(states, lengths):
        states = np.where(_mask(states, lengths)[:, :, None], states, np.float32(-np.inf))
    largest: FloatArray = states.max(axis=1)
    return largest


def _first(states: FloatArray, lengths: Lengths) -> FloatArray:
    del lengths
    return states[:, 0].copy()


def _last(states: FloatArray, lengths: Lengths) -> FloatArray:
    return states[np.arange(len(states)), lengths - 1]


def _mean_max(states: FloatArray, lengths: Lengths) -> FloatArray:
    return np.concatenate([_mean(states, lengths), _maximum(states, lengths)], axis=1)


_POOLS: Final[dict[Pooling, _Pool]] = {
    "mean": _mean,
    "cls": _first,
    "max": _maximum,
    "mean_max": _mean_max,
    "sep": _last,
}
