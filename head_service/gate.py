"""May a version answer? A pure decision over what was measured, and the measuring by what is passed in.

Two conditions: the version answers its golden examples as it did when it was exported, and on the frozen test part it is no
worse than the live version by more than a tolerance. Two numbers are compared only when they were measured on the same texts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from clients.wire.catalogue import GoldenExample, Manifest, Metrics

GOLDEN_TOLERANCE: Final = 0.01
"""Of a score. The texts are embedded anew for it, and in bfloat16 a vector changes a little with the company in its batch: .0001
of a score was seen. A head that is not the one exported is far beyond this."""

METRIC_TOLERANCE: Final = 0.005

Verdict = Literal["passed", "refused", "incomparable"]
MetricName = Literal["accuracy", "macro_f1"]

METRICS: Final[Mapping[str, MetricName]] = {"single_label": "accuracy", "multi_label": "macro_f1", "regression": "accuracy"}
"""By task, what versions of a head are compared by; a regression's accuracy is its R²."""

Scorer = Callable[[Manifest, Sequence[str]], Sequence[Sequence[float]]]
"""(manifest, texts): the scores that this version, on the head server, gives now: a row a text, in the order of the labels."""

Remeasure = Callable[[Manifest, Metrics], Metrics | None]
"""(live manifest, the candidate's metrics): the live version measured on the candidate's test part; None: that cannot be had."""


class GoldenCheck(msgspec.Struct, frozen=True):
    """How far the scores of *num_examples* are from the recorded ones; *problem* is "" when they are near enough.

    *max_difference* is None when there is nothing to subtract, or what is there is not a number.
    """

    num_examples: int
    max_difference: float | None
    problem: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate found. *metric* of both, on the test part whose digest is *data*; *live_version* None: there was none."""

    verdict: Verdict
    reason: str
    version: int
    live_version: int | None = None
    metric: MetricName = "accuracy"
    candidate: float | None = None
    live: float | None = None
    tolerance: float = METRIC_TOLERANCE
    data: str = ""
    golden: GoldenCheck | None = None


def check_golden(
    examples: Sequence[GoldenExample], scores: Sequence[Sequence[float]], tolerance: float = GOLDEN_TOLERANCE
) -> GoldenCheck:
    """Compare recorded scores with *scores*, a row an example."""
    if not examples:
        return GoldenCheck(0, None, "it has no golden examples to be checked by")
    if [len(example.scores) for example in examples] != [len(row) for row in scores]:
        return GoldenCheck(len(examples), None, "the head server's scores have another shape than the recorded ones")
    differences = [
        abs(now - then)
        for example, row in zip(examples, scores, strict=True)
        for now, then in zip(row, example.scores, strict=True)
    ]
    # A score that is not a number differs without limit; max() alone would lose it.
    worst = max((difference if math.isfinite(difference) else math.inf for difference in differences), default=0.0)
    far = f"its golden examples differ by {worst:.2g} from what was recorded; at most {tolerance:g} is allowed"
    if not math.isfinite(worst):
        return GoldenCheck(len(examples), None, "its scores on the golden examples are not numbers")
    return GoldenCheck(len(examples), worst, "" if worst <= tolerance else far)


def metric_of(manifest: Manifest) -> MetricName:
    """What versions of *manifest*'s head are compared by."""
    return METRICS[manifest.task]


def decide(
    candidate: Manifest,
    live: Manifest | None,
    golden: GoldenCheck,
    *,
    live_metrics: Metrics | None,
    tolerance: float = METRIC_TOLERANCE,
) -> Comparison:
    """The verdict on *candidate*; *live_metrics* are the live version's on the candidate's test part, if they can be had."""
    metric = metric_of(candidate)
    mine = _value(candidate.metrics, metric)
    found = Comparison(
        verdict="passed",
        reason="",
        version=candidate.version,
        live_version=live.version if live else None,
        metric=metric,
        candidate=mine,
        live=_value(live_metrics, metric),
        tolerance=tolerance,
        data=candidate.metrics.data if candidate.metrics else "",
        golden=golden,
    )
    verdict, reason = _verdict(found, live, live_metrics)
    return msgspec.structs.replace(found, verdict=verdict, reason=reason)


def weigh(
    candidate: Manifest,
    live: Manifest | None,
    *,
    scorer: Scorer,
    remeasure: Remeasure | None = None,
    tolerance: float = METRIC_TOLERANCE,
    golden_tolerance: float = GOLDEN_TOLERANCE,
) -> Comparison:
    """Measure what `decide` needs, and decide. Whatever *scorer* and *remeasure* raise goes through.

    A live version of another trunk is none to compare with: no gateway on the candidate's trunk lets it answer.
    """
    if live is not None and live.trunk.fingerprint != candidate.trunk.fingerprint:
        live = None
    scores = scorer(candidate, [example.text for example in candidate.golden]) if candidate.golden else ()
    golden = check_golden(candidate.golden, scores, golden_tolerance)
    return decide(candidate, live, golden, live_metrics=_same_data(candidate, live, remeasure), tolerance=tolerance)


def as_found(kept: Comparison) -> Remeasure:
    """What *kept* says of the live version: where that one is live still, and for the very texts that *kept* is of."""

    def remeasure(live: Manifest, candidate: Metrics) -> Metrics | None:
        if kept.live is None or (kept.live_version, kept.data) != (live.version, candidate.data):
            return None
        # Not a number, which is compared with nothing, in the place of the metric that was not kept.
        known = {"accuracy": math.nan, "macro_f1": math.nan} | {kept.metric: kept.live}
        return msgspec.structs.replace(candidate, **known)

    return remeasure


def _same_data(candidate: Manifest, live: Manifest | None, remeasure: Remeasure | None) -> Metrics | None:
    if live is None or candidate.metrics is None:
        return None
    if live.metrics is not None and live.metrics.data == candidate.metrics.data:
        return live.metrics
    return remeasure(live, candidate.metrics) if remeasure else None


def _verdict(found: Comparison, live: Manifest | None, live_metrics: Metrics | None) -> tuple[Verdict, str]:
    if found.golden and found.golden.problem:
        return "refused", found.golden.problem
    if live is None:
        return "passed", "no version of its trunk is live that it could be compared with"
    if found.candidate is None or not math.isfinite(found.candidate):
        return "refused", f"its {found.metric} was never measured"
    if live_metrics is None or live_metrics.data != found.data or found.live is None or not math.isfinite(found.live):
        return "incomparable", f"live version {live.version} was measured on other texts, so the two cannot be compared"
    said = f"{found.metric} {found.candidate:.4f} against {found.live:.4f} of live version {live.version}"
    # Rounding in the subtraction must not refuse what is exactly at the tolerance.
    if found.candidate >= found.live - found.tolerance - 1e-12:
        return "passed", said
    return "refused", f"{said}; {found.tolerance:g} less is allowed"


def _value(metrics: Metrics | None, metric: MetricName) -> float | None:
    if metrics is None:
        return None
    value: float = getattr(metrics, metric)
    return value
