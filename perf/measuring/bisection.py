"""The most requests a second at which the tail stays within a bound, found by trying rates."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from perf.measuring.loads import OVERRUN, UNANSWERED, has_failed_much
from perf.results import NUM_QUANTILES, Run

LEAST_SHARE: Final = 0.2
MOST_SHARE: Final = 1.1
"""Of what a deployment takes in the closed loop: between them the rates are looked for."""

_P99: Final = round(0.99 * (NUM_QUANTILES - 1))

Judgement = Literal["within", "too much", "unusable"]


@dataclass(frozen=True, slots=True)
class Tried:
    """A rate, requests a second, and what its run says of it."""

    rate: float
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Bracket:
    """The greatest rate within the bound, 0 without one; the least that was too much, None without one.

    *tried* are the rates that count, each with its p99 in ms; one at which nothing was answered has none and is left out.
    """

    rate: float
    least_too_much: float | None
    tried: tuple[tuple[float, float], ...]


def next_rate(tried: Sequence[Tried], peak: float) -> float:
    """What to try next: the geometric middle of what is left between `LEAST_SHARE` and `MOST_SHARE` of *peak*.

    A rate whose run was unusable says nothing, and is not tried again: the next lies below it.
    """
    low, high = bracket(tried)
    low = low or LEAST_SHARE * peak
    high = high or MOST_SHARE * peak
    unusable = (one.rate for one in tried if one.judgement == "unusable" and low < one.rate < high)
    return math.sqrt(low * min(unusable, default=high))


def bracket(tried: Sequence[Tried]) -> tuple[float, float | None]:
    """The greatest rate within the bound below all that were too much, 0 without one; and the least that was too much.

    The least rate that was too much counts; one above it that was within was luck.
    """
    high = min((one.rate for one in tried if one.judgement == "too much"), default=None)
    within = (one.rate for one in tried if one.judgement == "within" and (high is None or one.rate < high))
    return max(within, default=0.0), high


def judged(run: Run, bound_ms: float) -> Judgement:
    """What *run* says of its rate.

    Too much: requests piled up, too many failed, or p99 is above *bound_ms*. Unusable: others used the machine, or the
    generator was late; that is no fault of the deployment.
    """
    if run.is_disturbed:
        return "unusable"
    if run.void in {OVERRUN, UNANSWERED} or has_failed_much(run.num_errors, run.num_texts):
        return "too much"
    if run.void:
        return "unusable"
    tail = tail_of(run)
    return "within" if tail is not None and tail <= bound_ms else "too much"


def tail_of(run: Run) -> float | None:
    """p99 in ms, by the quantiles where there are too few answers to tell it as a number; None of no answers.

    Whether one answer in a hundred took longer than a bound can be seen in fewer answers than how long it took.
    """
    return run.latency_ms.get("p99", run.quantiles_ms[_P99] if run.quantiles_ms else None)


async def most_within(bound_ms: float, measure: Callable[[float], Awaitable[Run]], peak: float, tries: int) -> Bracket | None:
    """What so many *tries* of rates find, around the closed loop's *peak* a second; None when no run was usable.

    A rate whose run is unusable is measured once more, and does not count when that run is, too.
    """
    known: list[Tried] = []
    tails: list[tuple[float, float]] = []
    for _ in range(tries):
        rate = next_rate(known, peak)
        run = await measure(rate)
        if judged(run, bound_ms) == "unusable":
            run = await measure(rate)
        known.append(Tried(rate, judged(run, bound_ms)))
        tail = tail_of(run)
        if known[-1].judgement != "unusable" and tail is not None:
            tails.append((rate, tail))
    if all(one.judgement == "unusable" for one in known):
        return None
    return Bracket(*bracket(known), tuple(tails))
