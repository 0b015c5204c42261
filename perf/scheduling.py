"""`python -m perf.scheduling`: our queue beside strict first-come-first-served ones, same engine, same batcher, in process.

MIX arrives at a share of what the engine does under our queue, whatever the queues do with it. Short and long texts are told
apart; so are the tokens that were wanted and those that were computed. Texts are tokenised before.
"""

import argparse
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import uvloop
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from embedding_service.backend import Backend, Batch, BatchResult, EngineSpec, PassCost, TrunkSpec
from embedding_service.backend.load import load_backend
from embedding_service.backend.pooling import flattened
from embedding_service.batching import Batcher, Row
from embedding_service.models.prepare import Engine, prepare
from embedding_service.queue import EntryQueue, QueueLimits
from embedding_service.service import warm_up
from embedding_service.telemetry import PrometheusTelemetry
from perf.fifo import FifoQueue
from perf.load import LoadResult, paced, repeated
from perf.report import spread, tail_ratios
from perf.rounds import Rounds
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.systems import token_ids_of
from perf.trunks import long_trunk
from perf.workloads import Workload
from trunkline import paths

BUDGETS = (2_048, 512)
IN_FLIGHT = 64
DEADLINE_SECONDS = 30.0
OURS = "ours"
UNBOUNDED_ROWS = 1_000_000
"""A strict token budget knows no other bound."""

KINDS = ("short", "long")
PERCENTS = (50, 99)

MakeQueue = Callable[[], EntryQueue | None]
"""A new queue; None is the batcher's own."""


class Recording:
    """A backend that keeps the lengths of the rows of every batch it runs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.batches: list[tuple[int, ...]] = []

    @property
    def trunk(self) -> TrunkSpec:
        """See `Backend`."""
        return self._backend.trunk

    @property
    def engine(self) -> EngineSpec:
        """See `Backend`."""
        return self._backend.engine

    def embed(self, batch: Batch) -> BatchResult:
        """See `Backend`."""
        self.batches.append(tuple(map(len, batch.token_ids)))
        return self._backend.embed(batch)

    def close(self) -> None:
        """See `Backend`."""
        self._backend.close()


@dataclass(frozen=True, slots=True)
class Computed:
    """Tokens of some batches: wanted, put through the linear layers, and places of attention's grid."""

    useful: int
    linear: int
    grid: int

    def __str__(self) -> str:
        if not self.useful:
            return "nothing computed"
        return f"{self.useful / self.linear:.1%} of the linear layers' tokens, {self.useful / self.grid:.1%} of attention's"


def computed(batches: Collection[Sequence[int]], *, is_flat: bool) -> Computed:
    """What batches of such lengths compute.

    A *flat* graph pads only inside attention, but rounds both numbers up (`backend.pooling.flattened`); any other pads every
    row to the longest, in all layers.
    """
    useful = linear = grid = 0
    for lengths in batches:
        useful += sum(lengths)
        if is_flat:
            inputs, _ = flattened([[0] * length for length in lengths])
            linear += inputs["input_ids"].size
            grid += inputs["grid"].size
        else:
            linear += max(lengths) * len(lengths)
            grid += max(lengths) * len(lengths)
    return Computed(useful, linear, grid)


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line, read."""

    seconds: float
    rounds: int
    share: float
    max_waits: int


class Bench:
    """Runs one workload on one engine under one queue after another."""

    def __init__(self, backend: Backend, workload: Workload, limits: QueueLimits) -> None:
        self._backend = Recording(backend)
        self._workload = workload
        self._limits = limits
        views = (backend.trunk.default_view,)
        self._rows = [Row(ids, views) for ids in token_ids_of(backend, workload.texts)]
        # It is about 0 or about 1, as measured.
        self.is_flat = backend.engine.pass_cost.padding < 0.5

    def fifo(self, budget: int) -> FifoQueue:
        """A queue of strict order; where only attention pads, its budget is of tokens wanted."""
        cost = PassCost(padding=0.0 if self.is_flat else 1.0)
        return FifoQueue(replace(self._limits, max_batch_tokens=budget, max_batch_requests=UNBOUNDED_ROWS), cost)

    def fifo_cut(self) -> FifoQueue:
        """A queue of strict order that cuts batches as ours does, by the same limits."""
        return FifoQueue(self._limits, self._backend.engine.pass_cost, is_cut=True)

    async def capacity(self, seconds: float) -> float:
        """Texts a second under our queue, with always as many waiting as one could wish."""
        async with self._batcher(None) as batcher:
            ask = partial(self._ask, batcher)
            return (await repeated(ask, texts=1, in_flight=IN_FLIGHT, seconds=seconds)).throughput

    async def offered(self, make: MakeQueue, rate: float, seconds: float, seed: int) -> tuple[LoadResult, Computed]:
        """*rate* texts a second under a new queue, and what was computed for them."""
        self._backend.batches.clear()
        async with self._batcher(make()) as batcher:
            ask = partial(self._ask, batcher)
            result = await paced(ask, rate=rate, seconds=seconds, classes=self._workload.classes, seed=seed)
        return result, computed(self._backend.batches, is_flat=self.is_flat)

    async def _ask(self, batcher: Batcher, number: int) -> None:
        await batcher.run([self._rows[number % len(self._rows)]], deadline=time.monotonic() + DEADLINE_SECONDS)

    @contextlib.asynccontextmanager
    async def _batcher(self, queue: EntryQueue | None) -> AsyncIterator[Batcher]:
        batcher = Batcher(self._backend, self._limits, PrometheusTelemetry(CollectorRegistry()).of_trunk("measured"), queue=queue)
        try:
            yield batcher
        finally:
            await batcher.drain(DEADLINE_SECONDS)


async def compare(bench: Bench, asked: Asked, console: Console) -> None:
    """Each queue in turns at one rate, the same arrivals for all in a round; then the ratios."""
    rounds = Rounds((), console.print, asked.max_waits)
    await bench.capacity(2.0)
    capacity = await rounds.take(lambda: bench.capacity(asked.seconds))
    rate = asked.share * capacity
    console.print(f"our capacity {capacity:.0f} texts/s; offered {rate:.0f}")
    queues: dict[str, MakeQueue] = {OURS: lambda: None}
    queues |= {f"FIFO {budget}": partial(bench.fifo, budget) for budget in BUDGETS}
    queues["FIFO, our cuts"] = bench.fifo_cut
    taken: dict[str, list[LoadResult]] = {name: [] for name in queues}
    for seed in range(asked.rounds):
        for name, make in queues.items():
            result, tokens = await rounds.take(partial(bench.offered, make, rate, asked.seconds, seed))
            taken[name].append(result)
            console.print(f"  {name}: {said(result)}; useful {tokens}")
    console.print(table_of(taken))


def said(result: LoadResult) -> str:
    """Latencies by class, and whatever went wrong, in one line."""
    parts = [f"{kind} p{percent} {result.percentile_ms(percent, kind):.1f} ms" for kind in KINDS for percent in PERCENTS]
    errors = [f"{result.num_errors} errors"] if result.num_errors else []
    return ", ".join([*parts, *errors, *(["VOID"] if result.is_void else [])])


def table_of(taken: Mapping[str, Sequence[LoadResult]]) -> Table:
    """Ours over each other queue, by class and percentile, of the rounds that count."""
    table = Table("ours over", *(f"{kind} p{percent}" for kind in KINDS for percent in PERCENTS))
    for name, theirs in taken.items():
        if name != OURS:
            cells = (tail_ratios(taken[OURS], theirs, percent, kind) for kind in KINDS for percent in PERCENTS)
            table.add_row(name, *map(spread, cells))
    return table


@contextlib.contextmanager
def warm_backend(engine: Engine, console: Console) -> Iterator[Backend]:
    """The comparisons' trunk on *engine*, warmed up."""
    prepared = prepare(str(long_trunk(paths.cache_dir())), cache_dir=paths.cache_dir(), engine=engine, progress=console.print)
    with contextlib.closing(load_backend(prepared)) as backend:
        warm_up(backend)
        yield backend


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.scheduling", description=__doc__)
    add_common(parser, seconds=20.0, rounds=5, workloads=("mix",))
    parser.add_argument("--share", type=float, default=0.8, help="of our capacity")
    given = parser.parse_args()
    asked = Asked(given.seconds, given.rounds, given.share, given.waits)
    console = wide_console()
    with warm_backend(given.engine, console) as backend:
        for workload in workloads_asked_for(given):
            console.print(f"{workload}; {backend.engine.label}")
            uvloop.run(compare(Bench(backend, workload, QueueLimits()), asked, console))


if __name__ == "__main__":
    main()
