import asyncio
import csv
import os
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from perf.load import LoadResult
from perf.machine import Footprint
from perf.soak import Distinct, Sample, sampled, verdict_of, write_csv

MB = 1_000_000
REST = Footprint(rss_bytes=0, num_fds=20, num_threads=9)


def samples(*rss_mb: float) -> list[Sample]:
    return [Sample(number * 10.0, round(mb * MB), 30, 9) for number, mb in enumerate(rss_mb)]


def test_the_ends_are_medians_of_quarters_so_that_one_peak_says_nothing() -> None:
    verdict = verdict_of(samples(100, 101, 900, 102, 101, 101, 101, 101, 103, 104, 900, 104), (REST, REST))

    assert (101, 104) == verdict.rss_mb
    assert 3 == verdict.grown_mb
    assert () == verdict.faults
    assert "steady" in str(verdict)


@pytest.mark.parametrize(
    ("rss_mb", "after", "num_errors", "fault"),
    [
        pytest.param([100, 105, 111, 116], REST, 0, "memory grew", id="memory"),
        pytest.param([100] * 4, Footprint(0, 23, 9), 0, "files stayed open", id="files"),
        pytest.param([100] * 4, Footprint(0, 20, 12), 0, "threads stayed", id="threads"),
        pytest.param([100] * 4, REST, 7, "7 requests failed", id="errors"),
    ],
)
def test_what_is_not_steady_is_named(rss_mb: list[float], after: Footprint, num_errors: int, fault: str) -> None:
    verdict = verdict_of(samples(*rss_mb), (REST, after), num_errors)

    assert (fault,) == verdict.faults
    assert f"NOT steady: {fault}" in str(verdict)


def test_memory_that_was_given_back_is_no_fault() -> None:
    assert () == verdict_of(samples(200, 100, 100, 100), (REST, REST)).faults


def test_too_few_samples_give_no_verdict() -> None:
    with pytest.raises(ValueError, match="at least four"):
        verdict_of(samples(1, 2, 3), (REST, REST))


def test_distinct_texts_never_come_again() -> None:
    target = Distinct("127.0.0.1", 1, b"/", (), texts=["a", "b"])
    bodies = [msgspec.json.decode(body)["input"] for body, _ in islice(target.endless(), 5)]

    assert ["0 a", "1 b", "2 a", "3 b", "4 a"] == bodies


async def test_samples_are_taken_until_the_load_ends_and_once_after(tmp_path: Path) -> None:
    async def load() -> LoadResult:
        await asyncio.sleep(0.2)
        return LoadResult()

    said: list[Sample] = []
    taken = await sampled(os.getpid(), asyncio.create_task(load()), 0.05, said.append)
    write_csv(tmp_path / "samples.csv", taken)
    with (tmp_path / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert said == taken
    assert 2 <= len(taken) == len(rows)
    assert all(sample.rss_bytes > 0 and sample.num_threads > 0 for sample in taken)
    assert str(taken[0].num_fds) == rows[0]["num_fds"]
