"""Long texts in windows: how one vector comes of several. Pure, but for the waiter that gathers them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embedding_service.backend import FloatArray, View
from embedding_service.backend.pooling import finish
from embedding_service.batching import Waiter
from embedding_service.errors import EmbedError, InvalidInput


def window_views(views: Sequence[View]) -> tuple[View, ...]:
    """What each window is to be read by, so that `join_windows` can make *views* of it.

    Raises:
        InvalidInput: a view is of tokens: those of an overlap would be there twice.
    """
    if any(view.pooling == "tokens" for view in views):
        raise InvalidInput("a text in several windows has no token view; ask for a pooled one, or for another truncation")
    return tuple(replace(view, normalize=False, dims=0) for view in views)


def join_windows(rows: Sequence[Sequence[FloatArray]], weights: Sequence[int], views: Sequence[View]) -> list[FloatArray]:
    """One vector a view, float32 [width'], from *rows*: one list of vectors a window, read by `window_views`.

    A maximum is the maximum over the windows; anything else their mean, weighted by *weights*, their numbers of tokens.
    Then *dims* and *normalize* apply, as they would to one row.
    """
    return [finish(_pooled([row[index] for row in rows], weights, view)[None], view)[0] for index, view in enumerate(views)]


def _pooled(vectors: Sequence[FloatArray], weights: Sequence[int], view: View) -> FloatArray:
    stacked = np.stack(vectors)
    if view.pooling == "max":
        return np.asarray(stacked.max(axis=0), dtype=np.float32)
    mean = np.average(stacked, axis=0, weights=weights).astype(np.float32)
    if view.pooling == "mean_max":
        half = len(mean) // 2
        mean[half:] = stacked[:, half:].max(axis=0)
    return mean


class WindowsWaiter:
    """Waits for all windows of one input and hands *waiter* the one list of vectors; see `batching.Waiter`."""

    __slots__ = ("_inference_seconds", "_missing", "_queue_seconds", "_rows", "_views", "_waiter", "_weights")

    def __init__(self, waiter: Waiter, weights: Sequence[int], views: Sequence[View]) -> None:
        self._waiter = waiter
        self._weights = weights
        self._views = views
        self._rows: list[list[FloatArray]] = [[] for _ in weights]
        self._missing = len(weights)
        self._queue_seconds = self._inference_seconds = 0.0

    @property
    def is_settled(self) -> bool:
        """Nobody waits any more."""
        return self._waiter.is_settled

    def put(self, index: int, vectors: list[FloatArray], queue_seconds: float, inference_seconds: float) -> None:
        """Window *index* has its vectors."""
        self._rows[index] = vectors
        self._queue_seconds = max(self._queue_seconds, queue_seconds)
        self._inference_seconds = max(self._inference_seconds, inference_seconds)
        self._missing -= 1
        if not self._missing and not self.is_settled:
            joined = join_windows(self._rows, self._weights, self._views)
            self._waiter.put(0, joined, self._queue_seconds, self._inference_seconds)

    def fail(self, error: EmbedError) -> None:
        """A window cannot be had, so the input cannot."""
        self._waiter.fail(error)
