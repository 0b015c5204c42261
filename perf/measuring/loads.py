"""One round of one load on one deployment, as a record."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import psutil

from perf.load import MOST_FAILED, LoadResult, bursts_of, closed_loop, cpu_measured, gaps_of, paced, repeated
from perf.open_loop import open_loop
from perf.results import NUM_QUANTILES, PERCENTILES, Load, Run
from perf.topologies.plan import RunningPlan
from perf.workloads import Workload

NUM_SEQUENTIAL: Final = 1_500
"""Sentences of the documents' protocol."""

MOST_SEQUENTIAL_SECONDS: Final = 120.0

LEAST_BEYOND: Final = 2
"""Answers that must lie beyond a percentile for it to be told."""

OVERRUN: Final = "too many requests were under way"
UNANSWERED: Final = "no request was answered"

SHARED_LOOP_REMARK: Final = (
    "Where a text is not one HTTP request, the generator of an open loop shares the event loop of the caller: its lag is part of "
    "the latencies there, is told, and voids nothing."
)


class PlanDied(Exception):
    """A process of the deployment has ended, or nothing answers any more; the message is one line."""


async def measure_load(
    plan: RunningPlan,
    workload: Workload,
    load: Load,
    *,
    seconds: float,
    round_number: int,
    seed: int | None = None,
    num_texts: int = NUM_SEQUENTIAL,
) -> Run:
    """One run of *load* for *seconds*; "sequential" is of *num_texts* texts instead, `MOST_SEQUENTIAL_SECONDS` at most.

    "sequential" and bulk requests are asked as the deployment's users ask (`RunningPlan.classify`); other loads by the cheaper
    HTTP generator where there is a target. Arrivals of an open loop are drawn by *seed*, by *round_number* where there is none.

    Raises:
        ValueError: an open loop of requests with many texts.
        PlanDied: a process is gone afterwards, or no request was answered and none could be sent.
    """
    result = await _loaded(plan, workload, load, seconds, round_number if seed is None else seed, num_texts)
    check_alive(plan, result)
    return run_of(plan.name, plan.num_heads, workload, load, round_number, result)


def check_alive(plan: RunningPlan, result: LoadResult) -> None:
    """Raise `PlanDied` when a process of *plan* has ended, or when nothing but lost connections came of *result*."""
    gone = [name for name, pid in plan.pids.items() if not _is_running(pid)]
    if gone:
        raise PlanDied(f"its process {gone[0]!r} ended during a run")
    if result.num_errors and not result.outcomes["200"]:
        what, count = result.outcomes.most_common(1)[0]
        raise PlanDied(f"no request was answered: {what} ({count} times)")


def run_of(system: str, num_heads: int, workload: Workload, load: Load, round_number: int, result: LoadResult) -> Run:
    """*result* as it is written down."""
    latencies = [seconds * 1000 for seconds in result.latencies]
    return Run(
        system=system,
        num_heads=num_heads,
        workload=workload.name,
        load=load,
        round=round_number,
        seconds=result.seconds,
        throughput=result.throughput,
        num_texts=result.outcomes["200"],
        num_errors=result.num_errors,
        latency_ms=latency_of(latencies),
        quantiles_ms=quantiles_of(latencies),
        cpu_ms_per_text=dict(result.cpu_ms_per_text) if result.outcomes["200"] else {},
        lag_p99_ms=result.lag_p99_ms if result.lags else None,
        void=why_void(result),
    )


def latency_of(milliseconds: Sequence[float]) -> dict[str, float]:
    """Mean, p50 and those of `PERCENTILES` beyond which `LEAST_BEYOND` lie; nothing of nothing."""
    if not len(milliseconds):
        return {}
    # In thousandths: 1 - 0.999 as a float would ask for one answer more.
    told = [p for p in PERCENTILES if p == 50 or len(milliseconds) * round(1000 - 10 * p) >= LEAST_BEYOND * 1000]
    points = np.percentile(milliseconds, told)
    return {"mean": float(np.mean(milliseconds)), **{f"p{p:g}": float(at) for p, at in zip(told, points, strict=True)}}


def quantiles_of(milliseconds: Sequence[float]) -> tuple[float, ...]:
    """`NUM_QUANTILES` of them, evenly from the least to the most; nothing of nothing."""
    if not len(milliseconds):
        return ()
    return tuple(np.quantile(milliseconds, np.linspace(0, 1, NUM_QUANTILES)).tolist())


def why_void(result: LoadResult) -> str:
    """Why the latencies mean nothing; "" when they do."""
    if result.is_overrun:
        return OVERRUN
    if not result.latencies:
        return UNANSWERED
    if result.is_void:
        return f"the generator was late: {result.lag_p99_ms:.1f} ms at p99"
    if result.has_failed_much:
        return f"{result.num_errors:,} of {result.outcomes.total():,} requests were not answered well"
    return ""


def has_failed_much(num_errors: int, num_good: int) -> bool:
    """Whether more than `MOST_FAILED` of them failed."""
    return num_errors > MOST_FAILED * (num_errors + num_good)


async def _loaded(plan: RunningPlan, workload: Workload, load: Load, seconds: float, seed: int, num_texts: int) -> LoadResult:
    pids = dict(plan.pids)
    match load.kind:
        case "sequential":
            return await one_at_a_time(plan, workload.texts, num_texts, MOST_SEQUENTIAL_SECONDS)
        case "closed":
            if plan.target is not None and load.texts_a_request == 1:
                return await closed_loop(plan.target(workload), in_flight=load.in_flight, seconds=seconds, pids=pids)
            caller = Caller(plan, workload.texts, load.texts_a_request)
            many = load.texts_a_request
            return await repeated(caller, texts=many, in_flight=load.in_flight, seconds=seconds, pids=pids)
        case "poisson" | "bursts":
            if load.texts_a_request != 1:
                raise ValueError("an open loop is of single texts")
            gaps = _gaps(load, seed)
            if plan.target is not None:
                return await open_loop(plan.target(workload), rate=load.rate, seconds=seconds, pids=pids, gaps=gaps)
            caller = Caller(plan, workload.texts, 1)
            return await paced(caller, rate=load.rate, seconds=seconds, classes=workload.classes, gaps=gaps, pids=pids)


def _gaps(load: Load, seed: int) -> Iterator[float]:
    return bursts_of(load.rate, seed) if load.kind == "bursts" else gaps_of(load.rate, seed)


class Caller:
    """Asks *plan* for the labels of *many* texts a call, over and over."""

    def __init__(self, plan: RunningPlan, texts: Sequence[str], many: int) -> None:
        self._plan = plan
        self._groups = [[texts[(first + place) % len(texts)] for place in range(many)] for first in range(0, len(texts), many)]

    async def __call__(self, number: int) -> None:
        """The call with this number.

        Raises:
            ValueError: another number of labels than texts came back. What the plan's client raises, too.
        """
        texts = self._groups[number % len(self._groups)]
        labels = await self._plan.classify(texts)
        if len(labels) != len(texts):
            raise ValueError(f"labels of {len(labels)} texts came for {len(texts)}")


async def one_at_a_time(plan: RunningPlan, texts: Sequence[str], count: int, most_seconds: float) -> LoadResult:
    """The documents' protocol: *count* of *texts*, from the first again after the last, each when the one before is answered.

    It ends early when *most_seconds* have passed.
    """
    result, caller = LoadResult(), Caller(plan, texts, 1)
    with cpu_measured(dict(plan.pids), result):
        started = result.begin(most_seconds)
        for number in range(count):
            began = time.perf_counter()
            if began > started + most_seconds:
                break
            try:
                await caller(number)
            except Exception as error:  # whatever it was, it is an outcome
                result.failed(type(error).__name__, began)
                # A refused connection must not become a busy loop.
                await asyncio.sleep(0.01)
            else:
                now = time.perf_counter()
                result.answered_in(now - began, now - began)
        result.end()
    return result


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
