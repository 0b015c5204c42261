"""`python -m perf.gateway_faults`: what the gateway's callers notice when a backend freezes, dies or talks nonsense.

The gateway is real; its backends are `perf.stub_backends`, sleep-bound, so that two cores are enough. An open loop of single
texts, each answer checked against its text. First a quiet phase, then one with the fault in it:

- one of two embedding replicas stopped (SIGSTOP) for four seconds, or killed;
- one of two head servers stopped for four seconds, or killed;
- one of twenty heads dead, frozen, or answering nonsense: the other nineteen must be there, and in time.

A head gets well again, so the last have their two phases several times in turns. Both phases of a turn have the same arrivals:
what a p99 of some hundred requests owes to chance is mostly when they came.
"""

import argparse
import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import uvloop
from rich.console import Console

from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, TrunkRef
from perf.http_client import Connection
from perf.load import LoadResult, milliseconds_at, paced
from perf.machine import punctual
from perf.report import ratios, spread
from perf.settings import wide_console
from perf.stub_backends import FAULTS, FINGERPRINT, WIDTH, score_of, text_of
from trunkline.processes import Child

STOPPED_SECONDS: Final = 4.0
FAULT_AFTER_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 5.0
WARM_UP_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.02
MAX_RECOVERY_SECONDS: Final = 20.0
"""For a head that is well again to be asked again: a breaker that opened again and again waits up to ten."""

BAD_HEAD: Final = "head-07"


Answers = list[tuple[float, float]]
"""Of each good answer when its request was sent, by `time.perf_counter`, and the seconds it took."""


class NoAnswerError(Exception):
    """An error for the whole request."""


class WrongAnswerError(Exception):
    """Not the answer to the text that was sent."""


class MissingHeadError(Exception):
    """A head that is well has no answer."""


class StillLeftAloneError(Exception):
    """A head is well again, and the gateway does not ask it."""


@dataclass(slots=True)
class Callers:
    """Single texts by HTTP, each answer checked; *bad_head* may fail.

    *statuses* counts the answers that were not 200.
    """

    host: str
    port: int
    num_heads: int
    bad_head: str = ""
    statuses: Counter[int] = field(default_factory=Counter)
    answers: Answers = field(default_factory=list)
    _idle: list[Connection] = field(default_factory=list)

    async def __call__(self, number: int) -> None:
        """One request; raises what is wrong with it."""
        began = time.perf_counter()
        connection = await self._connection()
        body = msgspec.json.encode({"text": text_of(number), "scores": True, "timeout_ms": int(TIMEOUT_SECONDS * 1000)})
        status, content = await connection.request(b"/v1/classify", body, TIMEOUT_SECONDS + 1)
        self._idle.append(connection)
        if status != 200:
            self.statuses[status] += 1
            raise NoAnswerError
        self._check(msgspec.json.decode(content)["results"][0]["heads"], score_of(number))
        self.answers.append((began, time.perf_counter() - began))

    async def _connection(self) -> Connection:
        """One that is open: what was idle for long the gateway has closed."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return await Connection.open(self.host, self.port)

    def close(self) -> None:
        """Hang up."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _check(self, heads: dict[str, Any], score: float) -> None:
        if len(heads) != self.num_heads:
            raise MissingHeadError
        for name, said in heads.items():
            if "error" in said:
                if name != self.bad_head:
                    raise MissingHeadError
            elif said["scores"]["first"] != score:
                raise WrongAnswerError


def catalogue_of(num_heads: int) -> bytes:
    """As many heads of the stub trunk, one like the other."""
    trunk = TrunkRef("stub", FINGERPRINT)
    manifests = [
        Manifest(name=f"head-{n:02}", version=1, labels=("first", "second"), width=WIDTH, trunk=trunk) for n in range(num_heads)
    ]
    return msgspec.json.encode(Catalogue({one.name: CatalogueHead(1, {1: one}) for one in manifests}))


@dataclass(slots=True)
class Rig:
    """A gateway and its backends, all processes of this one."""

    folder: Path
    stack: AsyncExitStack
    backends: dict[str, list[Child]] = field(default_factory=dict)
    url: str = ""

    async def start(self, *, num_embedding: int, num_head_servers: int, num_heads: int, fault: str) -> None:
        """Start all."""
        bad = ["--bad-head", BAD_HEAD, "--fault", fault] if fault else []
        embedding = await self._several("embedding", num_embedding, ["--milliseconds", "10", "--slots", "3"])
        heads = await self._several("heads", num_head_servers, ["--milliseconds", "2", *bad])
        catalogue = self.folder / "catalogue.json"
        catalogue.write_bytes(catalogue_of(num_heads))
        arguments = ["--port", "0", "--catalogue", str(catalogue), "--embedding-address", embedding, "--heads-address", heads]
        match = await self._child("gateway", "gateway", arguments, r"^gateway (http://\S+)$")
        self.url = match[1]

    async def _several(self, kind: str, count: int, arguments: list[str]) -> str:
        addresses = []
        for number in range(count):
            match = await self._child(f"{kind}-{number}", "perf.stub_backends", [kind, *arguments], r"^serving (\S+)$")
            addresses.append(match[1])
        return ",".join(addresses)

    async def _child(self, name: str, module: str, arguments: list[str], ready: str) -> re.Match[str]:
        child = Child(
            name,
            [sys.executable, "-m", module, *arguments],
            ready=re.compile(ready),
            log=self.folder / f"{name}.log",
            env=os.environ,
        )
        match = await child.start(30.0)
        self.stack.push_async_callback(child.stop, 5.0)
        self.backends.setdefault(name.partition("-")[0], []).append(child)
        return match

    def signal(self, kind: str, what: signal.Signals) -> None:
        """Send a signal to the first replica of a backend."""
        os.kill(self.backends[kind][0].pid, what)


@dataclass(frozen=True, slots=True)
class Scenario:
    """*faulty* is the backend with the fault, its first replica; *begin* and *end* are what happens to it.

    *rate* is in requests a second: about half of what two cores take, gateway, stubs and generator together. Each phase
    lasts *seconds*. Of several *turns* each ends with the fault taken back, by the signal that began it.
    """

    name: str
    faulty: str
    begin: signal.Signals
    end: signal.Signals | None = None
    rate: float = 150.0
    seconds: float = 10.0
    num_embedding: int = 2
    num_head_servers: int = 1
    num_heads: int = 1
    fault: str = ""
    turns: int = 1


SCENARIOS: Final = (
    Scenario("embedding frozen 4 s", "embedding", signal.SIGSTOP, signal.SIGCONT),
    Scenario("embedding killed", "embedding", signal.SIGKILL),
    Scenario("head server frozen 4 s", "heads", signal.SIGSTOP, signal.SIGCONT, 60.0, 10.0, 1, 2, 20),
    Scenario("head server killed", "heads", signal.SIGKILL, None, 60.0, 10.0, 1, 2, 20),
    *(Scenario(f"one of 20 heads {fault}", "heads", signal.SIGUSR1, None, 60.0, 15.0, 1, 1, 20, fault, 4) for fault in FAULTS),
)


async def noticed(http: httpx.AsyncClient, scenario: Scenario) -> float:
    """Seconds until the gateway leaves the faulty part alone; NaN when it does not within `STOPPED_SECONDS`."""
    began = time.perf_counter()
    while time.perf_counter() < began + STOPPED_SECONDS:
        if await is_left_alone(http, scenario):
            return time.perf_counter() - began
        await asyncio.sleep(POLL_SECONDS)
    return float("nan")


async def is_left_alone(http: httpx.AsyncClient, scenario: Scenario) -> bool:
    """Whether the gateway asks the faulty part for nothing now."""
    metric = "head_breaker_state{head=" if scenario.fault else f'backend_replicas_left_alone{{backend="{scenario.faulty}"}}'
    return is_above_zero((await http.get("/metrics")).text, metric)


def is_above_zero(metrics: str, metric: str) -> bool:
    """Whether any value of *metric*, the beginning of its lines or a part of it, is."""
    lines = (line for line in metrics.splitlines() if metric in line and not line.startswith("#"))
    return any(float(line.rpartition(" ")[2]) > 0 for line in lines)


async def with_fault(rig: Rig, http: httpx.AsyncClient, scenario: Scenario) -> tuple[float, float]:
    """Begin the fault after a moment, and end it; when it began, and the seconds until it was noticed."""
    await asyncio.sleep(FAULT_AFTER_SECONDS)
    rig.signal(scenario.faulty, scenario.begin)
    began = time.perf_counter()
    seconds = await noticed(http, scenario)
    if scenario.end is not None:
        await asyncio.sleep(max(0.0, began + STOPPED_SECONDS - time.perf_counter()))
        rig.signal(scenario.faulty, scenario.end)
    return began, seconds


async def facts(http: httpx.AsyncClient) -> str:
    """What the gateway counted."""
    lines = (await http.get("/metrics")).text.splitlines()
    wanted = ("_backend_ejections_total{", "_backend_retries_total{", "_head_breaker_state{")
    return "  " + "  ".join(line.removeprefix("trunkline_gateway_") for line in lines if any(one in line for one in wanted))


def told(result: LoadResult) -> str:
    """One phase, for people."""
    failed = result.num_errors / max(1, result.outcomes.total())
    points = "  ".join(f"p{p:g} {result.percentile_ms(p):.1f}" for p in (50, 99, 99.9, 100))
    errors = {what: count for what, count in result.outcomes.items() if what != "200"}
    return f"{result.outcomes.total()} requests, failed {failed:.2%} {errors or ''}, ms {points}"


@dataclass(slots=True)
class Tails:
    """p99 with the fault over p99 without, a ratio a turn: of the whole phase, and of it once the fault was noticed."""

    whole: list[float] = field(default_factory=list)
    left_alone: list[float] = field(default_factory=list)

    def turn(self, quiet: Answers, faulty: Answers, noticed_at: float) -> None:
        """Add one: both phases' good answers, and when the fault was noticed; NaN where it was not."""
        usual = milliseconds_at(99, [took for _, took in quiet])
        self.whole += ratios([milliseconds_at(99, [took for _, took in faulty])], [usual])
        self.left_alone += ratios([milliseconds_at(99, [took for at, took in faulty if at > noticed_at])], [usual])

    def __str__(self) -> str:
        """For people."""
        return f"p99 with the fault over p99 without: {spread(self.whole)}; once it was left alone: {spread(self.left_alone)}"


async def measure(scenario: Scenario, rate: float, seconds: float, turns: int, say: Callable[[str], None]) -> None:
    """A rig of its own; in turns a quiet phase, and one with the fault."""
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            rig = Rig(Path(folder), stack)
            await rig.start(
                num_embedding=scenario.num_embedding,
                num_head_servers=scenario.num_head_servers,
                num_heads=scenario.num_heads,
                fault=scenario.fault,
            )
            # Made before the load: it takes the loop a tenth of a second.
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=rig.url))
            url = http.base_url
            callers = Callers(url.host, url.port or 80, scenario.num_heads, BAD_HEAD if scenario.fault else "")
            stack.callback(callers.close)
            tails = Tails()
            with punctual():
                await paced(callers, rate=rate, seconds=WARM_UP_SECONDS)
                for seed in range(1, turns + 1):
                    if seed > 1:
                        rig.signal(scenario.faulty, scenario.begin)
                        await recovered(callers, http, scenario, rate)
                    callers.answers = []
                    quiet = await paced(callers, rate=rate, seconds=seconds, seed=seed)
                    say(f"{scenario.name}: quiet: {told(quiet)}")
                    usual, callers.answers = callers.answers, []
                    fault = asyncio.create_task(with_fault(rig, http, scenario))
                    faulty = await paced(callers, rate=rate, seconds=seconds, seed=seed)
                    began, seconds_to_notice = await fault
                    after = [took for at, took in callers.answers if at > began + seconds_to_notice]
                    tails.turn(usual, callers.answers, began + seconds_to_notice)
                    late = f"; left alone after {seconds_to_notice:.2f} s, p99 from then on {milliseconds_at(99, after):.1f} ms"
                    say(f"{scenario.name}: fault: {told(faulty)} {dict(callers.statuses) or ''}{late}")
            say(f"{scenario.name}: {tails}")
            say(await facts(http))


async def recovered(callers: Callers, http: httpx.AsyncClient, scenario: Scenario, rate: float) -> None:
    """Go on calling until the gateway asks the faulty part again: it is the callers' requests that it tries it with.

    Raises:
        StillLeftAloneError: it does not within `MAX_RECOVERY_SECONDS`.
    """
    give_up = time.perf_counter() + MAX_RECOVERY_SECONDS
    while time.perf_counter() < give_up:
        await paced(callers, rate=rate, seconds=1.0)
        if not await is_left_alone(http, scenario):
            return
    raise StillLeftAloneError(f"{scenario.name}: not asked again {MAX_RECOVERY_SECONDS:.0f} s after the fault had ended")


async def run(scenarios: Sequence[Scenario], rate: float, seconds: float, turns: int, console: Console) -> None:
    """One after the other; *turns* are for those that have several."""
    for scenario in scenarios:
        count = turns if turns and scenario.turns > 1 else scenario.turns
        await measure(scenario, rate or scenario.rate, seconds or scenario.seconds, count, console.print)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.gateway_faults", description=__doc__)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: each scenario's own")
    parser.add_argument("--seconds", type=float, default=0.0, help="of each phase; 0: each scenario's own")
    parser.add_argument("--turns", type=int, default=0, help="of the scenarios that have several; 0: each one's own")
    parser.add_argument("--only", default="", help="scenarios whose names have this in them")
    given = parser.parse_args()
    chosen = [scenario for scenario in SCENARIOS if given.only in scenario.name]
    uvloop.run(run(chosen, given.rate, given.seconds, given.turns, wide_console()))


if __name__ == "__main__":
    main()
