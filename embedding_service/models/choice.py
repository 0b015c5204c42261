"""Which engine `auto` takes: measured here, on this processor, since no table knows it. The decision is pure."""

import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients.wire.text import TextEncoder
from embedding_service.backend import Backend, Batch, TrunkSpec
from embedding_service.backend.load import EngineName
from embedding_service.models.quality_texts import QUALITY_TEXTS

NEARLY: Final = 1.2
"""How many times faster an engine must be to be taken before a more exact one."""

_ROUND_SECONDS: Final = 0.25
_BATCH_SIZES: Final = (4, 16)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that passed: *texts_per_second* as `texts_per_second` has it, *agreement* as `quality.Quality` has it."""

    engine: EngineName
    texts_per_second: float
    agreement: float


def pick(candidates: Sequence[Candidate]) -> Candidate:
    """The fastest, or of those within a fifth of it the most exact; the faster where they are equally so."""
    fastest = max(candidate.texts_per_second for candidate in candidates)
    near = [candidate for candidate in candidates if candidate.texts_per_second * NEARLY >= fastest]
    return max(near, key=lambda candidate: (round(candidate.agreement, 4), candidate.texts_per_second))


def texts_per_second(backend: Backend, spec: TrunkSpec) -> float:
    """How many of our own sentences *backend* embeds in a second of all its threads, by the better of two batch sizes.

    The seconds are of CPU time, and of several short rounds the best counts: what else the machine does meanwhile, such as
    another service that starts, must not decide.
    """
    encoded = TextEncoder(spec.tokenizer_json, max_tokens=spec.max_tokens, prompt=spec.prompt).encode(QUALITY_TEXTS)
    ordered = sorted((tuple(item.ids) for item in encoded), key=len)
    best = 0.0
    for size in _BATCH_SIZES:
        cuts = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        batches = [Batch(ids, ((spec.default_view,),) * len(ids)) for ids in cuts]
        for batch in batches:
            backend.embed(batch)
        best = max(best, *(_round(backend, batches) for _ in range(3)))
    return best


def _round(backend: Backend, batches: Sequence[Batch]) -> float:
    counts = [0] * backend.engine.concurrency
    started, used = time.perf_counter(), time.process_time()

    def work(number: int) -> None:
        place = number * len(batches) // len(counts)
        while time.perf_counter() < started + _ROUND_SECONDS:
            batch = batches[place % len(batches)]
            backend.embed(batch)
            counts[number] += len(batch.token_ids)
            place += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) * len(counts) / max(time.process_time() - used, 1e-9)


def processor() -> str:
    """What this processor is, and how many cores we may use: a choice made on another one says nothing here."""
    model = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"


def processor_flags() -> frozenset[str]:
    """What this processor says it can do; empty where the system does not tell."""
    return frozenset(next((line.split() for line in _cpuinfo() if line.startswith("flags")), ()))


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
