"""Linear heads, solved exactly: the baseline, and hard to beat for its price.

One label: multinomial logistic regression. Several: one logistic regression a label. A number: ridge regression. Each is a convex
problem with one solution, found in seconds and without TensorFlow; see docs/decisions/0012-linear-heads-are-solved-exactly.md.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from head_service.training.features import standardisation
from head_service.training.heads import Fitted, quality
from head_service.training.linear_head import LinearHead
from head_service.training.targets import RowNumbers, Targets, folds

FloatArray = NDArray[np.float32]

C_GRID: Final = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Inverse regularisation, for vectors of about unit length, whose numbers are small."""

MAX_ITERATIONS: Final = 200
NUM_FOLDS: Final = 5
MIN_HELD: Final = 10
ENOUGH_WORSE: Final = 2
"""So many larger C in a row that are no better end the search: they also take longest."""

SMALL_NUMBERS: Final = 4_000_000
"""Of fewer numbers in all vectors a second thread saves a quarter of the time and takes half as much again of the processor,
which TensorFlow's import needs meanwhile. The weights are the same."""

_NEVER: Final = -30.0
"""The bias of a label that no text to learn from has: softmax and sigmoid of it are nothing."""


def fit_linear(
    features: FloatArray, targets: Targets, *, balanced: bool = False, seed: int = 0, c: float | None = None
) -> Fitted:
    """Choose C by cross-validation, unless it is given, then solve for everything. Same data, same seed: same weights.

    The validation logits are those of each text by the head that was solved without its fold.
    """
    with threadpool_limits(1 if features.size < SMALL_NUMBERS else None, "blas"):
        return _fit_linear(features, targets, balanced, seed, c)


def _fit_linear(features: FloatArray, targets: Targets, balanced: bool, seed: int, c: float | None) -> Fitted:
    parts = folds(targets, NUM_FOLDS, seed)
    held = np.concatenate([rows for _, rows in parts])
    if len(held) < MIN_HELD:
        middle = c or C_GRID[len(C_GRID) // 2]
        nothing = np.zeros((0, len(targets.labels)), np.float32)
        return Fitted(solve(features, targets, middle, balanced), nothing, targets.take(held[:0]), f"C {middle:g}")
    unseen = targets.take(held)
    best, best_logits, best_quality, num_worse = 0.0, np.zeros(0, np.float32), -np.inf, 0
    for value in (c,) if c else C_GRID:
        logits = _out_of_fold(features, targets, parts, value, balanced)
        if (reached := quality(unseen, logits)) > best_quality:
            best, best_logits, best_quality, num_worse = value, logits, reached, 0
        elif (num_worse := num_worse + 1) == ENOUGH_WORSE:
            break
    return Fitted(solve(features, targets, best, balanced), best_logits, unseen, f"C {best:g}")


def _out_of_fold(
    features: FloatArray, targets: Targets, parts: Sequence[tuple[RowNumbers, RowNumbers]], c: float, balanced: bool
) -> FloatArray:
    """The logits of the rows held out, fold after fold."""
    return np.concatenate(
        [solve_quickly(features[learnt], targets.take(learnt), c, balanced).logits(features[held]) for learnt, held in parts]
    )


def solve_quickly(features: FloatArray, targets: Targets, c: float, balanced: bool = False) -> LinearHead:
    """`solve` in float32: half the time, and near enough to compare by."""
    return solve(features, targets, c, balanced, np.float32)


def solve(
    features: FloatArray,
    targets: Targets,
    c: float,
    balanced: bool = False,
    dtype: type[np.float32 | np.float64] = np.float64,
) -> LinearHead:
    """The linear head of *c*, the inverse strength of regularisation.

    What is solved for are weights of numbers that all vary alike, in vectors of about unit length; then *c* means the same
    whatever the view. They are folded back into weights of the numbers as they are.
    """
    shift, scale = (array.astype(np.float64) for array in standardisation(features))
    scale /= np.sqrt(features.shape[1])
    kernel, bias = _solution(((features - shift) * scale).astype(dtype), targets, c, balanced)
    kernel = kernel * scale[:, None]
    bias = bias - shift @ kernel
    return LinearHead(kernel.astype(np.float32), bias.astype(np.float32), targets.labels, targets.task)


def _solution(wide: NDArray[Any], targets: Targets, c: float, balanced: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if targets.task == "regression":
        model = Ridge(alpha=1.0 / c).fit(wide, targets.matrix[:, 0])
        return model.coef_.reshape(-1, 1), np.atleast_1d(model.intercept_)
    if targets.task == "multi_label":
        columns = [_logistic(wide, column.astype(np.int64), c, 2, balanced) for column in targets.matrix.T]
        kernel = np.stack([found[:, 1] - found[:, 0] for found, _ in columns], axis=1)
        return kernel, np.array([found[1] - found[0] for _, found in columns])
    return _logistic(wide, targets.indices, c, len(targets.labels), balanced)


def _logistic(
    features: NDArray[Any], indices: NDArray[np.int64], c: float, num_labels: int, balanced: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(kernel [width, labels], bias [labels]); a label that does not occur is never found."""
    kernel, bias = np.zeros((features.shape[1], num_labels)), np.full(num_labels, _NEVER)
    present = np.unique(indices)
    if len(present) == 1:
        bias[present] = 0.0
        return kernel, bias
    # Newton's steps: three to ten times faster here than the default solver, and nearer to the one solution.
    model: Any = LogisticRegression(
        C=c, solver="newton-cg", max_iter=MAX_ITERATIONS, class_weight="balanced" if balanced else None
    )
    with warnings.catch_warnings():
        # A C at which the steps do not settle is judged by what it reaches, like any other.
        warnings.simplefilter("ignore")
        model.fit(features, indices)
    if len(present) == 2:
        # scikit-learn keeps one column for two classes; softmax over (0, z) is its sigmoid of z.
        kernel[:, present[1]], bias[present] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        kernel[:, present], bias[present] = model.coef_.T, model.intercept_
    return kernel, bias
