"""From which score on a label is answered: one threshold a label, chosen on validation scores."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

UNKNOWN_THRESHOLD: Final = 0.5
"""The threshold of a label that validation never saw: there is nothing to choose it by."""


def best_thresholds(scores: FloatArray, targets: NDArray[np.integer]) -> tuple[float, ...]:
    """The threshold of each label with the best F1: *scores* float32 [n, labels] in 0..1, *targets* the same shape, 0 or 1.

    A label is answered where its score is at least its threshold. All thresholds between two neighbouring scores do the same, so
    the one in the middle is taken; of gaps that do equally well, the widest, then the one nearest to a half.
    """
    return tuple(_best(scores[:, label].astype(np.float64), targets[:, label] > 0) for label in range(scores.shape[1]))


def above_thresholds(scores: FloatArray, thresholds: tuple[float, ...]) -> NDArray[np.int8]:
    """int8 [n, labels]: 1 where a label is answered; no *thresholds*: 0.5 for all."""
    least = np.array(thresholds or (UNKNOWN_THRESHOLD,) * scores.shape[1])
    # In float64: a float32 threshold could round up to the score above its gap.
    return (scores.astype(np.float64) >= least).astype(np.int8)


def _best(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    if not truth.any():
        return UNKNOWN_THRESHOLD
    descending = np.argsort(-scores, kind="stable")
    ordered, true_so_far = scores[descending], np.cumsum(truth[descending])
    # A threshold lies below the last of equal scores: between it and the next lower score, or 0.
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    upper, lower = ordered[last], np.append(ordered[last[:-1] + 1], 0.0)
    f1 = 2.0 * true_so_far[last] / (last + 1 + truth.sum())
    middle, width = (upper + lower) / 2.0, upper - lower
    best = min(np.flatnonzero(f1 == f1.max()), key=lambda gap: (-width[gap], abs(middle[gap] - 0.5)))
    return float(middle[best])
