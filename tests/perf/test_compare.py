import io
from typing import Literal

import msgspec
import pytest
from rich.console import Console

from perf.compare import Change, Comparison, compare, print_comparison, summary_of, table_of, warnings_of
from perf.reporting.digest import Measured
from perf.results import Load, Micro, Missing, Results, Run
from tests.perf.samples import CLOSED, HOSTILE, POISSON, results_of, run_of, void_run


def only(*runs: Run, **changes: object) -> Results:
    return results_of(runs=runs, bounds=(), micro=(), **changes)


def faster(factor: float) -> Results:
    return only(*(msgspec.structs.replace(run_of("plan-one-torch", CLOSED, n), throughput=50.0 * factor + n) for n in range(3)))


def verdicts(before: Results, after: Results) -> dict[str, str]:
    return {change.what: change.verdict for change in compare(before, after).changes}


def test_results_are_the_same_as_themselves() -> None:
    comparison = compare(results_of(), results_of())

    assert {"same within spread", "one round: not judged"} == {change.verdict for change in comparison.changes}
    assert {1.0} == {change.ratio for change in comparison.changes}
    assert not comparison.unmatched
    assert not comparison.is_worse


def test_ranges_that_overlap_are_the_same_and_others_are_better_or_worse() -> None:
    assert "same within spread" == verdicts(faster(1.0), faster(1.03))["texts/s"]
    assert "better" == verdicts(faster(1.0), faster(1.2))["texts/s"]
    assert "worse" == verdicts(faster(1.2), faster(1.0))["texts/s"]


def test_one_round_is_not_judged_and_is_no_failure() -> None:
    comparison = compare(only(run_of("plan-four", CLOSED)), only(run_of("plan-four", CLOSED, throughput=1.0)))

    assert {"one round: not judged"} == {change.verdict for change in comparison.changes}
    assert not comparison.is_worse
    assert "0 worse, 0 better" in summary_of(comparison)


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (Measured(104.0, 103.9, 104.1, 3), "same within spread"),
        (Measured(106.0, 105.9, 106.1, 3), "worse"),
        (Measured(160.0, 110.0, 250.0, 3), "same within spread"),
        (Measured(260.0, 210.0, 350.0, 3), "worse"),
    ],
)
def test_what_lies_apart_is_judged_only_beyond_a_twentieth_and_both_spreads(after: Measured, verdict: str) -> None:
    before = Measured(100.0, 99.9, 100.1, 3)

    assert verdict == Change("", "p99 ms", before, after).verdict
    assert ("better" if verdict == "worse" else verdict) == Change("", "p99 ms", after, before).verdict


def offered(rate: float, share: Literal["", "common", "own"], factor: float = 1.0) -> list[Run]:
    runs = [run_of("plan-four", Load(kind="poisson", rate=rate, share=share), n) for n in range(3)]
    return [msgspec.structs.replace(run, latency_ms={"p99": factor * run.latency_ms["p99"]}) for run in runs]


@pytest.mark.parametrize(
    ("share", "rate", "verdict", "are_rates_shown"),
    [
        ("own", 203.0, "worse", False),
        ("own", 214.0, "worse", True),
        ("own", 230.0, "other rates", True),
        ("common", 214.0, "worse", True),
        ("common", 230.0, "other rates", True),
        ("", 203.0, "worse", False),
        ("", 230.0, "other rates", True),
    ],
)
def test_open_loops_match_by_where_their_rate_is_from(
    share: Literal["", "common", "own"], rate: float, verdict: str, are_rates_shown: bool
) -> None:
    comparison = compare(only(*offered(200.0, share)), only(*offered(rate, share, 2.0)))
    rows = [row for row in table_of(comparison).rows if row[1].words == "p99 ms"]

    assert verdict == {change.what: change.verdict for change in comparison.changes}["p99 ms"]
    assert [are_rates_shown] == [f"200/s in A, {rate:.0f}/s in B" in row[0].words for row in rows]
    assert not comparison.unmatched


def test_a_rate_for_all_is_not_compared_with_a_share_of_the_own_best() -> None:
    comparison = compare(only(*offered(200.0, "common")), only(*offered(200.0, "own")))

    assert not comparison.changes
    assert 2 == len(comparison.unmatched)


def test_several_open_loops_of_older_results_are_told_apart_by_their_rates() -> None:
    both = only(*offered(200.0, ""), *offered(300.0, ""))

    assert {200.0, 300.0} == {change.loads[0].rate for change in compare(both, both).changes if change.loads}


@pytest.mark.parametrize("what", ["p99 ms", "CPU ms/text", "µs a call"])
def test_more_time_is_worse(what: str) -> None:
    low, high = Measured(1.0, 0.9, 1.1, 3), Measured(2.0, 1.9, 2.1, 3)

    assert "worse" == Change("", what, low, high).verdict
    assert "better" == Change("", what, high, low).verdict


def test_a_ratio_of_nothing_is_no_division_by_zero() -> None:
    nothing, something = Measured(0.0, 0.0, 0.0, 1), Measured(2.0, 2.0, 2.0, 1)

    assert 1.0 == Change("", "p50 ms", nothing, nothing).ratio
    assert float("inf") == Change("", "p50 ms", nothing, something).ratio


def test_of_what_only_one_run_has_some_is_told_and_the_rest_counted() -> None:
    out = io.StringIO()
    print_comparison(Comparison((), (), tuple(f"only in A: {number}" for number in range(15))), Console(file=out, width=100))

    assert "only in A: 11\nand 3 more that only one of them has" in out.getvalue()


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
    assert comparison.is_worse


def test_what_could_not_be_measured_any_more_is_a_failure_and_said() -> None:
    lost = Missing(what="plan-four, 1 head", why="it did not start")
    before, after = only(run_of("plan-one-torch", CLOSED)), only(run_of("plan-one-torch", CLOSED), missing=(lost,))
    comparison = compare(before, after)
    console = Console(file=io.StringIO(), width=200)
    print_comparison(comparison, console)

    assert comparison.is_worse
    assert "not measured in B: plan-four, 1 head: it did not start" in console.file.getvalue()  # type: ignore[attr-defined]
    assert not compare(after, after).is_worse


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
    slow = results_of(micro=(Micro(name=f"{HOSTILE}", microseconds=(9.0, 9.1)),))
    fast = results_of(micro=(Micro(name=f"{HOSTILE}", microseconds=(3.0, 3.1)),))
    comparison = compare(fast, slow)
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=300))

    assert "worse" == table_of(comparison).rows[0][-1].words
    assert "[red]" in out.getvalue()
    assert "1 worse, 0 better" in out.getvalue()
