"""`python -m perf.overload`: what our embedding service, or with --gateway the whole stack, does with more than it can take.

Its peak in a closed loop first, then that many times as much in an open loop. What counts: good answers beside the peak, how
quickly the others are refused (429 and 503), the memory it takes meanwhile, that nothing fails in any other way, and how soon
afterwards half of the peak is answered as quickly as before.
"""

import argparse
import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import uvloop
from rich.console import Console

from clients.wire.http_server import allow_many_connections
from perf.load import LoadResult, Target, closed_loop, gaps_of, milliseconds_at, on_grid
from perf.machine import footprint
from perf.open_loop import open_loop
from perf.rounds import Rounds
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.soak import target_for
from perf.systems import Running, our_gateway, our_service
from perf.trunks import long_trunk
from perf.workloads import Workload
from trunkline import paths

HEAD = "sentiment"
REFUSALS = frozenset({"429", "503"})
IN_FLIGHT = 64
MAX_UNDER_WAY = 8_192
"""More than the service's queue holds, so that it is the service that refuses."""

GRID_SECONDS = 0.004
"""Where far more is sent than the service can take, a wake-up for each request takes a seventh of two cores from it."""

MAX_LAG_SECONDS = 0.02
"""Of the generator, at the 99th percentile: answers wait for two seconds here, and a refusal may take 0.1."""

SAMPLE_SECONDS = 0.5
CALM_SHARE = 0.5
"""Of the peak: what is offered before and after."""
CALM_SECONDS = 5.0
BIN_SECONDS = 0.5
CALM_TIMES = 2.0
"""An answer's p90 of so many times that of before counts as normal again."""
WARM_UP_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Overloaded:
    """*goodput* is good answers over the peak; *other* counts what was neither answered well nor refused."""

    goodput: float
    num_refused: int
    refusal_p50_ms: float
    refusal_p99_ms: float
    grown_mb: float
    other: dict[str, int]

    def __str__(self) -> str:
        refused = f"{self.num_refused} refused in p50 {self.refusal_p50_ms:.1f} p99 {self.refusal_p99_ms:.1f} ms"
        others = f"other outcomes {self.other}" if self.other else "no other errors"
        return f"goodput {self.goodput:.1%} of the peak; {refused}; memory grew by {self.grown_mb:.0f} MB; {others}"


def overloaded_of(result: LoadResult, peak: float, rss_before: int, rss_most: int) -> Overloaded:
    """What an overloaded run says; *peak* in texts a second, memory in bytes."""
    refused = [seconds for status in REFUSALS for seconds in result.answer_seconds.get(status, [])]
    other = {what: count for what, count in result.outcomes.items() if what != "200" and what not in REFUSALS}
    grown = (rss_most - rss_before) / 1e6
    return Overloaded(
        result.throughput / peak, len(refused), milliseconds_at(50, refused), milliseconds_at(99, refused), grown, other
    )


def memory(service: Running) -> int:
    """Resident bytes of all its processes."""
    return sum(footprint(pid).rss_bytes for pid in service.pids.values())


async def overload(service: Running, target: Target, rate: float, seconds: float, seed: int) -> tuple[LoadResult, int]:
    """Offer *rate*; with the most resident bytes the service had meanwhile."""
    gaps = on_grid(gaps_of(rate, seed), GRID_SECONDS)
    load = asyncio.create_task(
        open_loop(target, rate=rate, seconds=seconds, pids=service.pids, max_under_way=MAX_UNDER_WAY, gaps=gaps)
    )
    most = 0
    while not load.done():
        await asyncio.wait([load], timeout=SAMPLE_SECONDS)
        most = max(most, memory(service))
    result = await load
    result.max_lag_seconds = MAX_LAG_SECONDS
    return result, most


def seconds_to_calm(latencies: Sequence[float], rate: float, normal_p90: float, failed_at: Sequence[float] = ()) -> float | None:
    """When all were answered, as soon as usual, again: the end of the last bin of `BIN_SECONDS` that was not so; None: never.

    *latencies*, in seconds, of requests that came at *rate* a second, in that order; *normal_p90* in seconds. *failed_at*: when
    those came that were not answered well, in seconds. A service that answers nothing, or did not answer before (NaN), is not
    calm.
    """
    if not latencies or math.isnan(normal_p90):
        return None
    size = max(1, round(rate * BIN_SECONDS))
    bins = [latencies[start : start + size] for start in range(0, len(latencies), size)]
    slow = [place for place, one in enumerate(bins) if milliseconds_at(90, one) > CALM_TIMES * normal_p90 * 1000]
    slow += [int(at / BIN_SECONDS) for at in failed_at]
    last = max(slow, default=-1)
    num_bins = math.ceil((len(latencies) + len(failed_at)) / size)
    return None if last >= num_bins - 1 else (last + 1) * BIN_SECONDS


async def measure(service: Running, workload: Workload, given: argparse.Namespace, console: Console) -> None:
    """In each round the peak, then the overload."""
    # No text twice: equal ones that wait at once would share a pass, and make more of the service than it is.
    target = target_for(service, workload, is_distinct=True)
    rounds = Rounds(list(service.pids.values()), console.print, given.waits)
    console.print(str(workload))
    await closed_loop(target, in_flight=IN_FLIGHT, seconds=WARM_UP_SECONDS)
    usual_p90s: list[float] = []
    for number in range(given.rounds):
        at_peak = await rounds.take(partial(closed_loop, target, in_flight=IN_FLIGHT, seconds=given.seconds, pids=service.pids))
        console.print(f"  peak: {at_peak.summary()}")
        if not at_peak.throughput:
            raise SystemExit("nothing was answered at the peak: there is nothing to compare with")
        calm_rate = CALM_SHARE * at_peak.throughput
        for times in given.times:
            calm = await open_loop(target, rate=calm_rate, seconds=CALM_SECONDS, seed=number, is_poisson=False)
            before = memory(service)
            result, most = await rounds.take(
                partial(overload, service, target, times * at_peak.throughput, given.seconds, number)
            )
            console.print(f"  {times:g} times that: {result.summary()}")
            console.print(f"  {overloaded_of(result, at_peak.throughput, before, most)}")
            after = await open_loop(target, rate=calm_rate, seconds=2 * CALM_SECONDS, seed=number, is_poisson=False)
            usual_p90s.append(calm.percentile_ms(90) / 1000)
            # One round's alone may be a lucky one: at half of the peak they differ by a factor of two.
            normal = seconds_to_calm(after.latencies, calm_rate, statistics.median(usual_p90s), after.failed_at)
            console.print(f"  half of the peak before: {calm.summary()}")
            console.print(f"  half of the peak after:  {after.summary()}")
            told = "not within the time looked at" if normal is None else f"after {normal:.1f} s"
            console.print(f"  answered as quickly as before: {told}")


async def run(given: argparse.Namespace, workloads: list[Workload], console: Console) -> None:
    """Start, measure, stop."""
    if given.gateway:
        service = our_gateway([HEAD], engine=given.engine, say=console.print)
    else:
        service = our_service(long_trunk(paths.cache_dir()), engine=given.engine, say=console.print)
    async with service as running:
        for workload in workloads:
            await measure(running, workload, given, console)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.overload", description=__doc__)
    add_common(parser, seconds=20.0, rounds=3)
    parser.add_argument("--times", type=float, nargs="+", default=[2.0], help="the peak is offered so many times over")
    parser.add_argument("--gateway", action="store_true", help=f"the whole stack, asked for the demo's head {HEAD}")
    given = parser.parse_args()
    allow_many_connections()
    uvloop.run(run(given, workloads_asked_for(given), wide_console()))


if __name__ == "__main__":
    main()
