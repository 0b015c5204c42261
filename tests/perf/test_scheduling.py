from dataclasses import replace
from pathlib import Path

import pytest

from embedding_service.backend import Batch, PassCost, View
from embedding_service.backend.fake import FakeBackend
from embedding_service.queue import QueueLimits
from perf.load import LoadResult
from perf.scheduling import OURS, Bench, Recording, computed, said, table_of
from perf.workloads import Workload
from tests.embedding_service.test_queue import entry, lengths
from tests.tiny_trunk import make_tiny_trunk


def test_a_padded_graph_computes_every_row_as_long_as_the_longest() -> None:
    found = computed([[10, 4], [7]], is_flat=False)

    assert (21, 27, 27) == (found.useful, found.linear, found.grid)
    assert "77.8% of the linear layers' tokens" in str(found)


def test_a_flat_graph_pads_attention_alone_and_rounds_up() -> None:
    found = computed([[10, 4], [65]], is_flat=True)

    assert 79 == found.useful
    assert 14 + 80 == found.linear, "all but small batches are rounded up to 16 tokens"
    assert 2 * 16 + 72 == found.grid, "rows are as long as the longest, rounded up to 8"


def test_what_runs_is_recorded_and_passed_on() -> None:
    fake = FakeBackend()
    recording = Recording(fake)
    batch = Batch(((1, 2, 3), (4,)), ((View(),), (View(),)))

    assert len(recording.embed(batch)) == 2
    assert [(3, 1)] == recording.batches
    assert [batch] == fake.batches
    assert fake.engine == recording.engine


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    """Pads every row to the longest, as its padding cost of 1 says."""
    tokenizer = (make_tiny_trunk(tmp_path / "trunk") / "tokenizer.json").read_bytes()
    return FakeBackend(tokenizer, concurrency=2)


def bench_of(backend: FakeBackend) -> Bench:
    return Bench(backend, Workload("mix", ["a b", "a b c d e f"], ["short", "long"]), QueueLimits())


async def test_every_queue_answers_the_same_texts(backend: FakeBackend) -> None:
    bench = bench_of(backend)
    results = [await bench.offered(make, 200, 0.2, 1) for make in (lambda: None, lambda: bench.fifo(2_048))]

    for result, tokens in results:
        assert 0 == result.num_errors
        assert {"short", "long"} == set(result.latencies_by_class)
        assert 0 < tokens.useful <= tokens.grid


async def test_capacity_is_what_is_answered_in_a_second(backend: FakeBackend) -> None:
    assert await bench_of(backend).capacity(0.1) > 0


def test_a_strict_budget_counts_wanted_tokens_where_only_attention_pads(backend: FakeBackend) -> None:
    padded = bench_of(backend).fifo(512)
    backend.engine = replace(backend.engine, pass_cost=PassCost(padding=0.1))
    flat = bench_of(backend).fifo(512)

    for queue in (padded, flat):
        queue.append([entry(400), entry(100)])
    assert [400] == lengths(padded.take(0.0).batch)
    assert [400, 100] == lengths(flat.take(0.0).batch)


def test_the_table_has_a_row_for_each_other_queue_and_none_for_ours() -> None:
    result = LoadResult(seconds=1)
    result.answered_in(0.1, 0.1, "short")
    table = table_of({OURS: [result], "FIFO 512": [result]})

    assert 1 == table.row_count
    assert 5 == len(table.columns)
    assert "short p99 100.0 ms" in said(result)
