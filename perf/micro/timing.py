"""How a call that takes microseconds is timed: so many calls that a round lasts, rounds of all benchmarks in turns, no collector.

Calls are counted so that each round of each benchmark takes about as long. Rounds go A B C A B C …, so that whatever slows the
machine for a while slows all of them, the yardsticks included. The garbage collector stands still while a round is timed.
"""

import gc
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Final

from perf.results import Micro

ROUND_SECONDS: Final = 0.05
MAX_CALLS: Final = 1_000_000

Calls = Callable[[int], Awaitable[None]]
"""Makes so many calls, one after another."""

Progress = Callable[[int, int], None]
"""Told how many rounds are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What is timed. *pids* are other processes that work for the call: their CPU time counts, too."""

    name: str
    calls: Calls
    note: str = ""
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds that some calls took together, on the wall and of all CPUs."""

    wall: float
    cpu: float


def of_function(name: str, call: Callable[[], object], note: str = "") -> Benchmark:
    """A benchmark of *call*."""

    async def calls(count: int) -> None:
        for _ in repeat(None, count):
            call()

    return Benchmark(name, calls, note)


def of_coroutine(name: str, call: Callable[[], Awaitable[object]], note: str = "", pids: tuple[int, ...] = ()) -> Benchmark:
    """A benchmark of *call*, awaited."""

    async def calls(count: int) -> None:
        for _ in repeat(None, count):
            await call()

    return Benchmark(name, calls, note, pids)


def cpu_clock(pid: int) -> float:
    """Seconds of CPU time of a process, all threads, to the nanosecond where proc(5) has only ticks.

    The number of another process' clock is made as Linux and glibc's `clock_getcpuclockid` make it: the complement of the
    process, three bits further up, and 2 for the scheduler's own account.

    Raises:
        OSError: there is no such process.
    """
    return time.clock_gettime((~pid << 3) | 2)


async def spend(benchmark: Benchmark, count: int) -> Spent:
    """What *count* calls take."""
    with _no_collector():
        cpu, began = _cpu_seconds(benchmark.pids), time.perf_counter()
        await benchmark.calls(count)
        wall = time.perf_counter() - began
        return Spent(wall, _cpu_seconds(benchmark.pids) - cpu)


async def calls_a_round(benchmark: Benchmark, seconds: float) -> int:
    """How many calls take about *seconds*: what was doubled until it took a quarter of that, extrapolated. Warms up, too."""
    count = 1
    while True:
        wall = (await spend(benchmark, count)).wall
        if wall >= seconds / 4 or count >= MAX_CALLS:
            return extrapolated(count, wall, seconds)
        count *= 2


def extrapolated(count: int, wall: float, seconds: float) -> int:
    """How many calls take *seconds* where *count* of them took *wall*; from 1 to `MAX_CALLS`."""
    return max(1, min(MAX_CALLS, round(count * seconds / wall) if wall > 0 else MAX_CALLS))


async def measured(
    benchmarks: Sequence[Benchmark],
    rounds: int,
    *,
    seconds: float = ROUND_SECONDS,
    progress: Progress = lambda done, of: None,
) -> tuple[Micro, ...]:
    """Each of *benchmarks* in *rounds* rounds of about *seconds*, in turns. Of each round the mean of its calls."""
    with _frozen():
        counts = [await calls_a_round(benchmark, seconds) for benchmark in benchmarks]
        taken: list[list[Spent]] = [[] for _ in benchmarks]
        for done in range(rounds):
            for benchmark, count, spent in zip(benchmarks, counts, taken, strict=True):
                spent.append(await spend(benchmark, count))
            progress(done + 1, rounds)
    return tuple(
        Micro(
            name=benchmark.name,
            microseconds=tuple(_microseconds(one.wall, count) for one in spent),
            cpu_microseconds=tuple(_microseconds(one.cpu, count) for one in spent),
            note=benchmark.note,
        )
        for benchmark, count, spent in zip(benchmarks, counts, taken, strict=True)
    )


def _microseconds(seconds: float, count: int) -> float:
    """Of one call; more places than these say nothing."""
    return round(seconds / count * 1e6, 4)


def _cpu_seconds(pids: Iterable[int]) -> float:
    return time.process_time() + sum(map(cpu_clock, pids))


@contextmanager
def _no_collector() -> Iterator[None]:
    """What the calls leave behind is collected before they begin and after they end, not meanwhile."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _frozen() -> Iterator[None]:
    """What is there already is not looked through by each collection."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
