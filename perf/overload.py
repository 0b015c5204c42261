"""`python -m perf.overload`: what our embedding service still does when offered more than it can take.

Its peak in a closed loop first, then that many times as much in an open loop. What counts: good answers beside the peak, how
quickly the others are refused (429 and 503), the memory it takes meanwhile, and that nothing fails in any other way.
"""

import argparse
import asyncio
from dataclasses import dataclass
from functools import partial

import uvloop
from rich.console import Console

from perf.load import LoadResult, Target, closed_loop, milliseconds_at
from perf.machine import footprint
from perf.open_loop import open_loop
from perf.rounds import Rounds
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.soak import target_for
from perf.systems import Running, our_service
from perf.trunks import long_trunk
from perf.workloads import Workload
from trunkline import paths

REFUSALS = frozenset({"429", "503"})
IN_FLIGHT = 64
MAX_UNDER_WAY = 8_192
"""More than the service's queue holds, so that it is the service that refuses."""

SAMPLE_SECONDS = 0.5
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


async def overload(service: Running, target: Target, rate: float, seconds: float, seed: int) -> tuple[LoadResult, int]:
    """Offer *rate*; with the most resident bytes the service had meanwhile."""
    pids = {service.name: service.pid}
    load = asyncio.create_task(open_loop(target, rate=rate, seconds=seconds, pids=pids, seed=seed, max_under_way=MAX_UNDER_WAY))
    most = 0
    while not load.done():
        await asyncio.wait([load], timeout=SAMPLE_SECONDS)
        most = max(most, footprint(service.pid).rss_bytes)
    return await load, most


async def measure(service: Running, workload: Workload, given: argparse.Namespace, console: Console) -> None:
    """In each round the peak, then the overload."""
    # No text twice: equal ones that wait at once would share a pass, and make more of the service than it is.
    target, pids = target_for(service, workload, is_distinct=True), {service.name: service.pid}
    rounds = Rounds(list(pids.values()), console.print, given.waits)
    console.print(str(workload))
    await closed_loop(target, in_flight=IN_FLIGHT, seconds=WARM_UP_SECONDS)
    for number in range(given.rounds):
        at_peak = await rounds.take(partial(closed_loop, target, in_flight=IN_FLIGHT, seconds=given.seconds, pids=pids))
        console.print(f"  peak: {at_peak.summary()}")
        before, rate = footprint(service.pid).rss_bytes, given.times * at_peak.throughput
        result, most = await rounds.take(partial(overload, service, target, rate, given.seconds, number))
        console.print(f"  {given.times:g} times that: {result.summary()}")
        console.print(f"  {overloaded_of(result, at_peak.throughput, before, most)}")


async def run(given: argparse.Namespace, workloads: list[Workload], console: Console) -> None:
    """Start, measure, stop."""
    async with our_service(long_trunk(paths.cache_dir()), engine=given.engine, say=console.print) as service:
        for workload in workloads:
            await measure(service, workload, given, console)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.overload", description=__doc__)
    add_common(parser, seconds=20.0, rounds=3)
    parser.add_argument("--times", type=float, default=2.0, help="the peak is offered so many times over")
    given = parser.parse_args()
    uvloop.run(run(given, workloads_asked_for(given), wide_console()))


if __name__ == "__main__":
    main()
