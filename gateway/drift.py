"""Whether the texts of today are still those a head was validated on: what it answers now against what it answered then.

The functions are pure; `DriftMonitor` owns the live answers, and Prometheus reads it. deploy/alerts/head_drift.yml says when
somebody should look.
"""

import math
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from clients.wire.catalogue import Catalogue, Manifest, ValidationSummary
from gateway.ports import FloatArray

MIN_SHARE: Final = 1e-4
"""A share of nothing counts as this much: the index below has no value for none at all."""

WINDOW_TEXTS: Final = 5_000
NO_LABEL: Final = ""
"""What a text of multi_label counts as that has none."""


@dataclass(frozen=True, slots=True)
class ConfidenceShift:
    """How much the live mean confidence is above validation's, and the standard error of that; None with less than two texts."""

    shift: float
    standard_error: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """One head version's live window against its validation.

    *stability_noise* is what the index is expected to be when nothing has drifted, by chance alone.
    """

    num_texts: int
    label_shares: Mapping[str, float]
    stability_index: float
    stability_noise: float
    distance: float
    mean_confidence: float
    confidence: ConfidenceShift


def population_stability_index(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Σ (actual - expected) · ln(actual / expected) over shares, each raised to `MIN_SHARE`: 0 when equal, without upper bound.

    Siddiqi: "Credit Risk Scorecards", 2006: below 0.1 nothing has changed, above 0.25 much has.
    """
    pairs = [(max(e, MIN_SHARE), max(a, MIN_SHARE)) for e, a in zip(expected, actual, strict=True)]
    return sum((a - e) * math.log(a / e) for e, a in pairs)


def stability_index_noise(num_labels: int, num_expected: int, num_actual: int) -> float:
    """The mean of `population_stability_index` between two samples of one distribution, of so many labels each.

    It is (labels - 1) · (1/n + 1/m), as the index is near to a sum of chi-squares (Yurdakul: "Statistical Properties of
    Population Stability Index", 2018).
    """
    return max(num_labels - 1, 0) * (1.0 / max(num_expected, 1) + 1.0 / max(num_actual, 1))


def jensen_shannon_distance(expected: Sequence[float], actual: Sequence[float]) -> float:
    """The square root of the Jensen-Shannon divergence to base 2: 0 for equal shares, 1 for shares with nothing in common.

    Endres, Schindelin: "A new metric for probability distributions", IEEE Transactions on Information Theory 49, 2003.
    """
    middle = [(e + a) / 2.0 for e, a in zip(expected, actual, strict=True)]
    divergence = (_divergence(expected, middle) + _divergence(actual, middle)) / 2.0
    return math.sqrt(min(max(divergence, 0.0), 1.0))


def confidence_shift(live: Sequence[float], validation: ValidationSummary) -> ConfidenceShift:
    """The mean of *live*, at least one, less validation's mean.

    The standard error takes the spread of the live confidences for that of both, as the summary has none.
    """
    mean = math.fsum(live) / len(live)
    shift = mean - validation.mean_confidence
    if len(live) < 2:
        return ConfidenceShift(shift, None)
    variance = math.fsum((each - mean) ** 2 for each in live) / (len(live) - 1)
    return ConfidenceShift(shift, math.sqrt(variance * (1.0 / len(live) + 1.0 / max(validation.num_texts, 1))))


def measure_drift(counts: Mapping[str, int], confidences: Sequence[float], validation: ValidationSummary) -> Drift | None:
    """The drift of a window in which each label was answered *counts* times; None for an empty one."""
    num_labels = sum(counts.values())
    if not confidences or not num_labels:
        return None
    names = sorted(validation.label_shares.keys() | counts.keys())
    expected = [validation.label_shares.get(name, 0.0) for name in names]
    actual = [counts.get(name, 0) / num_labels for name in names]
    shift = confidence_shift(confidences, validation)
    return Drift(
        len(confidences),
        dict(zip(names, actual, strict=True)),
        population_stability_index(expected, actual),
        stability_index_noise(sum(share > 0 for share in expected), validation.num_texts, len(confidences)),
        jensen_shannon_distance(expected, actual),
        validation.mean_confidence + shift.shift,
        shift,
    )


_NOTHING: Final = (NO_LABEL,)


@dataclass(slots=True)
class _Window:
    """The last answers of one version: for each text its labels and its confidence, and how often each label is among them.

    *names* are the manifest's labels, by their place; one that validation does not know is `NO_LABEL`, so that nobody can make up
    series.
    """

    validation: ValidationSummary
    names: tuple[str, ...]
    answers: deque[tuple[tuple[str, ...], float]]
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, labels: tuple[str, ...], confidence: float) -> None:
        answers, counts = self.answers, self.counts
        if len(answers) == answers.maxlen:
            gone, _ = answers.popleft()
            for label in gone:
                counts[label] -= 1
        answers.append((labels, confidence))
        for label in labels:
            counts[label] += 1


class DriftMonitor(Collector):
    """Owner of the live answers of the head versions it follows; thread-safe, as scrapes come from threads of their own.

    Memory is bounded by *window_texts* answers a followed version; what is not followed is not counted.
    """

    def __init__(self, registry: CollectorRegistry, *, window_texts: int = WINDOW_TEXTS) -> None:
        self._window_texts = window_texts
        self._windows: dict[tuple[str, int], _Window] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def follow(self, catalogue: Catalogue) -> None:
        """Count for exactly the versions of *catalogue* that say what validation was like; those known keep their answers."""
        wanted = {
            (name, version): (manifest, manifest.validation)
            for name, head in catalogue.heads.items()
            for version, manifest in head.versions.items()
            if manifest.validation is not None
        }
        with self._lock:
            self._windows = {key: self._kept_or_new(key, manifest, known) for key, (manifest, known) in wanted.items()}

    def answered(self, manifest: Manifest, scores: FloatArray) -> None:
        """See `gateway.ports.AnswerWatcher`. A text whose scores are no numbers is left out."""
        key = manifest.name, manifest.version
        if key not in self._windows:
            return
        said = _of_several(manifest, scores) if manifest.task == "multi_label" else _of_one(scores)
        with self._lock:
            window = self._windows.get(key)
            if window is None or len(window.names) != scores.shape[1]:
                return
            names = window.names
            for places, confidence in said:
                if math.isfinite(confidence):
                    window.add(tuple([name for place in places if (name := names[place])]) or _NOTHING, confidence)

    def drift(self, head: str, version: int) -> Drift | None:
        """The drift of one version; None when it is not followed or has not answered."""
        with self._lock:
            window = self._windows.get((head, version))
            counts = dict(window.counts) if window else {}
            confidences = [confidence for _, confidence in window.answers] if window else []
        return measure_drift(counts, confidences, window.validation) if window else None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """All gauges, computed now."""
        with self._lock:
            validations = {key: window.validation for key, window in self._windows.items()}
        gauges = _Gauges()
        for (head, version), validation in sorted(validations.items(), key=lambda pair: pair[0]):
            drift = self.drift(head, version)
            if drift is not None:
                gauges.add((head, str(version)), drift, validation)
        return gauges.families

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The gauges without values: registering asks for them."""
        return _Gauges().families

    def _kept_or_new(self, key: tuple[str, int], manifest: Manifest, validation: ValidationSummary) -> _Window:
        names = tuple(label if label in validation.label_shares else NO_LABEL for label in manifest.labels)
        known = self._windows.get(key)
        if known is not None and known.validation == validation and known.names == names:
            return known
        return _Window(validation, names, deque(maxlen=self._window_texts))


def _of_one(scores: FloatArray) -> list[tuple[Sequence[int], float]]:
    """The place of each text's best label, and how sure of it the head is."""
    return [((place,), scores.item(text, place)) for text, place in enumerate(scores.argmax(axis=1).tolist())]


def _of_several(manifest: Manifest, scores: FloatArray) -> list[tuple[Sequence[int], float]]:
    """The places of each text's labels, and the mean over labels of the score or one minus it, whichever is more."""
    least = np.asarray(manifest.thresholds or (0.5,) * len(manifest.labels), np.float32)
    said = [np.flatnonzero(row).tolist() for row in scores >= least]
    return list(zip(said, np.maximum(scores, 1.0 - scores).mean(axis=1).tolist(), strict=True))


class _Gauges:
    """The metrics and their names, which stand here and in deploy/alerts/head_drift.yml alone."""

    def __init__(self) -> None:
        version, label = ("head", "version"), ("head", "version", "label")
        self._texts = _gauge("window_texts", "Texts in the live window.", version)
        self._index = _gauge("label_stability_index", "Population stability index of live labels against validation.", version)
        self._noise = _gauge("label_stability_noise", "What that index is expected to be without any drift.", version)
        self._distance = _gauge("label_distance", "Jensen-Shannon distance of live labels from validation, 0 to 1.", version)
        self._live_share = _gauge("live_label_share", "Share of a label among the live answers.", label)
        self._share = _gauge("validation_label_share", "Share of a label among the answers in validation.", label)
        self._confidence = _gauge("live_mean_confidence", "Mean confidence of the live answers.", version)
        self._expected = _gauge("validation_mean_confidence", "Mean confidence in validation.", version)
        self._error = _gauge("confidence_shift_standard_error", "Standard error of live less validation's mean.", version)

    @property
    def families(self) -> list[GaugeMetricFamily]:
        """In the order they are shown."""
        return list(vars(self).values())

    def add(self, key: tuple[str, str], drift: Drift, validation: ValidationSummary) -> None:
        """The values of one version."""
        self._texts.add_metric(key, drift.num_texts)
        self._index.add_metric(key, drift.stability_index)
        self._noise.add_metric(key, drift.stability_noise)
        self._distance.add_metric(key, drift.distance)
        for label, share in drift.label_shares.items():
            self._live_share.add_metric((*key, label), share)
            self._share.add_metric((*key, label), validation.label_shares.get(label, 0.0))
        self._confidence.add_metric(key, drift.mean_confidence)
        self._expected.add_metric(key, validation.mean_confidence)
        if drift.confidence.standard_error is not None:
            self._error.add_metric(key, drift.confidence.standard_error)


def _gauge(name: str, words: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"trunkline_head_{name}", words, labels=labels)


def _divergence(shares: Sequence[float], middle: Sequence[float]) -> float:
    """Kullback-Leibler, to base 2."""
    return sum(share * math.log2(share / mean) for share, mean in zip(shares, middle, strict=True) if share > 0.0)
