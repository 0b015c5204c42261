"""How good a head is, in numbers: one `Evaluation` of one head on one set of texts, for the report, the gate and the manifest."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from clients.wire.catalogue import Task, ValidationSummary
from head_service.training.calibration import ReliabilityBin, calibration_error, reliability_bins
from head_service.training.thresholds import UNKNOWN_THRESHOLD, above_thresholds

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]

MAX_MATRIX_LABELS: Final = 39
"""With more labels a confusion matrix can no longer be read; the pairs most often confused are told instead."""
MAX_CONFUSIONS: Final = 30
CONFIDENCE: Final = 0.95
BOOTSTRAP_ROUNDS: Final = 1_000
_MIN_ROUNDS: Final = 100
_MAX_BOOTSTRAP_CELLS: Final = 200_000_000
"""Bounds the time of the bootstrap: fewer rounds, down to `_MIN_ROUNDS`, for more texts and labels."""


class Headline(msgspec.Struct, frozen=True):
    """The metric a version is judged by, with its bootstrap interval, which holds the true value `CONFIDENCE` of the time."""

    name: str
    value: float
    low: float
    high: float


class LabelEvaluation(msgspec.Struct, frozen=True):
    """One label: *support* texts have it, *found* texts were answered it. *threshold* is None where the highest score wins."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    found: int
    threshold: float | None = None


class Confusion(msgspec.Struct, frozen=True):
    """*count* texts of label *truth* were answered *found*."""

    truth: str
    found: str
    count: int


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What a head scored on *num_texts* texts; None for what its task does not have.

    *headline* is, by task, the accuracy, the macro F1 or R². Of multi_label *accuracy* is the share of texts with every label
    right (subset accuracy). *confusion* has a row a true label and a column an answered one, and is empty beyond
    `MAX_MATRIX_LABELS`; *confusions* are its largest cells off the diagonal, descending. *spearman* is None where all values or
    all answers are equal; *r2* is 0 where all values are.
    """

    task: Task
    labels: tuple[str, ...]
    num_texts: int
    headline: Headline
    accuracy: float | None = None
    macro_f1: float | None = None
    micro_f1: float | None = None
    per_label: tuple[LabelEvaluation, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    confusions: tuple[Confusion, ...] = ()
    calibration_error: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None
    spearman: float | None = None


def evaluate(
    task: Task,
    labels: Sequence[str],
    scores: FloatArray,
    targets: NDArray[np.generic],
    *,
    thresholds: tuple[float, ...] = (),
    seed: int = 0,
) -> Evaluation:
    """Hold *scores* against *targets*, see `dataset.Truth`.

    *scores* are float32 [n, labels] in 0..1, of a regression [n] or [n, 1]. *thresholds* are those of multi_label, 0.5 when
    absent. Same input, same seed: same intervals.

    Raises:
        ValueError: there is no text, the shapes do not go together, or a score is not finite.
    """
    if task == "regression":
        return _evaluate_regression(
            _checked(scores.reshape(len(scores)), targets), targets.astype(np.float64), tuple(labels), seed
        )
    _checked(scores, targets)
    if scores.shape != (len(targets), len(labels)) or (task == "multi_label") != (targets.ndim == 2):
        raise ValueError(f"scores of shape {scores.shape} and targets of {targets.shape} are not those of {len(labels)} labels")
    truth = targets.astype(np.int64)
    if task == "multi_label":
        return _evaluate_multi_label(scores, truth, tuple(labels), thresholds, seed)
    return _evaluate_single_label(scores, truth, tuple(labels), seed)


def validation_summary(
    task: Task, labels: Sequence[str], scores: FloatArray, *, thresholds: tuple[float, ...] = ()
) -> ValidationSummary | None:
    """What a head answers on validation texts, for drift to be measured against; None for a regression, which has no labels."""
    if task == "regression" or not len(scores):
        return None
    known = scores.astype(np.float64)
    if task == "single_label":
        counts = np.bincount(known.argmax(axis=1), minlength=len(labels))
        shares = {label: float(count) / len(known) for label, count in zip(labels, counts, strict=True)}
        return ValidationSummary(shares, float(known.max(axis=1).mean()), len(known))
    answered = above_thresholds(scores, thresholds)
    given = {label: float(count) for label, count in zip(labels, answered.sum(axis=0), strict=True)}
    given[""] = float(np.count_nonzero(answered.sum(axis=1) == 0))
    total = sum(given.values())
    return ValidationSummary(
        {label: count / total for label, count in given.items()}, float(np.maximum(known, 1.0 - known).mean()), len(known)
    )


def _checked(scores: FloatArray, targets: NDArray[np.generic]) -> FloatArray:
    if not len(targets) or len(scores) != len(targets):
        raise ValueError(f"{len(scores)} rows of scores for {len(targets)} texts; both must be the same, and at least one")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite: the head has not learned, or learned too fast")
    return scores


def _evaluate_single_label(scores: FloatArray, truth: NDArray[np.int64], labels: tuple[str, ...], seed: int) -> Evaluation:
    found = scores.argmax(axis=1)
    indices = np.arange(len(labels))
    matrix = confusion_matrix(truth, found, labels=indices)
    right = (found == truth).astype(np.float64)
    bins = reliability_bins(scores, truth)
    return Evaluation(
        task="single_label",
        labels=labels,
        num_texts=len(truth),
        headline=_headline("accuracy", right[:, np.newaxis], lambda sums: sums[:, 0] / len(right), seed),
        accuracy=float(right.mean()),
        macro_f1=_f1(truth, found, indices, "macro"),
        micro_f1=_f1(truth, found, indices, "micro"),
        per_label=_per_label(truth, found, labels, matrix.sum(axis=0), ()),
        confusion=tuple(tuple(map(int, row)) for row in matrix) if len(labels) <= MAX_MATRIX_LABELS else (),
        confusions=_largest_confusions(matrix, labels),
        calibration_error=calibration_error(bins),
        reliability=bins,
    )


def _evaluate_multi_label(
    scores: FloatArray, truth: NDArray[np.int64], labels: tuple[str, ...], thresholds: tuple[float, ...], seed: int
) -> Evaluation:
    thresholds = thresholds or (UNKNOWN_THRESHOLD,) * len(labels)
    found = above_thresholds(scores, thresholds).astype(np.int64)
    bins = reliability_bins(scores, truth)
    counts = np.hstack([truth & found, truth + found]).astype(np.float32)
    return Evaluation(
        task="multi_label",
        labels=labels,
        num_texts=len(truth),
        headline=_headline("macro_f1", counts, _macro_f1_of_sums, seed),
        accuracy=float((truth == found).all(axis=1).mean()),
        macro_f1=float(_macro_f1_of_sums(counts.sum(axis=0, keepdims=True, dtype=np.float64))[0]),
        micro_f1=float(2.0 * (truth & found).sum() / max(truth.sum() + found.sum(), 1)),
        per_label=_per_label(truth, found, labels, found.sum(axis=0), thresholds),
        calibration_error=calibration_error(bins),
        reliability=bins,
    )


def _evaluate_regression(found: FloatArray, truth: NDArray[np.float64], labels: tuple[str, ...], seed: int) -> Evaluation:
    errors = found.astype(np.float64) - truth
    # Around the mean: the sums of squares below would lose small variances of large values.
    centred = truth - truth.mean()
    columns = np.stack([errors**2, centred, centred**2, np.ones_like(centred)], axis=1)
    headline = _headline("r2", columns, _r2_of_sums, seed)
    return Evaluation(
        task="regression",
        labels=labels,
        num_texts=len(truth),
        headline=headline,
        mae=float(np.abs(errors).mean()),
        rmse=float(np.sqrt((errors**2).mean())),
        r2=headline.value,
        spearman=_spearman(found.astype(np.float64), truth),
    )


def _f1(truth: IntArray, found: IntArray, indices: IntArray, average: str) -> float:
    return float(f1_score(truth, found, labels=indices, average=average, zero_division=0.0))


def _per_label(
    truth: IntArray, found: IntArray, labels: tuple[str, ...], num_found: IntArray, thresholds: tuple[float, ...]
) -> tuple[LabelEvaluation, ...]:
    indices = np.arange(len(labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, found, labels=indices, average=None, zero_division=0.0
    )
    return tuple(
        LabelEvaluation(
            label,
            float(precision[place]),
            float(recall[place]),
            float(f1[place]),
            int(support[place]),
            int(num_found[place]),
            thresholds[place] if thresholds else None,
        )
        for place, label in enumerate(labels)
    )


def _largest_confusions(matrix: IntArray, labels: tuple[str, ...]) -> tuple[Confusion, ...]:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    places = [divmod(int(place), len(labels)) for place in order]
    return tuple(Confusion(labels[row], labels[column], int(wrong[row, column])) for row, column in places if wrong[row, column])


def _spearman(found: NDArray[np.float64], truth: NDArray[np.float64]) -> float | None:
    """The correlation of the ranks; equal values share the mean of theirs."""
    one, other = _ranks(found), _ranks(truth)
    if np.ptp(one) == 0.0 or np.ptp(other) == 0.0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2.0)[place]
    return ranks


def _macro_f1_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """*sums* [rounds, 2 labels]: a label's hits, then those that have it plus those answered it. A label of neither counts 0."""
    hits, given = np.split(sums, 2, axis=1)
    f1: NDArray[np.float64] = (2.0 * hits / np.maximum(given, 1.0)).mean(axis=1)
    return f1


def _r2_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """*sums* [rounds, 4]: squared errors, values, squared values, texts. 0 where all values are equal."""
    errors, values, squares, count = sums.T
    spread = squares - values**2 / count
    # What rounding leaves of a spread of nothing is none.
    known = spread > 1e-12 * np.maximum(squares, np.finfo(np.float64).tiny)
    return np.where(known, 1.0 - errors / np.where(known, spread, 1.0), 0.0)


def _headline(
    name: str, columns: NDArray[np.floating], of_sums: Callable[[NDArray[np.float64]], NDArray[np.float64]], seed: int
) -> Headline:
    """A metric that is a function of sums over texts, and its percentile bootstrap interval over texts.

    *columns* are [n, k], *of_sums* takes float64 [rounds, k] to [rounds]. Efron, Tibshirani: "An Introduction to the Bootstrap",
    1993, section 13.3.
    """
    value = of_sums(columns.sum(axis=0, keepdims=True, dtype=np.float64))[0]
    rounds = int(np.clip(_MAX_BOOTSTRAP_CELLS // columns.size, _MIN_ROUNDS, BOOTSTRAP_ROUNDS))
    random = np.random.default_rng(seed)
    num_texts = len(columns)
    sums = np.empty((rounds, columns.shape[1]))
    for number in range(rounds):
        times_drawn = np.bincount(random.integers(num_texts, size=num_texts), minlength=num_texts)
        sums[number] = times_drawn.astype(columns.dtype) @ columns
    outside = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(of_sums(sums), [outside, 1.0 - outside])
    return Headline(name, float(value), float(low), float(high))
