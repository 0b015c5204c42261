"""`python -m perf.embedding_vs_bare`: the embedding service by each of its ways in, beside the bare engine, in turns.

"in process" is the service without any protocol: what a caller in its own process would get. No way in can be better. It is
measured a second time without batches cut before a thread is free for them. Unary calls are asked by a lean generator, their
messages made before, as those over HTTP are; "by our client" is the same by `AsyncEmbeddingClient`, whose CPU time is then part
of what is compared.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

import uvloop
from prometheus_client import CollectorRegistry
from rich.console import Console

from clients import AsyncEmbeddingClient, Deadline
from clients._embedding_wire import EmbedOptions, build_embed
from clients.wire.metadata import EMBEDDING_SERVICE
from clients.wire.rpc.sockets import parse_address
from embedding_service.backend import Backend
from embedding_service.backend.load import load_backend
from embedding_service.infer import EmbedCall, HostedTrunk, Infer
from embedding_service.models.prepare import prepare
from embedding_service.priority import share_the_interpreter
from embedding_service.queue import QueueLimits
from embedding_service.telemetry import PrometheusTelemetry
from embedding_service.tokenization import InputLimits
from perf import grpc_client
from perf.bare_loop import bare_loop, best_of
from perf.grpc_client import Call
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
    singles, together = calls_of(service.grpc, [[text] for text in texts]), calls_of(service.grpc, groups)
    _, host, port = parse_address(service.grpc)
    connection = await grpc_client.Connection.open(host, port)
    async with AsyncEmbeddingClient(service.grpc, timeout=10.0) as client:
        stream = client.stream()

        async def unary(number: int) -> None:
            await client.embed([texts[number % len(texts)]])

        async def by_grpc(seconds: float, calls: Sequence[Call], texts_a_call: int, in_flight: int) -> LoadResult:
            return await grpc_client.closed_loop(
                connection, calls, texts=texts_a_call, in_flight=in_flight, seconds=seconds, pids=pids
            )

        async def streamed(number: int) -> None:
            await stream.embed([texts[number % len(texts)]], Deadline.after(10.0))

        async def over_http(seconds: float, route: Route) -> LoadResult:
            return await closed_loop(service.target(route, workload), in_flight=HTTP_IN_FLIGHT, seconds=seconds, pids=pids)

        try:
            yield {
                f"gRPC, one text, {IN_FLIGHT} in flight": lambda s: by_grpc(s, singles, 1, IN_FLIGHT),
                f"gRPC, one text, {IN_FLIGHT} in flight, by our client": lambda s: repeated(
                    unary, texts=1, in_flight=IN_FLIGHT, seconds=s, pids=pids
                ),
                f"gRPC stream, one text, {IN_FLIGHT} in flight": lambda s: repeated(
                    streamed, texts=1, in_flight=IN_FLIGHT, seconds=s, pids=pids
                ),
                f"gRPC, {MANY} texts, 4 in flight": lambda s: by_grpc(s, together, MANY, 4),
                f"gRPC, {MANY} texts, 16 in flight": lambda s: by_grpc(s, together, MANY, 16),
                f"HTTP /v1/embeddings, {HTTP_IN_FLIGHT} in flight": lambda s: over_http(s, OPENAI),
                f"HTTP /embed, {HTTP_IN_FLIGHT} in flight": lambda s: over_http(s, TEI),
            }
        finally:
            await stream.close()
            connection.close()


def calls_of(address: str, groups: Sequence[Sequence[str]]) -> list[Call]:
    """A request for the vectors of each of *groups*."""
    return [Call(address, f"/{EMBEDDING_SERVICE}/Embed", build_embed(texts, EmbedOptions())) for texts in groups]


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
