"""`python -m perf.embedding_vs_bare`: the embedding service by each of its ways in, beside the bare engine, in turns."""

import asyncio
import contextlib
import os
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec
from rich.console import Console

from clients import AsyncEmbeddingClient, Deadline
from clients.wire.text import TextEncoder
from embedding_service.backend import Backend
from embedding_service.backend.load import load_backend
from embedding_service.models.prepare import prepare
from perf.bare_loop import bare_loop, best_of
from perf.gateway_vs_bare import HEAD
from perf.load import LoadResult, closed_loop, repeated, target_of
from perf.workloads import short_texts, texts_of
from trunkline import paths
from trunkline.demo_data import prepare_demo_data
from trunkline.stack import Stack, StackSettings

ROUNDS = 7
SECONDS = 3.0
IN_FLIGHT = 64
HTTP_IN_FLIGHT = 32
MANY = 32

Way = Callable[[float], Awaitable[LoadResult]]
"""Loads the service for so many seconds."""


@dataclass(frozen=True, slots=True)
class Service:
    """The embedding service of a running stack."""

    grpc: str
    http: str
    pid: int


@contextlib.asynccontextmanager
async def ways_of(service: Service, texts: list[str]) -> AsyncIterator[dict[str, Way]]:
    """Each way in, by the name it is printed under."""
    pids = {"embedding": service.pid}
    groups = [[texts[(start + offset) % len(texts)] for offset in range(MANY)] for start in range(0, len(texts), MANY)]
    openai = [msgspec.json.encode({"input": text, "encoding_format": "base64"}) for text in texts]
    tei = [msgspec.json.encode({"inputs": text}) for text in texts]
    async with AsyncEmbeddingClient(service.grpc, timeout=10.0) as client:
        stream = client.stream()

        async def unary(number: int) -> None:
            await client.embed([texts[number % len(texts)]])

        async def many(number: int) -> None:
            await client.embed(groups[number % len(groups)])

        async def streamed(number: int) -> None:
            await stream.embed([texts[number % len(texts)]], Deadline.after(10.0))

        async def over_http(seconds: float, path: str, bodies: list[bytes]) -> LoadResult:
            return await closed_loop(target_of(service.http, bodies, path), in_flight=HTTP_IN_FLIGHT, seconds=seconds, pids=pids)

        try:
            yield {
                f"gRPC, one text, {IN_FLIGHT} in flight": lambda s: repeated(
                    unary, texts=1, in_flight=IN_FLIGHT, seconds=s, pids=pids
                ),
                f"gRPC stream, one text, {IN_FLIGHT} in flight": lambda s: repeated(
                    streamed, texts=1, in_flight=IN_FLIGHT, seconds=s, pids=pids
                ),
                f"gRPC, {MANY} texts, 4 in flight": lambda s: repeated(many, texts=MANY, in_flight=4, seconds=s, pids=pids),
                f"HTTP /v1/embeddings, {HTTP_IN_FLIGHT} in flight": lambda s: over_http(s, "/v1/embeddings", openai),
                f"HTTP /embed, {HTTP_IN_FLIGHT} in flight": lambda s: over_http(s, "/embed", tei),
            }
        finally:
            await stream.close()


async def compare(service: Service, backend: Backend, texts: list[str], console: Console) -> None:
    """Measure the bare loop and every way in turns; print the ratios' medians and spreads."""
    encoder = TextEncoder(backend.trunk.tokenizer_json, max_tokens=backend.trunk.max_tokens)
    token_ids = [tuple(item.ids) for item in encoder.encode(texts)]
    median = statistics.median(map(len, token_ids))
    console.print(f"{len(texts)} texts, median {median:.0f} tokens; {backend.engine.label}; {os.cpu_count()} cores")
    ratios: dict[str, list[float]] = {}
    async with ways_of(service, texts) as ways:
        for way in ways.values():
            await way(2.0)
        size = (await asyncio.to_thread(best_of, backend, token_ids, 1.0)).batch_size
        for _ in range(ROUNDS):
            bare = await asyncio.to_thread(bare_loop, backend, token_ids, size, 2.0)
            console.print(f"bare loop {bare.throughput:.0f} texts/s (batch {size}, {bare.cpu_ms_per_text:.2f} CPU ms/text)")
            for name, way in ways.items():
                result = await way(SECONDS)
                console.print(f"  {name}: {result.summary()}")
                ratios.setdefault(name, []).append(result.throughput / bare.throughput)
    for name, values in ratios.items():
        console.print(f"{name}: {statistics.median(values):.1%} of the bare loop (from {min(values):.1%} to {max(values):.1%})")


async def run(console: Console) -> None:
    """Prepare, measure, stop."""
    files = [head.train_csv for head in prepare_demo_data(paths.cache_dir(), print) if head.name == HEAD]
    backend = load_backend(prepare(None, cache_dir=paths.cache_dir(), engine="auto"))
    encoder = TextEncoder(backend.trunk.tokenizer_json, max_tokens=backend.trunk.max_tokens)
    # The texts come again and again: a cache would answer for the engine.
    os.environ["TRUNKLINE_EMBEDDING_CACHE_BYTES"] = "0"
    home = paths.home()
    stack = Stack(StackSettings(home / "repository", paths.cache_dir(), home / "logs").on_any_ports(), lambda _: None)
    with contextlib.closing(backend):
        try:
            grpc, http = await stack.start_embedding()
            service = Service(grpc, http, stack.children["embedding"].pid)
            await compare(service, backend, short_texts(texts_of(files[0]), encoder), console)
        finally:
            await stack.stop()


if __name__ == "__main__":
    asyncio.run(run(Console(highlight=False, soft_wrap=True)))
