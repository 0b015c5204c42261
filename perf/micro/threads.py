"""`python -m perf.micro.threads`: how to spend the cores: passes side by side with a thread each, or one pass with all of them.

Three layouts of OpenVINO over the same texts, in turns: one process with a pass a core (as the service runs it under load), one
process with one pass on several, and a process a core with one pass each. And what a text that comes alone waits for its pass,
on one core and on several (as the service runs it), with pauses in between as in a service that is hardly used.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from embedding_service.backend import Backend, Batch, BatchResult
from embedding_service.backend.load import PreparedTrunk, num_cores
from embedding_service.backend.openvino import PRECISIONS, OpenVinoBackend
from embedding_service.models.prepare import prepare
from perf.bare_loop import bare_loop
from perf.report import spread
from perf.settings import wide_console
from perf.systems import token_ids_of
from perf.workloads import load_workload
from trunkline import paths

BATCH_SIZES = (1, 4, 16)
LONE_TEXTS = 100
LONE_PAUSE_SECONDS = 0.003

Ids = Sequence[tuple[int, ...]]
Layout = Callable[[int, float], float]
"""Texts a second with batches of that size, over so many seconds."""


def backend_of(prepared: PreparedTrunk, concurrency: int) -> OpenVinoBackend:
    """*prepared*, run by so many passes at once, or by one with as many threads."""
    precision = PRECISIONS[prepared.engine_name]
    engine = replace(prepared.engine, concurrency=concurrency)
    return OpenVinoBackend(prepared.spec, engine, prepared.graph, precision, lone_threads=concurrency)


class OneAtATime:
    """*backend*, all of whose passes are alone; a `Backend`."""

    def __init__(self, backend: OpenVinoBackend) -> None:
        self._backend = backend
        self.trunk = backend.trunk
        self.engine = replace(backend.engine, concurrency=1)

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        return self._backend.embed(replace(batch, is_alone=True))

    def close(self) -> None:
        """See `embedding_service.backend.Backend`; whose backend it is closes it."""


def lone_milliseconds(backend: Backend, token_ids: Ids) -> float:
    """The median of a pass of one text, each after a pause."""
    views = ((backend.trunk.default_view,),)
    taken = []
    for ids in token_ids[:LONE_TEXTS]:
        time.sleep(LONE_PAUSE_SECONDS)
        began = time.perf_counter()
        backend.embed(Batch((ids,), views))
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


def in_one_process(backend: Backend, token_ids: Ids, size: int, seconds: float) -> float:
    """One layout that needs no other process."""
    return bare_loop(backend, token_ids, size, seconds).throughput


def in_processes(prepared: PreparedTrunk, token_ids: Ids, count: int, size: int, seconds: float) -> float:
    """*count* processes with one pass and one thread each; they start to measure together."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(count), context.SimpleQueue()
    children = [
        context.Process(target=_measure, args=(prepared, token_ids, size, seconds, barrier, answers)) for _ in range(count)
    ]
    for child in children:
        child.start()
    for child in children:
        # An answer is one number, so a child that has given it does not wait for anybody to read it.
        child.join()
        if child.exitcode:
            # The others would wait for it.
            barrier.abort()
            raise SystemExit(f"a process that was to measure ended with status {child.exitcode}")
    return float(sum(answers.get() for _ in children))


def _measure(prepared: PreparedTrunk, token_ids: Ids, size: int, seconds: float, barrier: "object", answers: "object") -> None:
    with closing(backend_of(prepared, 1)) as backend:
        bare_loop(backend, token_ids, size, 0.2)
        barrier.wait(60)  # type: ignore[attr-defined]
        answers.put(bare_loop(backend, token_ids, size, seconds).throughput)  # type: ignore[attr-defined]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.threads", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", choices=tuple(PRECISIONS), default="openvino-bf16")
    given = parser.parse_args()
    console, cores = wide_console(), num_cores()
    prepared = prepare(None, cache_dir=paths.cache_dir(), engine=given.engine, progress=console.print)
    beside = backend_of(prepared, cores)
    together = OneAtATime(beside)
    with closing(beside):
        token_ids = token_ids_of(beside, load_workload("short", paths.cache_dir(), prepared.spec.tokenizer_json).texts)
        layouts: dict[str, Layout] = {
            f"1 process, {cores} passes with 1 thread": partial(in_one_process, beside, token_ids),
            f"1 process, 1 pass with {cores} threads": partial(in_one_process, together, token_ids),
            f"{cores} processes, 1 pass with 1 thread": partial(in_processes, prepared, token_ids, cores),
        }
        for size in BATCH_SIZES:
            taken: dict[str, list[float]] = {name: [] for name in layouts}
            for _ in range(given.rounds):
                for name, layout in layouts.items():
                    taken[name].append(layout(size, given.seconds))
            first = next(iter(taken.values()))
            for name, values in taken.items():
                ratios = [value / base for value, base in zip(values, first, strict=True)]
                said = f"{statistics.median(values):.0f} texts/s, {spread(ratios)} of the first"
                console.print(f"batches of {size}: {name}: {said}")
        lone = [(lone_milliseconds(beside, token_ids), lone_milliseconds(together, token_ids)) for _ in range(given.rounds)]
        narrow, wide = (statistics.median(values) for values in zip(*lone, strict=True))
        ratios = [one / other for one, other in lone]
        console.print(f"a text alone: {narrow:.2f} ms with 1 thread, {wide:.2f} ms with {cores}; {spread(ratios)} as long")


if __name__ == "__main__":
    main()
