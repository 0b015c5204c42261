"""`python -m perf.micro.head_swaps`: new versions of a head under load: what fails, and what the calls about a swap take.

Open loop, one connection, two heads in turns: one is swapped again and again, the other only shares the server. Latency counts
from when a call was due. A swap is seen when the first answer of a new version comes.
"""

import argparse
import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clients import AsyncHeadClient, TrunklineError
from perf.load import milliseconds_at
from perf.machine import footprint
from perf.micro.served_heads import INPUT, WIDTH, served
from perf.settings import wide_console

SWAPPED: Final = "swapped"
BESIDE: Final = "beside"
FIRST_CALLS: Final = 50
SETTLING_CALLS: Final = 200


@dataclass(slots=True)
class Calls:
    """What came back. Latencies in seconds, of good answers. *rss_bytes*: the server's, before the load and after."""

    failed: list[str] = field(default_factory=list)
    went_back: int = 0
    steady: list[float] = field(default_factory=list)
    first_after: list[float] = field(default_factory=list)
    beside_steady: list[float] = field(default_factory=list)
    beside_loading: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    num_calls: int = 0
    version: int = 0
    since_swap: int = SETTLING_CALLS
    is_loading: bool = False
    rss_bytes: tuple[int, int] = (0, 0)
    seen: asyncio.Event = field(default_factory=asyncio.Event)

    def answered(self, version: int, seconds: float) -> None:
        """By the head that is swapped."""
        if version > self.version:
            self.version, self.since_swap, self.is_loading = version, 0, False
            self.seen.set()
        self.went_back += version < self.version
        self.since_swap += 1
        if self.since_swap <= FIRST_CALLS:
            self.first_after.append(seconds)
        elif not self.is_loading:
            self.steady.append(seconds)


async def _call(client: AsyncHeadClient, due: float, calls: Calls, rows: NDArray[np.float32]) -> None:
    name = SWAPPED if calls.num_calls % 2 == 0 else BESIDE
    calls.num_calls += 1
    was_loading = calls.is_loading
    try:
        answer = await client.predict(name, {INPUT: rows}, timeout=5.0)
    except TrunklineError as error:
        calls.failed.append(type(error).__name__)
        return
    seconds = time.perf_counter() - due
    if name == SWAPPED:
        calls.answered(answer.version, seconds)
    elif was_loading:
        calls.beside_loading.append(seconds)
    elif not calls.is_loading and calls.since_swap > FIRST_CALLS:
        calls.beside_steady.append(seconds)


async def _load(client: AsyncHeadClient, rate: float, stop: asyncio.Event, calls: Calls) -> None:
    rows = np.full((1, WIDTH), 0.05, np.float32)
    begin, number = time.perf_counter(), 0
    async with asyncio.TaskGroup() as group:
        while not stop.is_set():
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            calls.lags.append(time.perf_counter() - due)
            group.create_task(_call(client, due, calls, rows))
            number += 1


async def _swap(staged: list[Path], pause: float, calls: Calls) -> None:
    await asyncio.sleep(2.0)
    for version, path in enumerate(staged, 2):
        calls.is_loading = True
        calls.seen.clear()
        path.rename(path.with_name(str(version)))
        async with asyncio.timeout(30):
            await calls.seen.wait()
        await asyncio.sleep(pause)


async def measure(swaps: int, rate: float, pause: float) -> Calls:
    """*swaps* swaps, *pause* seconds between one seen and the next begun, under *rate* calls a second."""
    calls = Calls()
    async with (
        served(SWAPPED, BESIDE) as heads,
        AsyncHeadClient(heads.address) as client,
    ):
        # Before the load: the generator has no time to copy and to hash meanwhile.
        staged = [heads.stage(SWAPPED, version) for version in range(2, swaps + 2)]
        stop = asyncio.Event()
        before = footprint(heads.pid).rss_bytes
        loading = asyncio.create_task(_load(client, rate, stop, calls))
        try:
            await _swap(staged, pause, calls)
        finally:
            stop.set()
            await loading
        calls.rss_bytes = before, footprint(heads.pid).rss_bytes
    return calls


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.head_swaps", description=__doc__)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second")
    parser.add_argument("--pause", type=float, default=0.6, help="seconds between two swaps")
    given = parser.parse_args()
    calls = asyncio.run(measure(given.swaps, given.rate, given.pause))
    console = wide_console()
    console.print(
        f"{given.swaps} swaps, {calls.num_calls} calls at {given.rate:g}/s, {os.cpu_count()} cores: "
        f"{len(calls.failed)} failed, {calls.went_back} answers of an older version than the last; "
        f"generator lag p99 {milliseconds_at(99, calls.lags):.1f} ms; "
        f"the server's memory {calls.rss_bytes[0] / 2**20:.0f} MiB before, {calls.rss_bytes[1] / 2**20:.0f} MiB after"
    )
    groups = {
        "swapped head, steady": calls.steady,
        f"swapped head, first {FIRST_CALLS} after a swap": calls.first_after,
        "head beside it, steady": calls.beside_steady,
        "head beside it, while a version is loaded": calls.beside_loading,
    }
    for what, seconds in groups.items():
        points = "  ".join(f"p{percent} {milliseconds_at(percent, seconds):.2f} ms" for percent in (50, 90, 99))
        console.print(f"{what}: {points}  ({len(seconds)} calls)")


if __name__ == "__main__":
    main()
