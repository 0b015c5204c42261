"""`python -m perf.micro.lone_tokens`: little work on all cores, one pass after another, beside passes side by side.

Our batcher in process, with one number of `EngineSpec.lone_tokens` and another, in turns; the same texts arrive at random times,
at several shares of what the engine does. Texts are tokenised before. CPU is of the whole process, the generator included.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial

import uvloop
from rich.console import Console
from rich.table import Table

from embedding_service.models.build import LONE_TOKENS
from embedding_service.priority import share_the_interpreter
from embedding_service.queue import QueueLimits
from perf.load import LoadResult
from perf.report import ratios, spread, tail_ratios
from perf.rounds import Rounds
from perf.scheduling import Bench, warm_backend
from perf.settings import add_common, wide_console, workloads_asked_for

SHARES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
WARM_UP_SECONDS = 2.0

Taken = Mapping[int, Sequence[LoadResult]]
"""By lone_tokens, a result a round."""


async def compare(benches: Mapping[int, Bench], given: argparse.Namespace, console: Console) -> None:
    """Each of *benches*, by its lone_tokens, at each share of the capacity; the same arrivals for all in a round."""
    rounds = Rounds((), console.print, given.waits)
    first = next(iter(benches.values()))
    await first.capacity(WARM_UP_SECONDS)
    capacity = await rounds.take(lambda: first.capacity(given.seconds))
    console.print(f"capacity {capacity:.0f} texts/s")
    taken: dict[float, dict[int, list[LoadResult]]] = {share: {tokens: [] for tokens in benches} for share in given.shares}
    for seed in range(given.rounds):
        for share, by_tokens in taken.items():
            for tokens, bench in benches.items():
                offer = partial(bench.offered, lambda: None, share * capacity, given.seconds, seed)
                by_tokens[tokens].append((await rounds.take(offer))[0])
    console.print(table_of(taken, capacity))


def table_of(taken: Mapping[float, Taken], capacity: float) -> Table:
    """Each number of tokens beside the first one, which is the base, by share of *capacity*, texts a second."""
    table = Table("texts/s", "lone tokens", "p50 ms", "p50", "p99", "CPU a text")
    for share, by_tokens in taken.items():
        base = next(iter(by_tokens.values()))
        for tokens, results in by_tokens.items():
            table.add_row(
                f"{share * capacity:.0f}",
                str(tokens),
                spread([result.percentile_ms(50) for result in results], "{:.1f}"),
                spread(tail_ratios(results, base, 50)),
                spread(tail_ratios(results, base, 99)),
                spread(ratios(_cpu_of(results), _cpu_of(base))),
            )
    return table


def _cpu_of(results: Sequence[LoadResult]) -> list[float]:
    return [result.cpu_ms_per_text["load"] for result in results]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.lone_tokens", description=__doc__)
    add_common(parser, seconds=5.0, rounds=5, workloads=("short",))
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="of the capacity")
    parser.add_argument("--tokens", type=int, nargs="+", default=[0, *LONE_TOKENS.values()], help="the first is the base")
    given = parser.parse_args()
    console = wide_console()
    share_the_interpreter()
    with warm_backend(given.engine, console) as backend:
        for workload in workloads_asked_for(given):
            console.print(f"{workload}; {backend.engine.label}")
            benches = {tokens: Bench(backend, workload, QueueLimits(lone_tokens=tokens)) for tokens in given.tokens}
            uvloop.run(compare(benches, given, console))


if __name__ == "__main__":
    main()
