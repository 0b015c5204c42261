"""`python -m perf.gateway_vs_bare`: the gateway with one head beside the bare engine, and beside calling both services oneself.

Same weights, same texts, same cores, in turns. "direct" is what a caller without a gateway does: embed by the stream of our
client, then Predict by the other. The gateway's own cost is what it takes beyond that. It is a tenth of what both take together,
and a processor that others share changes its speed by more within seconds: the two are asked in turns, a second at a time.
"""

import argparse
import asyncio
import contextlib
import math
import os
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial

import uvloop
from rich.console import Console

from clients import AsyncEmbeddingClient, AsyncHeadClient, Deadline
from embedding_service.backend import Backend
from embedding_service.backend.load import load_backend
from embedding_service.models.prepare import prepare
from perf.bare_loop import bare_loop, best_of
from perf.load import LoadResult, closed_loop, joined, repeated
from perf.report import spread
from perf.rounds import Rounds
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.systems import Running, our_gateway, token_ids_of
from perf.workloads import Workload
from trunkline import paths

BARE_SECONDS = 2.0
IN_FLIGHT = (64, 1)
SLICE_SECONDS = 1.0
HEAD = "sentiment"

Way = Callable[[float], Awaitable[LoadResult]]


@contextlib.asynccontextmanager
async def ways_of(stack: Running, workload: Workload) -> AsyncIterator[dict[tuple[str, int], Way]]:
    """By name and requests in flight."""
    texts, pids = workload.texts, stack.pids
    async with AsyncEmbeddingClient(stack.grpc) as embedding, AsyncHeadClient(stack.heads_grpc) as heads:
        stream = embedding.stream()

        async def direct(number: int) -> None:
            [[vector]] = await stream.embed([texts[number % len(texts)]], Deadline.after(10.0))
            await heads.predict(HEAD, {"embedding": vector[None]}, output_filter=["scores"])

        def by_gateway(in_flight: int) -> Way:
            target = stack.target(stack.routes[0], workload)
            return lambda seconds: closed_loop(target, in_flight=in_flight, seconds=seconds, pids=pids)

        def by_hand(in_flight: int) -> Way:
            return lambda seconds: repeated(direct, texts=1, in_flight=in_flight, seconds=seconds, pids=pids)

        try:
            ways: dict[tuple[str, int], Way] = {}
            for in_flight in IN_FLIGHT:
                ways |= {("gateway", in_flight): by_gateway(in_flight), ("direct", in_flight): by_hand(in_flight)}
            yield ways
        finally:
            await stream.close()


async def compare(stack: Running, backend: Backend, workload: Workload, given: argparse.Namespace, console: Console) -> None:
    """Measure all in turns; print each round, then medians with their spreads."""
    token_ids = token_ids_of(backend, workload.texts)
    median = statistics.median(map(len, token_ids))
    console.print(f"{workload}, median {median:.0f} tokens; {backend.engine.label}; {os.cpu_count()} cores")
    rounds = Rounds(list(stack.pids.values()), console.print, given.waits)
    shares: list[float] = []
    found: dict[tuple[str, int], list[LoadResult]] = {}
    async with ways_of(stack, workload) as ways:
        for way in ways.values():
            await way(2.0)
        size = (await asyncio.to_thread(best_of, backend, token_ids, 1.0)).batch_size
        for _ in range(given.rounds):
            bare = await rounds.take(partial(asyncio.to_thread, bare_loop, backend, token_ids, size, BARE_SECONDS))
            console.print(f"bare loop {bare.throughput:.0f} texts/s (batch {size}, {bare.cpu_ms_per_text:.2f} CPU ms/text)")
            for in_flight in IN_FLIGHT:
                pair = {key: way for key, way in ways.items() if key[1] == in_flight}
                for key, result in (await rounds.take(partial(in_turns, pair, given.seconds))).items():
                    console.print(f"  {key[0]}, {key[1]} in flight: {result.summary()}")
                    found.setdefault(key, []).append(result)
            shares.append(found["gateway", IN_FLIGHT[0]][-1].throughput / bare.throughput)
    console.print(f"gateway, {IN_FLIGHT[0]} in flight: {spread(shares, '{:.1%}')} of the bare loop")
    for in_flight in IN_FLIGHT:
        pairs = list(zip(found["gateway", in_flight], found["direct", in_flight], strict=True))
        slower = [ours.percentile_ms(50) - theirs.percentile_ms(50) for ours, theirs in pairs]
        costs = [1000 * (cpu_of(ours) - cpu_of(theirs)) for ours, theirs in pairs]
        console.print(
            f"gateway over direct, {in_flight} in flight: p50 {spread(slower, '{:+.2f} ms')}, CPU {spread(costs, '{:+.0f} us')}"
        )


async def in_turns(ways: Mapping[tuple[str, int], Way], seconds: float) -> dict[tuple[str, int], LoadResult]:
    """Each of *ways* for *seconds*, all of them a slice at a time, in the other order every other time."""
    num_slices = max(1, math.ceil(seconds / SLICE_SECONDS))
    parts: dict[tuple[str, int], list[LoadResult]] = {key: [] for key in ways}
    for number in range(num_slices):
        for key in list(ways)[:: -1 if number % 2 else 1]:
            parts[key].append(await ways[key](seconds / num_slices))
    return {key: joined(results) for key, results in parts.items()}


def cpu_of(result: LoadResult) -> float:
    """Milliseconds a text of all processes, the caller's included: over both ways it does the same work, elsewhere."""
    return sum(result.cpu_ms_per_text.values())


async def run(given: argparse.Namespace, workloads: list[Workload], console: Console) -> None:
    """Prepare, measure, stop."""
    backend = load_backend(prepare(None, cache_dir=paths.cache_dir(), engine=given.engine))
    with contextlib.closing(backend):
        async with our_gateway([HEAD], engine=given.engine, say=console.print) as stack:
            for workload in workloads:
                await compare(stack, backend, workload, given, console)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.gateway_vs_bare", description=__doc__)
    add_common(parser, seconds=3.0, rounds=7, workloads=("short",))
    given = parser.parse_args()
    uvloop.run(run(given, workloads_asked_for(given), wide_console()))


if __name__ == "__main__":
    main()
