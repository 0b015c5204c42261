from pathlib import Path

import pytest

from perf.micro.__main__ import against_baseline, told
from perf.micro.baseline import (
    BASELINES,
    YARDSTICKS,
    baseline_for,
    baselines_in,
    compare,
    spread_of,
)
from perf.micro.suite import BATCHES, head_call_name, in_process
from perf.results import Machine, Micro, Results, write
from perf.settings import wide_console

PYTHON, NUMPY = YARDSTICKS
OURS = Machine(cpu="quick one", num_cores=2, memory_bytes=1)
OTHER = Machine(cpu="quick one", num_cores=64, memory_bytes=1)


def micro(name: str, *times: float, cpu: tuple[float, ...] = ()) -> Micro:
    return Micro(name=name, microseconds=times, cpu_microseconds=cpu)


def run(*times: float, python: float = 10.0, numpy: float = 20.0) -> list[Micro]:
    return [micro(PYTHON, *[python] * len(times)), micro(NUMPY, *[numpy] * len(times)), micro("cut", *times)]


def results(machine: Machine, started: str, micros: list[Micro]) -> Results:
    return Results(command="", commit="", started=started, ended=started, machine=machine, versions={}, micro=tuple(micros))


@pytest.mark.parametrize(
    ("before", "now", "is_worse"),
    [
        ([100, 100, 100], [124, 124, 124], False),
        ([100, 100, 100], [126, 126, 126], True),
        ([100, 100, 100], [50, 50, 50], False),
        # The spread of either run is allowed beside the tolerance: here 20 %.
        ([90, 100, 130], [140, 140, 140], False),
        ([90, 100, 130], [150, 150, 150], True),
        ([100, 100, 100], [100, 135, 170], False),
        # One round in which somebody else was at work.
        ([100, 100, 100, 100, 900], [100, 100, 100, 100, 100], False),
        ([100, 100, 100, 100, 100], [100, 100, 100, 100, 900], False),
    ],
)
def test_a_benchmark_is_slower_beyond_the_tolerance_and_the_spread(before: list[int], now: list[int], is_worse: bool) -> None:
    compared = compare(run(*before), run(*now))

    assert is_worse is bool(compared.worse)


def test_a_slower_machine_is_no_slower_benchmark() -> None:
    compared = compare(run(100, 100), run(300, 300, python=30, numpy=60))

    assert [1.0] == [one.ratio for one in compared.comparisons]


def test_a_round_on_a_slow_machine_is_weighed_by_the_yardstick_of_that_round() -> None:
    now = [micro(PYTHON, 10, 40), micro(NUMPY, 20, 80), micro("cut", 100, 400)]
    (found,) = compare(run(100, 100), now).comparisons

    assert (1.0, 0.0) == (found.ratio, found.spread)


@pytest.mark.parametrize(
    ("python", "numpy", "expected"), [(10, 40, 1.0), (20, 20, 1.0), (10, 20, 2.0), (5, 20, 2.0), (20, 40, 1.0)]
)
def test_a_machine_may_be_better_at_one_kind_of_work(python: float, numpy: float, expected: float) -> None:
    (found,) = compare(run(100), run(200, python=python, numpy=numpy)).comparisons

    assert expected == pytest.approx(found.ratio)


def test_cpu_time_is_compared_where_both_runs_have_it() -> None:
    with_cpu = [micro(PYTHON, 1, cpu=(1,)), micro(NUMPY, 1, cpu=(1,)), micro("cut", 1, cpu=(1,))]
    slower = [*with_cpu[:2], micro("cut", 1, cpu=(3,))]

    assert [("time", False), ("CPU time", True)] == [(one.what, one.is_worse) for one in compare(with_cpu, slower).comparisons]
    assert ["time"] == [one.what for one in compare(with_cpu, run(1, python=1, numpy=1)).comparisons]


def test_what_is_in_one_run_alone_is_named() -> None:
    compared = compare([*run(1), micro("gone", 1)], [*run(1), micro("new", 1)])

    assert (("gone",), ("new",)) == (compared.gone, compared.new)
    assert ["not in this run: gone", "not in the baseline: new"] == told(compared)[:2]


def test_a_run_without_a_yardstick_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="yardstick, numpy"):
        compare(run(1), run(1)[:1])


def test_what_changed_is_told_the_slower_first() -> None:
    before = [*run(100, 100), micro("guard", 10, 10), micro("same", 1, 1)]
    now = [*run(40, 40), micro("guard", 20, 20), micro("same", 1, 1)]

    assert ["slower: guard: time 2.00 times", "faster: cut: time 0.40 times"] == [
        line.partition(" that of")[0] for line in told(compare(before, now))
    ]
    assert told(compare(before, before)) == ["nothing is slower by 25% and the spread of its rounds"]


@pytest.mark.parametrize(("values", "expected"), [([5], 0.0), ([1, 2, 3], 0.5), ([10, 10, 10, 10, 90], 0.0)])
def test_the_spread_is_that_of_the_middle_half(values: list[float], expected: float) -> None:
    assert expected == pytest.approx(spread_of(values))


def test_the_baseline_is_the_latest_of_this_kind_of_machine_or_else_of_any() -> None:
    baselines = {
        "old": results(OURS, "2026-01-01", []),
        "ours": results(OURS, "2026-02-01", []),
        "other": results(OTHER, "2026-03-01", []),
    }

    assert "ours" == baseline_for(OURS, baselines)
    assert "other" == baseline_for(OTHER, baselines)
    assert "other" == baseline_for(Machine(cpu="another", num_cores=2, memory_bytes=1), baselines)
    assert baseline_for(OURS, {}) is None


def test_a_run_is_told_beside_the_baseline_of_its_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(results(OURS, "2026-01-01", run(100, 100)), tmp_path / "box.json")

    assert not against_baseline(results(OURS, "2026-01-02", run(200, 200)), tmp_path, wide_console())
    assert against_baseline(results(OTHER, "2026-01-02", run(100, 100)), tmp_path, wide_console())
    said = capsys.readouterr().out
    assert "beside box: quick one, 2 cores, 2026-01-01" in said
    assert 1 == said.count("another kind of machine")


def test_without_a_baseline_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--write-baseline"):
        against_baseline(results(OURS, "", run(1)), tmp_path, wide_console())


def test_committed_baselines_have_every_benchmark_and_name_no_place(tmp_path: Path) -> None:
    names = {one.name for one in in_process(tmp_path)} | set(map(head_call_name, BATCHES))
    baselines = baselines_in(BASELINES)

    assert baselines
    for name, found in baselines.items():
        assert names == {one.name for one in found.micro}, name
        assert found.commit, name
        assert "/" not in f"{found.command} {found.commit} {found.machine} {found.versions} {found.settings}", name
