"""`python -m perf.micro.beside_passes`: what a text costs beside its pass, by each way in, and what that leaves of the bare loop.

Our embedding service with its ports, protocols, queue and batches, and the gateway and a head before it, on an engine that takes
the time of the real one and computes nothing. The CPU time they then take, the caller's included, is what a text costs beside
its pass. Where all cores are busy, passes get what it leaves of them: at most bare / (bare + beside) of the bare loop, for an
engine that pads nothing, is never interrupted and never waits.
"""

import argparse
import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import uvloop
from rich.console import Console

from clients.wire.http_server import allow_many_connections, calm_collector
from embedding_service.backend import Backend, Batch, BatchResult, EngineSpec, TrunkSpec
from embedding_service.backend.load import load_backend
from embedding_service.memory import share_one_heap
from embedding_service.models.prepare import Engine, prepare
from embedding_service.priority import share_the_interpreter
from embedding_service.queue import BatchShape
from embedding_service.service import Addresses, serve
from embedding_service.settings import Settings
from perf import embedding_vs_bare, gateway_vs_bare
from perf.bare_loop import BareResult, bare_loop, best_of
from perf.load import LoadResult
from perf.report import spread
from perf.rounds import Rounds
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.systems import OPENAI, TEI, Running, our_gateway, token_ids_of
from perf.workloads import Workload
from trunkline import paths
from trunkline.processes import Child

BARE_SECONDS: Final = 2.0
WARM_UP_SECONDS: Final = 1.0
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 8.0
READY: Final = re.compile(r"^embedding grpc=(\S+) http=(\S+)$")

Way = Callable[[float], Awaitable[LoadResult]]
"""Loads a service for so many seconds."""


class TimedPasses:
    """A `Backend` whose passes take *seconds_a_token*, for padding and the pass itself as well; all texts have one vector."""

    def __init__(self, trunk: TrunkSpec, engine: EngineSpec, seconds_a_token: float) -> None:
        self.trunk = trunk
        self.engine = engine
        self._seconds_a_token = seconds_a_token
        self._vector = np.full(trunk.width, trunk.width**-0.5, np.float32)

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        cost = self.engine.pass_cost
        computed = BatchShape(cost, map(len, batch.token_ids)).computed
        time.sleep((cost.overhead + computed) * self._seconds_a_token)
        return [[self._vector.copy() for _ in views] for views in batch.views]

    def close(self) -> None:
        """See `embedding_service.backend.Backend`."""


def seconds_a_token(bare: BareResult, engine: EngineSpec, mean_tokens: float) -> float:
    """What a token takes on one of the engine's threads, so that full passes take what those of the *bare* loop take."""
    tokens_a_text = mean_tokens + engine.pass_cost.overhead / bare.batch_size
    return engine.concurrency / (bare.throughput * tokens_a_text)


def share_left(bare_ms: float, beside_ms: float) -> float:
    """Of the bare loop's throughput, at most, where a text takes *bare_ms* of CPU in it and *beside_ms* beside its pass."""
    return bare_ms / (bare_ms + beside_ms)


def beside_ms(result: LoadResult) -> float:
    """CPU milliseconds a text of all processes."""
    return sum(result.cpu_ms_per_text.values())


def serve_timed(engine: Engine, seconds: float) -> None:
    """The embedding service as its command line runs it, on `TimedPasses`; until it is told to end."""
    prepared = prepare(None, cache_dir=paths.cache_dir(), engine=engine)
    allow_many_connections()
    share_one_heap()
    calm_collector()
    share_the_interpreter()
    settings = Settings.model_validate({"host": "127.0.0.1", "grpc_port": 0, "http_port": 0, "cache_bytes": 0})
    uvloop.run(serve([TimedPasses(prepared.spec, prepared.engine, seconds)], settings, _announce))


def _announce(addresses: Addresses) -> None:
    print(f"embedding grpc={addresses.grpc} http={addresses.http}", flush=True)


@contextlib.asynccontextmanager
async def timed_service(engine: Engine, seconds: float) -> AsyncIterator[Running]:
    """`serve_timed` in a process of its own, until the context ends."""
    command = [sys.executable, "-m", "perf.micro.beside_passes", "--engine", engine, "--serve", repr(seconds)]
    with tempfile.TemporaryDirectory() as folder:
        child = Child("embedding", command, ready=READY, log=Path(folder) / "embedding.log", env=dict(os.environ))
        try:
            match = await child.start(START_SECONDS)
            yield Running("embedding", match[2], child.pid, (OPENAI, TEI), match[1])
        finally:
            await child.stop(STOP_SECONDS)


async def compare(ways: Mapping[str, Way], rounds: Rounds, bare: Way, given: argparse.Namespace, console: Console) -> None:
    """The bare loop and each of *ways* in turns; print what each text costs beside its pass, and what that leaves."""
    beside: dict[str, list[float]] = {name: [] for name in ways}
    left: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        await way(WARM_UP_SECONDS)
    for _ in range(given.rounds):
        bare_ms = beside_ms(await rounds.take(partial(bare, BARE_SECONDS)))
        console.print(f"bare loop {1000 * bare_ms:.0f} us of CPU a text")
        for name, way in ways.items():
            result = await rounds.take(partial(way, given.seconds))
            console.print(f"  {name}: {result.summary()}")
            beside[name].append(beside_ms(result))
            left[name].append(share_left(bare_ms, beside[name][-1]))
    for name, costs in beside.items():
        told = spread([1000 * cost for cost in costs], "{:.0f} us")
        console.print(f"{name}: beside its pass {told}; at most {spread(left[name], '{:.1%}')} of the bare loop")


async def measure(backend: Backend, workload: Workload, given: argparse.Namespace, console: Console) -> None:
    """Start all on passes as long as those of *backend*, and compare."""
    token_ids = token_ids_of(backend, workload.texts)
    best = await asyncio.to_thread(best_of, backend, token_ids, 1.0)
    mean_tokens = sum(map(len, token_ids)) / len(token_ids)
    console.print(f"{workload}, {mean_tokens:.1f} tokens a text; {backend.engine.label}; {os.cpu_count()} cores")

    async def bare(seconds: float) -> LoadResult:
        result = await asyncio.to_thread(bare_loop, backend, token_ids, best.batch_size, seconds)
        return LoadResult(cpu_ms_per_text={"bare loop": result.cpu_ms_per_text})

    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(timed_service(given.engine, seconds_a_token(best, backend.engine, mean_tokens)))
        pids = [service.pid]
        ways: dict[str, Way] = {**await stack.enter_async_context(embedding_vs_bare.ways_of(service, workload))}
        if given.head:
            gateway = await stack.enter_async_context(our_gateway([given.head], embedding=service, say=console.print))
            pids += gateway.pids.values()
            found = await stack.enter_async_context(gateway_vs_bare.ways_of(gateway, workload))
            busiest = max(gateway_vs_bare.IN_FLIGHT)
            ways |= {f"{who}, one head, {count} in flight": way for (who, count), way in found.items() if count == busiest}
        await compare(ways, Rounds(pids, console.print, given.waits), bare, given, console)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.beside_passes", description=__doc__)
    add_common(parser, seconds=2.0, rounds=5, workloads=("short",))
    parser.add_argument("--head", default="sentiment", help='of trunkline\'s home, for the gateway; "": without a gateway')
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve_timed(given.engine, given.serve)
        return
    backend = load_backend(prepare(None, cache_dir=paths.cache_dir(), engine=given.engine))
    console = wide_console()
    with contextlib.closing(backend):
        for workload in workloads_asked_for(given):
            uvloop.run(measure(backend, workload, given, console))


if __name__ == "__main__":
    main()
