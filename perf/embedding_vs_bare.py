"""`python -m perf.embedding_vs_bare`: the embedding service by each of its ways in, beside the bare engine, in turns.

"in process" is the service without any protocol: what a caller in its own process would get. No way in can be better. It is
measured a second time without batches cut before a thread is free for them.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import uvloop
from prometheus_client import CollectorRegistry
from rich.console import Console

from clients import AsyncEmbeddingClient, Deadline
from embedding_service.backend import Backend
from embedding_service.backend.load import load_backend
from embedding_service.infer import EmbedCall, HostedTrunk, Infer
from embedding_service.models.prepare import prepare
from embedding_service.priority import share_the_interpreter
from embedding_service.queue import QueueLimits
from embedding_service.telemetry import PrometheusTelemetry
from embedding_service.tokenization import InputLimits
from perf.bare_loop import bare_loop, best_of
from perf.load import TIMEOUT_SECONDS, LoadResult, closed_loop, repeated
from perf.report import spread
from perf.rounds import Rounds
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.systems import OPENAI, TEI, Route, Running, our_service, token_ids_of
from perf.trunks import long_trunk
from perf.workloads import Workload
from trunkline import paths

BARE_SECONDS = 2.0
IN_FLIGHT = 64
HTTP_IN_FLIGHT = 32
MANY = 32

Way = Callable[[float], Awaitable[LoadResult]]
"""Loads the service for so many seconds."""


@contextlib.asynccontextmanager
async def ways_of(service: Running, workload: Workload) -> AsyncIterator[dict[str, Way]]:
    """Each way in, by the name it is printed under."""
    texts, pids = workload.texts, {service.name: service.pid}
    groups = [[texts[(start + offset) % len(texts)] for offset in range(MANY)] for start in range(0, len(texts), MANY)]
    async with AsyncEmbeddingClient(service.grpc, timeout=10.0) as client:
        stream = client.stream()

        async def unary(number: int) -> None:
            await client.embed([texts[number % len(texts)]])

        async def many(number: int) -> None:
            await client.embed(groups[number % len(groups)])

        async def streamed(number: int) -> None:
            await stream.embed([texts[number % len(texts)]], Deadline.after(10.0))

        async def over_http(seconds: float, route: Route) -> LoadResult:
            return await closed_loop(service.target(route, workload), in_flight=HTTP_IN_FLIGHT, seconds=seconds, pids=pids)

        try:
            yield {
                f"gRPC, one text, {IN_FLIGHT} in flight": lambda s: repeated(
                    unary, texts=1, in_flight=IN_FLIGHT, seconds=s, pids=pids
                ),
                f"gRPC stream, one text, {IN_FLIGHT} in flight": lambda s: repeated(
                    streamed, texts=1, in_flight=IN_FLIGHT, seconds=s, pids=pids
                ),
                f"gRPC, {MANY} texts, 4 in flight": lambda s: repeated(many, texts=MANY, in_flight=4, seconds=s, pids=pids),
                f"gRPC, {MANY} texts, 16 in flight": lambda s: repeated(many, texts=MANY, in_flight=16, seconds=s, pids=pids),
                f"HTTP /v1/embeddings, {HTTP_IN_FLIGHT} in flight": lambda s: over_http(s, OPENAI),
                f"HTTP /embed, {HTTP_IN_FLIGHT} in flight": lambda s: over_http(s, TEI),
            }
        finally:
            await stream.close()


@contextlib.asynccontextmanager
async def in_process(backend: Backend, workload: Workload, limits: QueueLimits) -> AsyncIterator[Way]:
    """The service's heart around *backend*, asked for single texts by this process."""
    telemetry = PrometheusTelemetry(CollectorRegistry())
    trunk = HostedTrunk(backend, limits, telemetry.of_trunk(backend.trunk.name))
    infer = Infer([trunk], InputLimits(), telemetry)

    async def ask(number: int) -> None:
        await infer.embed(EmbedCall([workload.texts[number % len(workload.texts)]], time.monotonic() + TIMEOUT_SECONDS))

    try:
        yield lambda seconds: repeated(ask, texts=1, in_flight=IN_FLIGHT, seconds=seconds)
    finally:
        await trunk.batcher.drain(TIMEOUT_SECONDS)


async def compare(service: Running, backend: Backend, workload: Workload, given: argparse.Namespace, console: Console) -> None:
    """Measure the bare loop and every way in turns; print the ratios' medians and spreads."""
    token_ids = token_ids_of(backend, workload.texts)
    median = statistics.median(map(len, token_ids))
    console.print(f"{workload}, median {median:.0f} tokens; {backend.engine.label}; {os.cpu_count()} cores")
    ratios: dict[str, list[float]] = {}
    rounds = Rounds([service.pid], console.print, given.waits)
    async with (
        ways_of(service, workload) as outside,
        in_process(backend, workload, QueueLimits()) as inside,
        in_process(backend, workload, QueueLimits(ahead_share=None)) as none_ahead,
    ):
        ways = {
            f"in process, one text, {IN_FLIGHT} in flight": inside,
            f"in process, one text, {IN_FLIGHT} in flight, none cut ahead": none_ahead,
            **outside,
        }
        for way in ways.values():
            await way(2.0)
        size = (await asyncio.to_thread(best_of, backend, token_ids, 1.0)).batch_size
        for _ in range(given.rounds):
            bare = await rounds.take(partial(asyncio.to_thread, bare_loop, backend, token_ids, size, BARE_SECONDS))
            console.print(f"bare loop {bare.throughput:.0f} texts/s (batch {size}, {bare.cpu_ms_per_text:.2f} CPU ms/text)")
            for name, way in ways.items():
                result = await rounds.take(partial(way, given.seconds))
                console.print(f"  {name}: {result.summary()}")
                ratios.setdefault(name, []).append(result.throughput / bare.throughput)
    for name, values in ratios.items():
        console.print(f"{name}: {spread(values, '{:.1%}')} of the bare loop")


async def run(given: argparse.Namespace, workloads: list[Workload], console: Console) -> None:
    """Prepare, measure, stop."""
    share_the_interpreter()
    trunk = long_trunk(paths.cache_dir())
    backend = load_backend(prepare(str(trunk), cache_dir=paths.cache_dir(), engine=given.engine))
    with contextlib.closing(backend):
        async with our_service(trunk, engine=given.engine, say=console.print) as service:
            for workload in workloads:
                await compare(service, backend, workload, given, console)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.embedding_vs_bare", description=__doc__)
    add_common(parser, seconds=3.0, rounds=7, workloads=("short",))
    given = parser.parse_args()
    uvloop.run(run(given, workloads_asked_for(given), wide_console()))


if __name__ == "__main__":
    main()
