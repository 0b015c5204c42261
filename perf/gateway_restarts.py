"""`python -m perf.gateway_restarts`: every service started anew in turn, and a hundred versions of a head, under half the load.

The whole stack with a second one of each service: two gateways, each with two embedding services and two head servers, real
encoder, real head servers. An open loop of single texts, none of them twice, all of them answered or the run says how not. A
caller does what any balancer does: a gateway that cannot be connected to, or hangs up before it has said a word, is left for
the other one, and a new connection is tried there.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import uvloop

from embedding_service.backend import TrunkSpec
from embedding_service.models.prepare import prepare
from head_service.head_server import wait_until_available
from head_service.lifecycle import Lifecycle
from head_service.repository import Repository
from perf.heads_scaling import head_names, publish_head, publish_heads
from perf.http_client import Connection, ConnectionLostError
from perf.load import LoadResult, paced
from perf.machine import punctual
from perf.settings import wide_console
from perf.workloads import load_workload
from trunkline import paths
from trunkline.processes import Child
from trunkline.stack import Stack, StackSettings

[HEAD] = head_names(1)
NUM_LABELS: Final = 2
TIMEOUT_SECONDS: Final = 10.0
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 15.0
PAUSE_SECONDS: Final = 2.0
"""Between two restarts: for the others to notice that one is back."""


class NoAnswerError(Exception):
    """An answer that is not 200, or one with an error in it."""


@dataclass(slots=True)
class Callers:
    """Single texts to either of *gateways*, a connection each."""

    gateways: Sequence[tuple[str, int]]
    texts: Sequence[str]
    statuses: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    num_moved: int = 0
    went_back: int = 0
    _version: int = 0
    _idle: dict[tuple[str, int], list[Connection]] = field(default_factory=dict)

    async def __call__(self, number: int) -> None:
        """One request; raises what is wrong with it."""
        body = msgspec.json.encode({"text": f"{number} {self.texts[number % len(self.texts)]}", "heads": [HEAD]})
        turn = itertools.islice(itertools.cycle(self.gateways), number % 2, None)
        for attempt in range(4):
            where = next(turn)
            try:
                status, content = await self._ask(where, body)
            except (OSError, ConnectionLostError):
                self.num_moved += 1
                if attempt == 3:
                    raise
                continue
            break
        self.count(status, content)

    def close(self) -> None:
        """End the connections."""
        for idle in self._idle.values():
            for connection in idle:
                connection.close()

    async def _ask(self, where: tuple[str, int], body: bytes) -> tuple[int, bytes]:
        idle = self._idle.setdefault(where, [])
        while idle:
            connection = idle.pop()
            if connection.is_open:
                break
        else:
            connection = await Connection.open(*where)
        answer = await connection.request(b"/v1/classify", body, TIMEOUT_SECONDS)
        idle.append(connection)
        return answer

    def count(self, status: int, content: bytes) -> None:
        """Take note of an answer; NoAnswerError for one that is none."""
        said = msgspec.json.decode(content)["results"][0]["heads"][HEAD] if status == 200 else {}
        self.statuses[str(status) if status != 200 else str(said.get("error", {}).get("code", 200))] += 1
        if status != 200 or "error" in said:
            raise NoAnswerError
        self.versions[said["version"]] += 1
        self.went_back += said["version"] < self._version - 1
        self._version = max(self._version, said["version"])


@dataclass(slots=True)
class Pair:
    """A stack and a second one of each of its services."""

    first: Stack
    second: Stack
    gateways: list[Child] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)

    async def start(self) -> list[tuple[str, int]]:
        """All of it; where the gateways listen."""
        embedding = []
        for stack in (self.first, self.second):
            embedding.append((await stack.start_embedding())[0])
            self.heads.append((await stack.start_heads())[0])
        backends = ["--embedding-address", ",".join(embedding), "--heads-address", ",".join(self.heads)]
        catalogue = str(self.first.settings.repository / "catalogue.json")
        found = []
        for number in range(2):
            child = Child(
                f"gateway-{number}",
                [sys.executable, "-m", "gateway", "--port", "0", "--catalogue", catalogue, *backends],
                ready=re.compile(r"^gateway http://127.0.0.1:(\d+)$"),
                log=self.first.settings.log_dir / f"gateway-{number}.log",
                env=os.environ,
            )
            self.gateways.append(child)
            match = await child.start(START_SECONDS)
            # Found again where it was.
            child.command[child.command.index("--port") + 1] = match[1]
            found.append(("127.0.0.1", int(match[1])))
        for stack in (self.first, self.second):
            stack.pin_ports()
        return found

    @property
    def children(self) -> list[Child]:
        """Every process, the two of a kind behind each other."""
        kinds = [[stack.children[kind] for stack in (self.first, self.second)] for kind in ("embedding", "heads")]
        return [*itertools.chain(*kinds), *self.gateways]

    async def stop(self) -> None:
        """All of it."""
        for child in self.gateways:
            await child.stop(STOP_SECONDS)
        await asyncio.gather(self.first.stop(), self.second.stop())


async def restart_all(pair: Pair, say: Callable[[str], None]) -> None:
    """Each process ended as an operator would, and started again, one after the other."""
    for child in pair.children:
        began = time.monotonic()
        await child.stop(STOP_SECONDS)
        await child.start(START_SECONDS)
        say(f"  {child.name} is back after {time.monotonic() - began:.1f} s")
        await asyncio.sleep(PAUSE_SECONDS)


def swap_all(root: Path, trunk: TrunkSpec, heads: Sequence[str], count: int, pause: float) -> None:
    """Another version published and made the live one, *count* times. In a process of its own: exporting is work."""
    repository, random = Repository(root), np.random.default_rng(1)

    def available(head: str, version: int) -> None:
        for address in heads:
            wait_until_available(address, head, version)

    lifecycle = Lifecycle(repository, available)
    for _ in range(count):
        lifecycle.promote(HEAD, publish_head(repository, trunk, HEAD, NUM_LABELS, random))
        time.sleep(pause)


def told(result: LoadResult, callers: Callers) -> str:
    """One line."""
    outcomes = dict(result.outcomes)
    return (
        f"{result.outcomes.total()} requests, {result.num_errors} failed {outcomes if result.num_errors else ''}"
        f"{dict(callers.statuses) if result.num_errors else ''}; p50 {result.percentile_ms(50):.1f} ms, p99 "
        f"{result.percentile_ms(99):.1f} ms; {callers.num_moved} went to the other gateway; {len(callers.versions)} versions "
        f"answered, {callers.went_back} answers of a version that had been replaced twice"
    )


async def under_load(callers: Callers, rate: float, change: "asyncio.Future[None]") -> LoadResult:
    """Load until *change* is over, in parts that are joined."""
    whole = LoadResult(max_lag_seconds=float("inf"))
    number = itertools.count()

    async def call(_: int) -> None:
        await callers(next(number))

    while True:
        part = await paced(call, rate=rate, seconds=5.0)
        whole.outcomes += part.outcomes
        whole.latencies += part.latencies
        whole.seconds += part.seconds
        if change.done():
            break
    await change
    return whole


async def run(given: argparse.Namespace) -> None:
    """Start, load, change, tell, stop."""
    console = wide_console()
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="trunkline-restarts-"))
        root = Path(scratch) / "repository"
        prepared = await asyncio.to_thread(prepare, None, cache_dir=paths.cache_dir(), engine="auto")
        spec = prepared.spec
        await asyncio.to_thread(publish_heads, root, spec, 1)
        settings = StackSettings(root, paths.cache_dir(), Path(scratch) / "logs").on_any_ports()
        pair = Pair(Stack(settings, console.print), Stack(settings, lambda _: None))
        try:
            gateways = await pair.start()
            texts = load_workload("short", paths.cache_dir(), spec.tokenizer_json).texts
            pool = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
            swaps = partial(swap_all, root, spec, tuple(pair.heads), given.swaps, given.pause)
            with punctual():
                changes: dict[str, Callable[[], Awaitable[None]]] = {
                    "every service started anew": lambda: restart_all(pair, console.print),
                    f"{given.swaps} versions": lambda: asyncio.get_running_loop().run_in_executor(pool, swaps),
                }
                for name, change in changes.items():
                    callers = Callers(gateways, texts)
                    result = await under_load(callers, given.rate, asyncio.ensure_future(change()))
                    callers.close()
                    console.print(f"{name}, {given.rate:g} texts/s: {told(result, callers)}")
        finally:
            await pair.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.gateway_restarts", description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="texts a second; about half of what the machine does")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two versions")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
