"""`python -m perf.soak`: our embedding service under steady load for a long time: does it hold ever more?

An open loop at a share of the measured capacity; every few seconds the memory, open files and threads of the service's
processes. The median of the first quarter is compared with that of the last; open files and threads also before and after
the load, when all its connections are closed.
"""

import argparse
import asyncio
import csv
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console

from perf.load import LoadResult, Target, closed_loop
from perf.machine import Footprint, footprint
from perf.open_loop import open_loop
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.systems import OPENAI, Route, Running, our_service
from perf.trunks import long_trunk
from perf.workloads import Workload
from trunkline import paths

IN_FLIGHT = 64
WARM_UP_SECONDS = 5.0
REST_SECONDS = 2.0
MOST_GROWN_MB: Final = 10.0
MOST_MORE_AT_REST: Final = 2
"""Open files, and threads."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the service's processes held, so many seconds after the start."""

    seconds: float
    rss_bytes: int
    num_fds: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Medians of the first quarter and of the last, and what is wrong, in words; nothing where all is well."""

    rss_mb: tuple[float, float]
    num_fds: tuple[float, float]
    num_threads: tuple[float, float]
    faults: tuple[str, ...]

    @property
    def grown_mb(self) -> float:
        """Of memory."""
        return self.rss_mb[1] - self.rss_mb[0]

    def __str__(self) -> str:
        pairs = {"memory MB": self.rss_mb, "open files": self.num_fds, "threads": self.num_threads}
        told = ", ".join(f"{name} {first:.0f} -> {last:.0f}" for name, (first, last) in pairs.items())
        end = "steady" if not self.faults else "NOT steady: " + "; ".join(self.faults)
        return f"{told}; grown by {self.grown_mb:.1f} MB; {end}"


def verdict_of(samples: Sequence[Sample], at_rest: tuple[Footprint, Footprint], num_errors: int = 0) -> Verdict:
    """Compare the ends of *samples*, in their order, and what was held before the load and after it.

    Raises:
        ValueError: the samples are fewer than four.
    """
    if len(samples) < 4:
        raise ValueError("a verdict needs at least four samples; run longer, or sample more often")
    quarter = len(samples) // 4

    def ends(value_of: Callable[[Sample], float]) -> tuple[float, float]:
        values = [value_of(sample) for sample in samples]
        return statistics.median(values[:quarter]), statistics.median(values[-quarter:])

    before, after = at_rest
    rss = ends(lambda sample: sample.rss_bytes / 1e6)
    found = {
        "memory grew": rss[1] - rss[0] > MOST_GROWN_MB,
        "files stayed open": after.num_fds - before.num_fds > MOST_MORE_AT_REST,
        "threads stayed": after.num_threads - before.num_threads > MOST_MORE_AT_REST,
        f"{num_errors} requests failed": num_errors > 0,
    }
    faults = tuple(fault for fault, is_so in found.items() if is_so)
    return Verdict(rss, ends(lambda sample: sample.num_fds), ends(lambda sample: sample.num_threads), faults)


@dataclass(frozen=True, slots=True)
class Distinct(Target):
    """Texts that never come again: each is led by a number. *route* makes the bodies of *texts*."""

    route: Route = OPENAI
    texts: Sequence[str] = ()

    def endless(self) -> Iterator[tuple[bytes, str]]:
        """See `Target`."""
        for number, text in enumerate(itertools.cycle(self.texts)):
            yield self.route.body_of(f"{number} {text}"), ""


def target_for(service: Running, workload: Workload, *, is_distinct: bool) -> Target:
    """The load's requests."""
    route = service.routes[0]
    target = service.target(route, workload)
    if not is_distinct:
        return target
    return Distinct(target.host, target.port, target.path, (), texts=workload.texts, route=route)


async def sampled(pid: int, load: "asyncio.Task[LoadResult]", every: float, say: Callable[[Sample], None]) -> list[Sample]:
    """What the tree of *pid* holds while *load* runs, *every* so many seconds."""
    samples: list[Sample] = []
    started = time.monotonic()
    while not load.done():
        await asyncio.wait([load], timeout=every)
        held = footprint(pid)
        samples.append(Sample(time.monotonic() - started, held.rss_bytes, held.num_fds, held.num_threads))
        say(samples[-1])
    return samples


async def resting(pid: int) -> Footprint:
    """What the tree of *pid* holds when the load's connections had time to go."""
    await asyncio.sleep(REST_SECONDS)
    return footprint(pid)


def write_csv(path: Path, samples: Sequence[Sample]) -> None:
    """A line a sample, under the fields' names."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Sample)])
        writer.writerows(map(astuple, samples))


async def run(given: argparse.Namespace, workload: Workload, console: Console) -> bool:
    """Start, measure capacity, load, tell; whether it was steady."""
    trunk = long_trunk(paths.cache_dir())
    async with our_service(trunk, engine=given.engine, cache_bytes=given.cache_bytes, say=console.print) as service:
        target = target_for(service, workload, is_distinct=given.cache_bytes > 0)
        await closed_loop(target, in_flight=IN_FLIGHT, seconds=WARM_UP_SECONDS)
        capacity = (await closed_loop(target, in_flight=IN_FLIGHT, seconds=given.seconds)).throughput
        if not capacity:
            raise SystemExit("nothing was answered: there is no capacity to load a share of")
        rate = given.share * capacity
        console.print(f"{workload}: capacity {capacity:.0f} texts/s, offered {rate:.0f} for {given.minutes:g} minutes")
        pids = {service.name: service.pid}
        before = await resting(service.pid)
        load = asyncio.create_task(open_loop(target, rate=rate, seconds=given.minutes * 60, pids=pids))
        samples = await sampled(service.pid, load, given.every, lambda sample: console.print(said(sample)))
        result = await load
        after = await resting(service.pid)
    if given.csv:
        write_csv(given.csv, samples)
    verdict = verdict_of(samples, (before, after), result.num_errors)
    console.print(result.summary())
    console.print(str(verdict))
    return not verdict.faults


def said(sample: Sample) -> str:
    """One line."""
    held = f"{sample.rss_bytes / 1e6:.1f} MB, {sample.num_fds} open files, {sample.num_threads} threads"
    return f"  {sample.seconds:6.0f} s: {held}"


def main() -> None:
    """The command line; exit status 1 when the service is not steady."""
    parser = argparse.ArgumentParser("python -m perf.soak", description=__doc__)
    add_common(parser, seconds=10.0, workloads=("mix",))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--share", type=float, default=0.7, help="of the capacity that a closed loop of --seconds finds")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    cache_help = "the service's cache; with any, no text comes twice: choose it so small that it is full in the first quarter"
    parser.add_argument("--cache-bytes", type=int, default=0, help=cache_help)
    parser.add_argument("--csv", type=Path, help="write the samples there")
    given = parser.parse_args()
    if given.minutes * 60 < 4 * given.every:
        parser.error("--minutes gives fewer than four samples: run longer, or sample more often with --every")
    console = wide_console()
    is_steady = [uvloop.run(run(given, workload, console)) for workload in workloads_asked_for(given)]
    raise SystemExit(not all(is_steady))


if __name__ == "__main__":
    main()
