"""The most requests a second at which the tail stays within a bound, found by trying rates."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from perf.results import Run

GROWTH = 1.6
"""From a rate that was kept to the next, while none was too much."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A rate, requests a second, and whether it was within the bound."""

    rate: float
    is_within: bool


def next_rate(tried: Sequence[Tried], start_rate: float) -> float:
    """What to try next: *start_rate*, then up or down until a rate within the bound and one beyond it are known, then between.

    The least rate that was too much counts; one above it that was within was luck. Always above 0.
    """
    low, high = bracket(tried)
    if high is None:
        return low * GROWTH if low else start_rate
    return (low + high) / 2 if low else high / 2


def bracket(tried: Sequence[Tried]) -> tuple[float, float | None]:
    """The greatest rate within the bound below all that were not, 0 without one; and the least that was not."""
    high = min((one.rate for one in tried if not one.is_within), default=None)
    low = max((one.rate for one in tried if one.is_within and (high is None or one.rate < high)), default=0.0)
    return low, high


def is_within(run: Run, bound_ms: float) -> bool:
    """Whether *run* counts, answered all, and its p99 is at most *bound_ms*."""
    return not run.void and not run.num_errors and run.latency_ms.get("p99", float("inf")) <= bound_ms


async def most_within(
    bound_ms: float, measure: Callable[[float], Awaitable[Run]], start_rate: float, tries: int
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """The greatest rate found within *bound_ms* in so many *tries*, 0 when none was; and each rate tried with its p99 in ms.

    A run that answered nothing has no p99, and is not among the latter.
    """
    known: list[Tried] = []
    tails: list[tuple[float, float]] = []
    for _ in range(tries):
        rate = next_rate(known, start_rate)
        run = await measure(rate)
        known.append(Tried(rate, is_within(run, bound_ms)))
        if run.latency_ms:
            tails.append((rate, run.latency_ms["p99"]))
    return bracket(known)[0], tuple(tails)
