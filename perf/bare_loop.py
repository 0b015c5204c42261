"""The practical limit: the same engine in a loop, texts tokenised before and sorted by length, best batch size."""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from embedding_service.backend import Backend, Batch

BATCH_SIZES = (1, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class BareResult:
    """What one batch size gave."""

    batch_size: int
    throughput: float
    cpu_ms_per_text: float


def bare_loop(backend: Backend, token_ids: Sequence[tuple[int, ...]], batch_size: int, seconds: float) -> BareResult:
    """Run *token_ids* over and over for *seconds* in batches of *batch_size*, on as many threads as the engine takes."""
    batches = _batches(backend, sorted(token_ids, key=len), batch_size)
    # Shuffled, so that a run shorter than a pass still times a fair part of the texts.
    random.Random(0).shuffle(batches)  # noqa: S311 (a repeatable order, no secret)
    for batch in batches:
        backend.embed(batch)
    counts = [0] * backend.engine.concurrency
    cpu, started = time.process_time(), time.perf_counter()

    def work(number: int) -> None:
        # Each thread begins elsewhere, so that long and short batches mix at any moment.
        place = number * len(batches) // len(counts)
        while time.perf_counter() < started + seconds:
            backend.embed(batches[place % len(batches)])
            counts[number] += len(batches[place % len(batches)].token_ids)
            place += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed, used = time.perf_counter() - started, time.process_time() - cpu
    return BareResult(batch_size, sum(counts) / elapsed, used * 1000 / sum(counts))


def best_of(backend: Backend, token_ids: Sequence[tuple[int, ...]], seconds: float) -> BareResult:
    """The best of `BATCH_SIZES`, each for *seconds*."""
    return max((bare_loop(backend, token_ids, size, seconds) for size in BATCH_SIZES), key=lambda result: result.throughput)


def _batches(backend: Backend, ordered: Sequence[tuple[int, ...]], size: int) -> list[Batch]:
    views = (backend.trunk.default_view,)
    cuts = (tuple(ordered[start : start + size]) for start in range(0, len(ordered), size))
    return [Batch(rows, (views,) * len(rows)) for rows in cuts]
