"""How numbers of several rounds are told."""

import statistics
from collections.abc import Sequence

from perf.load import LoadResult


def spread(values: Sequence[float], form: str = "{:.2f}x") -> str:
    """The median of *values*, from the least to the most, each written as *form* says."""
    if not values:
        return "nothing measured"
    middle, least, most = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} (from {least} to {most}, {len(values)} rounds)"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round; a round in which either is nothing, or not a number, is left out."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True) if mine > 0 and other > 0]


def tail_ratios(ours: Sequence[LoadResult], theirs: Sequence[LoadResult], percent: float, of: str | None = None) -> list[float]:
    """Ours over theirs at a percentile of the latencies (of the class *of*).

    Without the rounds that were void on either side, or in which too many failed: who answers few answers those soon.
    """
    pairs = zip(ours, theirs, strict=True)
    fair = [pair for pair in pairs if not any(result.is_void or result.has_failed_much for result in pair)]
    return ratios([mine.percentile_ms(percent, of) for mine, _ in fair], [other.percentile_ms(percent, of) for _, other in fair])
