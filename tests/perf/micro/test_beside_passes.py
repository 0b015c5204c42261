import argparse
import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from embedding_service.backend import Batch, EngineSpec, PassCost, View
from embedding_service.backend.fake import FakeBackend
from perf.bare_loop import BareResult
from perf.load import LoadResult
from perf.micro.beside_passes import TimedPasses, Way, compare, seconds_a_token, share_left
from perf.rounds import Rounds

ENGINE = EngineSpec("timed", 1.0, PassCost(overhead=40.0, padding=1.0), concurrency=2, layers=(-1,))


def batch_of(*lengths: int) -> Batch:
    return Batch(tuple((1,) * length for length in lengths), ((View(), View()),) * len(lengths))


def test_each_view_of_each_row_has_a_vector_of_the_trunks_width() -> None:
    passes = TimedPasses(FakeBackend().trunk, ENGINE, 0.0)

    result = passes.embed(batch_of(3, 5))

    assert [2, 2] == [len(vectors) for vectors in result]
    for vectors in result:
        for vector in vectors:
            assert (8,) == vector.shape
            assert np.float32 == vector.dtype
            assert 1.0 == pytest.approx(float(np.linalg.norm(vector)))


def test_a_pass_takes_the_time_of_its_tokens_its_padding_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)

    TimedPasses(FakeBackend().trunk, ENGINE, 0.001).embed(batch_of(3, 5))

    assert [pytest.approx(0.001 * (40 + 3 + 5 + 2))] == slept


def test_full_passes_on_all_threads_take_what_the_bare_loop_takes() -> None:
    bare = BareResult(batch_size=16, throughput=1_000.0, cpu_ms_per_text=2.0)

    seconds = seconds_a_token(bare, ENGINE, mean_tokens=24.0)

    texts_a_second = 2 * 16 / (seconds * (16 * 24.0 + 40.0))
    assert pytest.approx(1_000.0) == texts_a_second


def test_what_is_left_is_less_the_more_a_text_costs_beside_its_pass() -> None:
    assert 1.0 == share_left(1.4, 0.0)
    assert pytest.approx(0.8) == share_left(1.2, 0.3)


async def test_each_way_is_told_with_the_cpu_of_all_processes_and_what_it_leaves() -> None:
    def spending(**cpu_ms: float) -> Way:
        async def way(_: float) -> LoadResult:
            return LoadResult(seconds=1.0, latencies=[0.01], cpu_ms_per_text=cpu_ms)

        return way

    console = Console(file=io.StringIO(), width=200)
    say: Callable[[str], None] = console.print
    given = argparse.Namespace(rounds=2, seconds=0.1)

    await compare({"gRPC": spending(embedding=0.2, load=0.1)}, Rounds([], say, 0), spending(bare=1.2), given, console)

    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "gRPC: beside its pass 300 us (from 300 us to 300 us, 2 rounds); at most 80.0%" in told
