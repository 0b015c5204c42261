"""Load, and what came of it. Closed loop: N requests in flight. Open loop: requests at their times, whatever the service does.

In the open loop latency counts from the intended time, so a stall of the service shows in every request that was due meanwhile
(the closed loop hides that: coordinated omission). The generator's own lag is reported, and a run with too much of it is void.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
import uvloop

from perf.http_client import Connection, ConnectionLostError

TIMEOUT_SECONDS = 10.0
MAX_LAG_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they carry, one body a request, over and over."""

    host: str
    port: int
    path: bytes
    bodies: Sequence[bytes]


@dataclass(slots=True)
class LoadResult:
    """One run. *latencies* in seconds, of answers with status 200 only; *outcomes* counts every request by what became of it."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    cpu_ms_per_text: dict[str, float] = field(default_factory=dict)

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return self.outcomes["200"] / self.seconds

    @property
    def num_errors(self) -> int:
        """Requests that ended otherwise."""
        return self.outcomes.total() - self.outcomes["200"]

    @property
    def is_void(self) -> bool:
        """Whether the generator itself was late, so that the latencies say nothing."""
        return self.lag_p99_ms > MAX_LAG_SECONDS * 1000

    @property
    def lag_p99_ms(self) -> float:
        """How late the generator itself sent, at the 99th percentile; NaN in the closed loop."""
        return float(np.percentile(self.lags, 99)) * 1000 if self.lags else float("nan")

    def percentile_ms(self, percent: float) -> float:
        """Of the latencies; NaN when there are none."""
        return float(np.percentile(self.latencies, percent)) * 1000 if self.latencies else float("nan")

    def summary(self) -> str:
        """One line for people."""
        points = "  ".join(f"p{p:g} {self.percentile_ms(p):.1f} ms" for p in (50, 90, 99, 99.9))
        cpu = "  ".join(f"{name} {ms:.2f}" for name, ms in self.cpu_ms_per_text.items())
        errors = f"  errors {dict(self.outcomes - Counter({'200': self.outcomes['200']}))}" if self.num_errors else ""
        lag = f"  generator lag p99 {self.lag_p99_ms:.1f} ms" if self.lags else ""
        void = "  VOID: the generator was late" if self.is_void else ""
        return f"{self.throughput:.0f} texts/s  {points}" + (f"  CPU ms/text: {cpu}" if cpu else "") + errors + lag + void


def classify_bodies(texts: Sequence[str], heads: Sequence[str] | None) -> list[bytes]:
    """One single-text request for each of *texts*."""
    rest = {"heads": list(heads)} if heads else {}
    return [msgspec.json.encode({"text": text, **rest}) for text in texts]


def target_of(url: str, bodies: Sequence[bytes], path: str = "/v1/classify") -> Target:
    """The route *path* of the service at *url*."""
    parts = urlsplit(url)
    return Target(parts.hostname or "127.0.0.1", parts.port or 80, path.encode(), bodies)


async def closed_loop(
    target: Target, *, in_flight: int, seconds: float, pids: dict[str, int] | None = None, warm_up_seconds: float = 0.0
) -> LoadResult:
    """Keep *in_flight* requests under way for *seconds*, after as many for *warm_up_seconds* that do not count."""
    if warm_up_seconds > 0:
        await closed_loop(target, in_flight=in_flight, seconds=warm_up_seconds)
    result = LoadResult()
    turn = _endless(target.bodies)
    with cpu_measured(pids or {}, result):
        started = time.perf_counter()
        await asyncio.gather(*(_caller(target, turn, started + seconds, result) for _ in range(in_flight)))
        result.seconds = time.perf_counter() - started
    return result


async def repeated(
    call: Callable[[int], Awaitable[None]], *, texts: int, in_flight: int, seconds: float, pids: dict[str, int] | None = None
) -> LoadResult:
    """A closed loop over any client: *call*, told a number that grows, answers *texts* texts or raises.

    *outcomes* counts texts, *latencies* are of calls.
    """
    result, numbers = LoadResult(), itertools.count()

    async def caller(end: float) -> None:
        while (began := time.perf_counter()) < end:
            try:
                await call(next(numbers))
            except Exception as error:  # whatever it was, it is an outcome
                result.outcomes[type(error).__name__] += texts
            else:
                result.latencies.append(time.perf_counter() - began)
                result.outcomes["200"] += texts

    with cpu_measured(pids or {}, result):
        started = time.perf_counter()
        await asyncio.gather(*(caller(started + seconds) for _ in range(in_flight)))
        result.seconds = time.perf_counter() - started
    return result


async def open_loop(
    target: Target, *, rate: float, seconds: float, pids: dict[str, int] | None = None, seed: int = 0, is_poisson: bool = True
) -> LoadResult:
    """Send *rate* requests a second for *seconds*, with exponential gaps (Poisson arrivals) or constant ones."""
    result = LoadResult()
    pool: list[Connection] = []
    turn, chance = _endless(target.bodies), random.Random(seed)  # noqa: S311 (a repeatable load, no secret)
    with cpu_measured(pids or {}, result):
        started = intended = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while intended < started + seconds:
                await asyncio.sleep(max(0.0, intended - time.perf_counter()))
                result.lags.append(time.perf_counter() - intended)
                group.create_task(_send_from(pool, target, next(turn), intended, result))
                intended += chance.expovariate(rate) if is_poisson else 1 / rate
        result.seconds = time.perf_counter() - started
    for connection in pool:
        connection.close()
    return result


async def _caller(target: Target, turn: Iterator[bytes], end: float, result: LoadResult) -> None:
    connection: Connection | None = None
    while time.perf_counter() < end:
        connection = await _ask(connection, target, next(turn), time.perf_counter(), result)
    if connection is not None:
        connection.close()


async def _send_from(pool: list[Connection], target: Target, body: bytes, intended: float, result: LoadResult) -> None:
    connection = await _ask(pool.pop() if pool else None, target, body, intended, result)
    if connection is not None:
        pool.append(connection)


async def _ask(connection: Connection | None, target: Target, body: bytes, since: float, result: LoadResult) -> Connection | None:
    """One request, counted by what becomes of it; the connection to use next, None when it is gone."""
    try:
        if connection is None or not connection.is_open:
            connection = await Connection.open(target.host, target.port)
        status, _ = await connection.request(target.path, body, TIMEOUT_SECONDS)
    except (OSError, ConnectionLostError, TimeoutError) as error:
        result.outcomes[type(error).__name__] += 1
        # A refused connection must not become a busy loop.
        await asyncio.sleep(0.01)
        return None
    result.outcomes[str(status)] += 1
    if status == 200:
        result.latencies.append(time.perf_counter() - since)
    return connection


def _endless(bodies: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from bodies


class cpu_measured:  # noqa: N801 (reads as the statement it is)
    """Fills *cpu_ms_per_text* with what each process used meanwhile; the generator itself is "load"."""

    def __init__(self, pids: dict[str, int], result: LoadResult) -> None:
        self._pids = {**pids, "load": os.getpid()}
        self._result = result

    def __enter__(self) -> None:
        self._before = self._now()

    def __exit__(self, *_: object) -> None:
        answered = max(1, self._result.outcomes["200"])
        self._result.cpu_ms_per_text = {
            name: (after - self._before[name]) * 1000 / answered for name, after in self._now().items() if name in self._before
        }

    def _now(self) -> dict[str, float]:
        """Without the processes that have ended: a run may be about just that."""
        seconds = {}
        for name, pid in self._pids.items():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                seconds[name] = cpu_seconds(pid)
        return seconds


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads; fields 14 and 15 of proc(5)'s stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.load", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--texts", type=Path, required=True, help="a text a line")
    parser.add_argument("--heads", help="names with commas between")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warm-up", type=float, default=2, help="closed loop: seconds that do not count")
    parser.add_argument("--pids", default="", help="name=PID with commas between: processes to tell the CPU time of")
    asked = parser.parse_args()
    bodies = classify_bodies(asked.texts.read_text().splitlines(), asked.heads.split(",") if asked.heads else None)
    print(uvloop.run(_asked_for(asked, target_of(asked.url, bodies))).summary())


async def _asked_for(asked: argparse.Namespace, target: Target) -> LoadResult:
    pids = {name: int(pid) for name, _, pid in (pair.partition("=") for pair in asked.pids.split(",") if pair)}
    if asked.rate:
        return await open_loop(target, rate=asked.rate, seconds=asked.seconds, pids=pids)
    return await closed_loop(target, in_flight=asked.in_flight, seconds=asked.seconds, pids=pids, warm_up_seconds=asked.warm_up)


if __name__ == "__main__":
    main()
