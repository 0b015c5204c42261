"""Load, and what came of it. Closed loop: N requests in flight. Open loop: requests at their times, whatever the service does.

In the open loop latency counts from the intended time, so a stall of the service shows in every request that was due meanwhile
(the closed loop hides that: coordinated omission). The generator's own lag is reported, and a run with too much of it is void.
So is one that had to stop sending because too many requests were under way: what was offered then was not what was asked for.
"""

import argparse
import asyncio
import itertools
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
import uvloop

from perf.http_client import Connection, ConnectionLostError
from perf.machine import cpu_seconds, tree_cpu_seconds
from perf.settings import at_least_one, positive

TIMEOUT_SECONDS = 10.0
MAX_LAG_SECONDS = 0.005
GRACE_SECONDS = 1.0
"""After the last request: what is answered later adds nothing to the throughput, nor does its time. One lost answer would else
be waited for ten times as long as a round takes."""
MAX_UNDER_WAY = 4_096
"""Requests of an open loop, where nothing else is said: more than the service queues, and fewer than there are sockets."""
BURST_SIZE = 16
MOST_FAILED = 0.001
"""Share of requests: with more, the tail of the good answers is not the tail of what was asked."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they carry, one body a request, over and over.

    *classes*, when given, names the class of each body, by which latencies are told apart.
    """

    host: str
    port: int
    path: bytes
    bodies: Sequence[bytes]
    classes: Sequence[str] = ()

    def endless(self) -> Iterator[tuple[bytes, str]]:
        """Each body with its class, "" where there are none; from the first again after the last."""
        pairs = list(zip(self.bodies, self.classes or [""] * len(self.bodies), strict=True))
        while True:
            yield from pairs


@dataclass(slots=True)
class LoadResult:
    """One run. *latencies* in seconds, of answers with status 200 only; *outcomes* counts every request by what became of it.

    *latencies_by_class* are the same by the class of their body. *answer_seconds* are of all answers, by status and counted
    from when the request was sent: what a refusal itself took, in the open loop with the connecting where there was no
    connection. *failed_at* is when requests that ended otherwise were intended, in seconds since the first; *num_late* are good
    answers that came more than `GRACE_SECONDS` after the last request, and *seconds* end there at the latest. *is_overrun*: an
    open loop stopped early, with as many requests under way as it may have. A lag above *max_lag_seconds* voids the run.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    latencies_by_class: dict[str, list[float]] = field(default_factory=dict)
    answer_seconds: dict[str, list[float]] = field(default_factory=dict)
    lags: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    cpu_ms_per_text: dict[str, float] = field(default_factory=dict)
    failed_at: list[float] = field(default_factory=list)
    num_late: int = 0
    is_overrun: bool = False
    max_lag_seconds: float = MAX_LAG_SECONDS
    _began: float = 0.0
    _until: float = math.inf

    def begin(self, seconds: float) -> float:
        """The first request is sent now, the last one *seconds* later at most; gives now, of `time.perf_counter`."""
        self._began = time.perf_counter()
        self._until = self._began + seconds + GRACE_SECONDS
        return self._began

    def end(self) -> None:
        """Nothing more is waited for."""
        self.seconds = min(time.perf_counter(), self._until) - self._began

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return (self.outcomes["200"] - self.num_late) / self.seconds

    @property
    def num_errors(self) -> int:
        """Requests that ended otherwise."""
        return self.outcomes.total() - self.outcomes["200"]

    @property
    def is_void(self) -> bool:
        """Whether the load was not the one asked for, so that the latencies say nothing."""
        return self.is_overrun or self.lag_p99_ms > self.max_lag_seconds * 1000

    @property
    def has_failed_much(self) -> bool:
        """Whether more than `MOST_FAILED` of the requests ended otherwise: latencies of the rest say little."""
        return self.num_errors > MOST_FAILED * self.outcomes.total()

    @property
    def lag_p99_ms(self) -> float:
        """How late the generator itself sent, at the 99th percentile; NaN in the closed loop."""
        return milliseconds_at(99, self.lags)

    def percentile_ms(self, percent: float, of: str | None = None) -> float:
        """Of the latencies, or of those of the class *of*; NaN when there are none."""
        return milliseconds_at(percent, self.latencies if of is None else self.latencies_by_class.get(of, []))

    def answered(self, status: int, sent: float, intended: float, of: str = "") -> None:
        """Count an answer that came now, to what was *sent* then and *intended* for then; of `time.perf_counter`."""
        now = time.perf_counter()
        if status == 200:
            self.answered_in(now - sent, now - intended, of)
        else:
            self.failed(str(status), intended)
            self.answer_seconds.setdefault(str(status), []).append(now - sent)

    def failed(self, what: str, intended: float, count: int = 1) -> None:
        """Count so many that ended by *what*."""
        self.outcomes[what] += count
        self.failed_at.append(intended - self._began)

    def good(self, count: int = 1) -> None:
        """Count so many good answers that came now."""
        self.outcomes["200"] += count
        if time.perf_counter() > self._until:
            self.num_late += count

    def answered_in(self, seconds: float, latency: float, of: str = "") -> None:
        """Count a good answer: *latency* since it was wanted, *seconds* since it was asked for."""
        self.good()
        self.answer_seconds.setdefault("200", []).append(seconds)
        self.latencies.append(latency)
        if of:
            self.latencies_by_class.setdefault(of, []).append(latency)

    def summary(self) -> str:
        """One line for people."""
        points = "  ".join(f"p{p:g} {self.percentile_ms(p):.1f} ms" for p in (50, 90, 99, 99.9))
        cpu = "  ".join(f"{name} {ms:.2f}" for name, ms in self.cpu_ms_per_text.items())
        errors = f"  errors {dict(self.outcomes - Counter({'200': self.outcomes['200']}))}" if self.num_errors else ""
        lag = f"  generator lag p99 {self.lag_p99_ms:.1f} ms" if self.lags else ""
        why = "too many requests were under way" if self.is_overrun else "the generator was late"
        void = f"  VOID: {why}" if self.is_void else ""
        return f"{self.throughput:.0f} texts/s  {points}" + (f"  CPU ms/text: {cpu}" if cpu else "") + errors + lag + void


def joined(parts: Sequence[LoadResult]) -> LoadResult:
    """Runs of one load, one after the other, as one. CPU time a text is of the texts that were answered."""
    whole = LoadResult(max_lag_seconds=min((part.max_lag_seconds for part in parts), default=MAX_LAG_SECONDS))
    for part in parts:
        whole.seconds += part.seconds
        whole.latencies += part.latencies
        whole.lags += part.lags
        whole.outcomes += part.outcomes
        whole.num_late += part.num_late
        whole.is_overrun = whole.is_overrun or part.is_overrun
        for found, more in ((whole.latencies_by_class, part.latencies_by_class), (whole.answer_seconds, part.answer_seconds)):
            for name, values in more.items():
                found.setdefault(name, []).extend(values)
    for name in dict.fromkeys(name for part in parts for name in part.cpu_ms_per_text):
        spent = sum(part.cpu_ms_per_text.get(name, 0.0) * max(1, part.outcomes["200"]) for part in parts)
        whole.cpu_ms_per_text[name] = spent / max(1, whole.outcomes["200"])
    return whole


def classify_bodies(texts: Sequence[str], heads: Sequence[str] | None) -> list[bytes]:
    """One single-text request for each of *texts*, whose answer is good only if each head's is: an error in it has status 200."""
    rest = {"heads": list(heads)} if heads else {}
    return [msgspec.json.encode({"text": text, **rest, "strict": True}) for text in texts]


def target_of(url: str, bodies: Sequence[bytes], path: str = "/v1/classify", classes: Sequence[str] = ()) -> Target:
    """The route *path* of the service at *url*."""
    parts = urlsplit(url)
    return Target(parts.hostname or "127.0.0.1", parts.port or 80, path.encode(), bodies, classes)


def milliseconds_at(percent: float, seconds: Sequence[float]) -> float:
    """The percentile *percent* of *seconds*, in milliseconds; NaN when there are none."""
    return float(np.percentile(seconds, percent)) * 1000 if seconds else float("nan")


async def closed_loop(
    target: Target, *, in_flight: int, seconds: float, pids: dict[str, int] | None = None, warm_up_seconds: float = 0.0
) -> LoadResult:
    """Keep *in_flight* requests under way for *seconds*, after as many for *warm_up_seconds* that do not count."""
    if warm_up_seconds > 0:
        await closed_loop(target, in_flight=in_flight, seconds=warm_up_seconds)
    result = LoadResult()
    turn = target.endless()
    with cpu_measured(pids or {}, result):
        started = result.begin(seconds)
        await asyncio.gather(*(_caller(target, turn, started + seconds, result) for _ in range(in_flight)))
        result.end()
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
                result.failed(type(error).__name__, began, texts)
            else:
                result.latencies.append(time.perf_counter() - began)
                result.good(texts)

    with cpu_measured(pids or {}, result):
        started = result.begin(seconds)
        await asyncio.gather(*(caller(started + seconds) for _ in range(in_flight)))
        result.end()
    return result


async def paced(
    call: Callable[[int], Awaitable[None]],
    *,
    rate: float,
    seconds: float,
    classes: Sequence[str] = ("",),
    seed: int = 0,
    max_under_way: int = MAX_UNDER_WAY,
    gaps: Iterator[float] | None = None,
    pids: dict[str, int] | None = None,
) -> LoadResult:
    """An open loop over any client: *call*, told a number that grows, answers one text or raises.

    Arrivals are Poisson, or come after *gaps* (seconds) where these are given, which then make the *rate*. Call *n* is of the
    class `classes[n % len(classes)]`. What is called shares the loop with the generator, so the generator's
    lag is part of what is measured, stands in the latencies, and voids nothing.
    """
    result, numbers = LoadResult(max_lag_seconds=float("inf")), itertools.count()

    async def send(intended: float) -> None:
        number, began = next(numbers), time.perf_counter()
        try:
            await call(number)
        except Exception as error:  # whatever it was, it is an outcome
            result.failed(type(error).__name__, intended)
        else:
            now = time.perf_counter()
            result.answered_in(now - began, now - intended, classes[number % len(classes)])

    with cpu_measured(pids or {}, result):
        await _paced(send, gaps or gaps_of(rate, seed), seconds, max_under_way, result)
    return result


def gaps_of(rate: float, seed: int | None) -> Iterator[float]:
    """Seconds from one request to the next: exponential, or constant without a *seed*."""
    chance = random.Random(seed)  # noqa: S311 (a repeatable load, no secret)
    while True:
        yield 1 / rate if seed is None else chance.expovariate(rate)


def bursts_of(rate: float, seed: int, size: int = BURST_SIZE) -> Iterator[float]:
    """Seconds from one request to the next: *size* at once, and then an exponential gap that makes *rate* the mean."""
    for gap in gaps_of(rate / size, seed):
        yield from itertools.repeat(0.0, size - 1)
        yield gap


def on_grid(gaps: Iterator[float], step: float) -> Iterator[float]:
    """*gaps* whose sums are rounded up to multiples of *step*, both in seconds: what falls due within a step does so at its end.

    A generator then wakes up once a step at most, whatever the rate, and leaves more of the machine to what it measures.
    """
    due = last = 0.0
    for gap in gaps:
        due += gap
        rounded = math.ceil(due / step) * step
        yield rounded - last
        last = rounded


async def _paced(
    send: Callable[[float], Coroutine[None, None, None]],
    gaps: Iterator[float],
    seconds: float,
    max_under_way: int,
    result: LoadResult,
) -> None:
    """Start *send*, told when it was due, after each of *gaps*; then wait for all that were started."""
    started = intended = result.begin(seconds)
    under_way: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:
        while intended < started + seconds and not result.is_overrun:
            await asyncio.sleep(max(0.0, intended - time.perf_counter()))
            if len(under_way) >= max_under_way:
                result.is_overrun = True
                break
            result.lags.append(time.perf_counter() - intended)
            task = group.create_task(send(intended))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            intended += next(gaps)
    result.end()


async def _caller(target: Target, turn: Iterator[tuple[bytes, str]], end: float, result: LoadResult) -> None:
    connection: Connection | None = None
    while time.perf_counter() < end:
        body, kind = next(turn)
        connection = await _ask(connection, target, body, time.perf_counter(), result, kind)
    if connection is not None:
        connection.close()


async def _ask(
    connection: Connection | None, target: Target, body: bytes, since: float, result: LoadResult, kind: str
) -> Connection | None:
    """One request, counted by what becomes of it; the connection to use next, None when it is gone."""
    try:
        if connection is None or not connection.is_open:
            connection = await Connection.open(target.host, target.port)
        sent = time.perf_counter()
        status, _ = await connection.request(target.path, body, TIMEOUT_SECONDS)
    except (OSError, ConnectionLostError, TimeoutError) as error:
        result.failed(type(error).__name__, since)
        # A refused connection must not become a busy loop.
        await asyncio.sleep(0.01)
        return None
    result.answered(status, sent, since, kind)
    return connection


class cpu_measured:  # noqa: N801 (reads as the statement it is)
    """Fills *cpu_ms_per_text* with what each process used meanwhile, its children included; the generator itself is "load"."""

    def __init__(self, pids: dict[str, int], result: LoadResult) -> None:
        self._pids = pids
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
        seconds = {name: tree_cpu_seconds(pid) for name, pid in self._pids.items()}
        # What is measured may be a child of the generator, so that one counts alone.
        return {**{name: value for name, value in seconds.items() if value is not None}, "load": cpu_seconds(os.getpid())}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.load", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--texts", type=Path, required=True, help="a text a line")
    parser.add_argument("--heads", help="names with commas between")
    parser.add_argument("--in-flight", type=at_least_one, default=32)
    parser.add_argument("--rate", type=positive, help="open loop: requests a second")
    parser.add_argument("--seconds", type=positive, default=10)
    parser.add_argument("--warm-up", type=float, default=2, help="closed loop: seconds that do not count")
    parser.add_argument("--pids", default="", help="name=PID with commas between: processes to tell the CPU time of")
    asked = parser.parse_args()
    if not re.match(r"http://[^/]", asked.url):
        parser.error("--url is the gateway's, such as http://127.0.0.1:8080")
    texts = [text for text in asked.texts.read_text(encoding="utf-8").split("\n") if text.strip()]
    if not texts:
        parser.error(f"{asked.texts} has no texts")
    bodies = classify_bodies(texts, asked.heads.split(",") if asked.heads else None)
    print(uvloop.run(_asked_for(asked, target_of(asked.url, bodies))).summary())


async def _asked_for(asked: argparse.Namespace, target: Target) -> LoadResult:
    pids = {name: int(pid) for name, _, pid in (pair.partition("=") for pair in asked.pids.split(",") if pair)}
    if asked.rate:
        from perf.open_loop import open_loop  # noqa: PLC0415 (it is made of what is here)

        return await open_loop(target, rate=asked.rate, seconds=asked.seconds, pids=pids)
    return await closed_loop(target, in_flight=asked.in_flight, seconds=asked.seconds, pids=pids, warm_up_seconds=asked.warm_up)


if __name__ == "__main__":
    main()
