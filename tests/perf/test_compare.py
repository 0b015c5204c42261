import io

import msgspec
import pytest
from rich.console import Console

from perf.compare import Change, compare, print_comparison, summary_of, table_of, warnings_of
from perf.reporting.digest import Measured
from perf.results import Load, Micro, Results, Run
from tests.perf.samples import CLOSED, HOSTILE, POISSON, results_of, run_of, void_run


def only(*runs: Run, **changes: object) -> Results:
    return results_of(runs=runs, bounds=(), micro=(), **changes)


def faster(factor: float) -> Results:
    return only(*(msgspec.structs.replace(run_of("plan-one-torch", CLOSED, n), throughput=50.0 * factor + n) for n in range(3)))


def verdicts(before: Results, after: Results) -> dict[str, str]:
    return {change.what: change.verdict for change in compare(before, after).changes}


def test_results_are_the_same_as_themselves() -> None:
    comparison = compare(results_of(), results_of())

    assert {"same within spread"} == {change.verdict for change in comparison.changes}
    assert {1.0} == {change.ratio for change in comparison.changes}
    assert not comparison.unmatched
    assert not comparison.is_worse


def test_ranges_that_overlap_are_the_same_and_others_are_better_or_worse() -> None:
    assert "same within spread" == verdicts(faster(1.0), faster(1.03))["texts/s"]
    assert "better" == verdicts(faster(1.0), faster(1.2))["texts/s"]
    assert "worse" == verdicts(faster(1.2), faster(1.0))["texts/s"]


@pytest.mark.parametrize("what", ["p99 ms", "CPU ms/text", "µs a call"])
def test_more_time_is_worse(what: str) -> None:
    low, high = Measured(1.0, 0.9, 1.1, 3), Measured(2.0, 1.9, 2.1, 3)

    assert "worse" == Change("", what, low, high).verdict
    assert "better" == Change("", what, high, low).verdict


def test_a_ratio_of_nothing_is_no_division_by_zero() -> None:
    nothing, something = Measured(0.0, 0.0, 0.0, 1), Measured(2.0, 2.0, 2.0, 1)

    assert 1.0 == Change("", "p50 ms", nothing, nothing).ratio
    assert float("inf") == Change("", "p50 ms", nothing, something).ratio


def test_void_runs_are_left_out_and_said() -> None:
    comparison = compare(
        only(void_run(), run_of("plan-one-torch", CLOSED)), only(run_of("plan-four", POISSON), run_of("plan-one-torch", CLOSED))
    )

    assert not [change for change in comparison.changes if change.where.startswith("plan-four")]
    assert any("plan-four" in words and words.startswith("only in B") for words in comparison.unmatched)
    assert "A: 1 of 2 runs are void and left out" in comparison.warnings


def test_the_rate_that_was_offered_is_no_measurement() -> None:
    assert "texts/s" not in verdicts(only(run_of("plan-one-engine", POISSON)), only(run_of("plan-one-engine", POISSON)))


def test_another_load_is_another_run() -> None:
    comparison = compare(
        only(run_of("plan-one-torch", CLOSED)), only(run_of("plan-one-torch", Load(kind="closed", in_flight=64)))
    )

    assert not comparison.changes
    assert 2 == len(comparison.unmatched)
    assert "nothing in common" in summary_of(comparison)


def test_micro_benchmarks_are_compared() -> None:
    slow = Micro(name="batch cut", microseconds=(8.0, 8.1), cpu_microseconds=(4.0, 4.2))
    comparison = compare(results_of(runs=()), results_of(runs=(), micro=(slow,)))

    found = {change.what: change.verdict for change in comparison.changes if change.where == "micro: batch cut"}
    assert {"µs a call": "worse", "CPU µs a call": "same within spread"} == found
    assert comparison.is_worse


def test_another_machine_version_or_setting_is_warned_of() -> None:
    before = results_of()
    after = results_of(
        machine=msgspec.structs.replace(before.machine, num_cores=8, features=("avx2",)),
        versions={"python": "3.12.1"},
        settings={"rounds": 5, "seconds": 10.0},
    )
    warnings = [words for words in warnings_of(before, after) if not words.startswith(("A:", "B:"))]

    assert 5 == len(warnings)
    assert "machine, num cores: 2 in A, 8 in B" in warnings
    assert "version of onnxruntime: 1.31.0 in A, none in B" in warnings
    assert "setting rounds: 3 in A, 5 in B" in warnings


def test_what_got_worse_stands_first_and_words_are_no_markup() -> None:
    slow = results_of(micro=(Micro(name=f"{HOSTILE}", microseconds=(9.0,)),))
    fast = results_of(micro=(Micro(name=f"{HOSTILE}", microseconds=(3.0,)),))
    comparison = compare(fast, slow)
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=300))

    assert table_of(comparison).rows[0][-1].words.startswith("worse (one round")
    assert "[red]" in out.getvalue()
    assert "1 worse, 0 better" in out.getvalue()
