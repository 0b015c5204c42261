"""Whether scores mean what they say, and the one number that makes them: temperature scaling.

Guo, Pleiss, Sun, Weinberger: "On Calibration of Modern Neural Networks", ICML 2017, sections 2 and 4.2.
"""

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

MIN_TEMPERATURE: Final = 0.01
MAX_TEMPERATURE: Final = 100.0
NUM_BINS: Final = 15
_HALVINGS: Final = 60


class ReliabilityBin(msgspec.Struct, frozen=True):
    """The scores in (*lower*, *upper*]: how many, their mean, and the share of them that came true; 0 where there are none."""

    lower: float
    upper: float
    count: int
    mean_confidence: float
    accuracy: float


def fit_temperature(logits: FloatArray, targets: NDArray[np.integer]) -> float:
    """The T that makes softmax(logits / T) likeliest: *logits* float32 [n, labels], *targets* int [n], indices of labels.

    The negative log-likelihood is convex in 1/T, so its only minimum is where its slope is zero; it is looked for between
    `MIN_TEMPERATURE` and `MAX_TEMPERATURE`. Targets are smoothed by 1 / (n + 2), which goes to nothing as data grows, so that few
    texts, all of them right, do not ask for scores of exactly one (Platt: "Probabilistic Outputs for Support Vector Machines",
    1999, section 2.2). 1.0 where the logits say nothing: none, or equal ones.

    Raises:
        ValueError: the logits are not finite.
    """
    known = _finite(logits)
    if not len(known) or known.shape[1] < 2:
        return 1.0
    smoothing = 1.0 / (len(known) + 2.0)
    of_truth = known[np.arange(len(known)), targets]
    wanted = float(((1.0 - smoothing) * of_truth + smoothing * known.mean(axis=1)).mean())
    if np.ptp(known, axis=1).max() == 0.0:
        return 1.0
    return _temperature(lambda inverse: float((_softmax(known * inverse) * known).sum(axis=1).mean()) - wanted)


def fit_sigmoid_temperature(logits: FloatArray, targets: NDArray[np.integer]) -> float:
    """The one T of a head that makes sigmoid(logits / T) likeliest: both arrays [n, labels], *targets* 0 or 1.

    As `fit_temperature`; the smoothed targets are Platt's, (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2), over all cells.
    """
    known = _finite(logits)
    if not known.size or not known.any():
        return 1.0
    positives = float(np.count_nonzero(targets))
    negatives = known.size - positives
    smoothed = np.where(targets > 0, (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0))
    return _temperature(lambda inverse: float((known * (_sigmoid(known * inverse) - smoothed)).mean()))


def reliability_bins(scores: FloatArray, targets: NDArray[np.integer], bins: int = NUM_BINS) -> tuple[ReliabilityBin, ...]:
    """What scores promised beside what came true, in *bins* bins of equal width; the data of a reliability diagram.

    For *targets* int [n] the highest score of each row of *scores*, float32 [n, labels], counts, and whether it was right. For
    *targets* [n, labels] of 0 and 1 each score counts for itself, and whether its label was there.
    """
    confidence, came_true = _confidences(scores, targets)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = np.maximum(counts, 1)
    means = np.bincount(place, weights=confidence, minlength=bins) / filled
    shares = np.bincount(place, weights=came_true, minlength=bins) / filled
    return tuple(
        ReliabilityBin(number / bins, (number + 1) / bins, int(counts[number]), float(means[number]), float(shares[number]))
        for number in range(bins)
    )


def expected_calibration_error(scores: FloatArray, targets: NDArray[np.integer], bins: int = NUM_BINS) -> float:
    """The mean, over scores, of how far their bin's mean is from the share that came true: ECE, Guo et al. (2017), equation 3."""
    return calibration_error(reliability_bins(scores, targets, bins))


def calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """`expected_calibration_error` out of bins that are there already; 0 without scores."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.mean_confidence - each.accuracy) for each in bins) / max(total, 1)


def _confidences(scores: FloatArray, targets: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    known = scores.astype(np.float64)
    if targets.ndim == 1:
        return known.max(axis=1, initial=0.0), (known.argmax(axis=1) == targets).astype(np.float64)
    return known.ravel(), (targets.ravel() > 0).astype(np.float64)


def _temperature(slope: Callable[[float], float]) -> float:
    """1/x where *slope*, which never falls, is zero; a bound of the range where it is not zero inside."""
    low, high = np.log(1.0 / MAX_TEMPERATURE), np.log(1.0 / MIN_TEMPERATURE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if slope(float(np.exp(middle))) > 0.0 else (middle, high)
    return float(np.clip(np.exp(-(low + high) / 2.0), MIN_TEMPERATURE, MAX_TEMPERATURE))


def _finite(logits: FloatArray) -> NDArray[np.float64]:
    if not np.isfinite(logits).all():
        raise ValueError("logits are not finite: the head has not learned, or learned too fast")
    return logits.astype(np.float64)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return scores


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # exp of what is not positive alone, so that it never overflows.
    low = np.exp(-np.abs(logits))
    scores: NDArray[np.float64] = np.where(logits >= 0.0, 1.0, low) / (1.0 + low)
    return scores
