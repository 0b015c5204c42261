"""`python -m perf.gateway_vs_bare`: plan four beside the bare engine, same weights, same texts, same cores, A B A B."""

import asyncio
import contextlib
import os
import statistics
from pathlib import Path

from rich.console import Console

from clients.wire.text import TextEncoder
from embedding_service.backend import Backend
from embedding_service.backend.load import load_backend
from embedding_service.models.prepare import prepare
from perf.bare_loop import BareResult, bare_loop, best_of
from perf.load import LoadResult, classify_bodies, closed_loop, target_of
from perf.workloads import short_texts, texts_of
from trunkline import paths
from trunkline.demo_data import prepare_demo_data
from trunkline.stack import Stack, StackSettings

ROUNDS = 7
IN_FLIGHT = 32
# Short turns: a neighbour on a shared machine that slows one of the two should meet the other too.
GATEWAY_SECONDS = 4.0
BARE_SECONDS = 2.0
HEAD = "sentiment"


async def compare(stack: Stack, backend: Backend, texts: list[str], console: Console) -> None:
    """Measure both in turns and print each round, then the ratio with its spread."""
    encoder = TextEncoder(backend.trunk.tokenizer_json, max_tokens=backend.trunk.max_tokens)
    token_ids = [tuple(item.ids) for item in encoder.encode(texts)]
    median = statistics.median(map(len, token_ids))
    console.print(
        f"{len(texts)} texts, median {median:.0f} tokens; {backend.engine.label}; {os.cpu_count()} cores; {IN_FLIGHT} in flight"
    )
    addresses = await stack.start()
    pids = {name: child.pid for name, child in stack.children.items()}
    target = target_of(addresses.gateway, classify_bodies(texts, [HEAD]))
    await closed_loop(target, in_flight=IN_FLIGHT, seconds=3.0)
    size = (await asyncio.to_thread(best_of, backend, token_ids, 1.0)).batch_size
    rounds: list[tuple[BareResult, LoadResult]] = []
    for _ in range(ROUNDS):
        bare = await asyncio.to_thread(bare_loop, backend, token_ids, size, BARE_SECONDS)
        console.print(
            f"bare loop  {bare.throughput:.0f} texts/s (batch {bare.batch_size}, {bare.cpu_ms_per_text:.2f} CPU ms/text)"
        )
        served = await closed_loop(target, in_flight=IN_FLIGHT, seconds=GATEWAY_SECONDS, pids=pids)
        console.print(f"gateway    {served.summary()}")
        rounds.append((bare, served))
    ratios = [served.throughput / bare.throughput for bare, served in rounds]
    console.print(f"gateway / bare loop: {statistics.median(ratios):.1%} (from {min(ratios):.1%} to {max(ratios):.1%})")


async def run(console: Console) -> None:
    """Prepare, measure, stop."""
    home = paths.home()
    if not (home / "repository" / HEAD).is_dir():
        raise SystemExit(f"there is no head {HEAD!r} in {home / 'repository'}: run `trunkline demo` first")
    texts = _texts()
    backend = load_backend(prepare(None, cache_dir=paths.cache_dir(), engine="auto"))
    encoder = TextEncoder(backend.trunk.tokenizer_json, max_tokens=backend.trunk.max_tokens)
    # The texts come again and again: a cache would answer for the engine.
    os.environ["TRUNKLINE_EMBEDDING_CACHE_BYTES"] = "0"
    settings = StackSettings(home / "repository", paths.cache_dir(), home / "logs").on_any_ports()
    stack = Stack(settings, lambda _: None)
    with contextlib.closing(backend):
        try:
            await compare(stack, backend, short_texts(texts, encoder), console)
        finally:
            await stack.stop()


def _texts() -> list[str]:
    files: list[Path] = [head.train_csv for head in prepare_demo_data(paths.cache_dir(), print) if head.name == HEAD]
    return texts_of(files[0])


if __name__ == "__main__":
    asyncio.run(run(Console(highlight=False, soft_wrap=True)))
