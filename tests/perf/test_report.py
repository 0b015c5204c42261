import math

import pytest

from perf.load import LoadResult
from perf.report import ratios, spread, tail_ratios


def run(*latencies: float, kind: str = "", lag: float = 0.0) -> LoadResult:
    result = LoadResult(seconds=1, lags=[lag])
    for latency in latencies:
        result.answered_in(latency, latency, kind)
    return result


def test_a_spread_is_the_median_between_the_least_and_the_most() -> None:
    assert "2.00x (from 1.00x to 9.00x, 3 rounds)" == spread([9, 1, 2])
    assert "50% (from 50% to 50%, 1 rounds)" == spread([0.5], "{:.0%}")
    assert "nothing measured" == spread([])


def test_ratios_go_round_by_round_and_leave_out_what_is_no_number() -> None:
    assert [2.0, 0.5] == ratios([2, 1, 0, math.nan, 3], [1, 2, 1, 1, math.nan])


def test_tails_are_compared_only_where_both_runs_count() -> None:
    ours, theirs = [run(0.1), run(0.1), run(0.1, lag=1)], [run(0.2), run(0.4, lag=1), run(0.2)]

    assert [0.5] == pytest.approx(tail_ratios(ours, theirs, 99))


@pytest.mark.parametrize(("num_failed", "expected"), [(0, [0.5]), (1, [0.5]), (2, [])])
def test_tails_of_a_service_that_answers_few_are_not_compared(num_failed: int, expected: list[float]) -> None:
    ours, theirs = run(*[0.1] * 1_000), run(*[0.2] * 1_000)
    ours.outcomes["429"] = num_failed

    assert expected == pytest.approx(tail_ratios([ours], [theirs], 99))


def test_tails_are_compared_class_by_class() -> None:
    ours, theirs = run(0.1, kind="short"), run(0.2, kind="short")
    ours.answered_in(3, 3, "long")
    theirs.answered_in(1, 1, "long")

    assert [0.5] == pytest.approx(tail_ratios([ours], [theirs], 50, "short"))
    assert [3.0] == pytest.approx(tail_ratios([ours], [theirs], 50, "long"))
    assert [] == tail_ratios([ours], [theirs], 50, "other")
