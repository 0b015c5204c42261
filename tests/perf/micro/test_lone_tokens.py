import argparse
import io
from pathlib import Path

import pytest
from rich.console import Console

from embedding_service.backend.fake import FakeBackend
from embedding_service.queue import QueueLimits
from perf.load import LoadResult
from perf.micro import lone_tokens
from perf.scheduling import Bench
from perf.workloads import Workload
from tests.tiny_trunk import make_tiny_trunk


def printed(table: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def result(latency: float, cpu_ms: float) -> LoadResult:
    return LoadResult(latencies=[latency] * 10, cpu_ms_per_text={"load": cpu_ms})


def test_each_is_told_beside_the_first_round_by_round() -> None:
    taken = {0.5: {0: [result(0.010, 2.0), result(0.020, 2.0)], 192: [result(0.008, 2.2), result(0.016, 2.2)]}}

    told = printed(lone_tokens.table_of(taken, 900.0))

    [line] = [line for line in told.splitlines() if "192" in line]
    assert "450" in line
    assert "0.80x (from 0.80x to 0.80x, 2 rounds)" in line
    assert "1.10x" in line


async def test_all_are_offered_the_same_share_of_what_the_engine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lone_tokens, "WARM_UP_SECONDS", 0.05)
    tokenizer = (make_tiny_trunk(tmp_path / "trunk") / "tokenizer.json").read_bytes()
    backend = FakeBackend(tokenizer, concurrency=2, seconds_per_token=1e-4)
    workload = Workload("short", ["a b", "a b c d e f"], ["short"] * 2)
    benches = {tokens: Bench(backend, workload, QueueLimits(lone_tokens=tokens)) for tokens in (0, 64)}
    given = argparse.Namespace(rounds=1, seconds=0.2, shares=[0.3], waits=0)
    console = Console(file=io.StringIO(), width=200)

    await lone_tokens.compare(benches, given, console)

    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "capacity" in told
    assert "nothing measured" not in told
