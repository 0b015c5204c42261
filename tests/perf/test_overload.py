from collections import Counter

import pytest

from perf.load import LoadResult
from perf.overload import overloaded_of, seconds_to_calm


def test_refusals_are_told_from_good_answers_and_from_failures() -> None:
    outcomes = Counter({"200": 90, "429": 60, "503": 40, "500": 1, "TimeoutError": 2})
    answered = {"200": [9.0] * 90, "429": [0.001] * 60, "503": [0.003] * 40, "500": [7.0]}
    found = overloaded_of(LoadResult(seconds=1, outcomes=outcomes, answer_seconds=answered), 100, 50_000_000, 52_000_000)

    assert found.goodput == pytest.approx(0.9)
    assert 100 == found.num_refused
    assert found.refusal_p50_ms == pytest.approx(1)
    assert found.refusal_p99_ms == pytest.approx(3)
    assert found.grown_mb == pytest.approx(2)
    assert {"500": 1, "TimeoutError": 2} == found.other
    assert "other outcomes" in str(found)


def test_a_service_that_refused_nothing_has_no_time_of_refusals() -> None:
    found = overloaded_of(LoadResult(seconds=2, outcomes=Counter({"200": 100})), 100, 0, 0)

    assert found.goodput == pytest.approx(0.5)
    assert 0 == found.num_refused
    assert "no other errors" in str(found)


@pytest.mark.parametrize(("latencies", "normal_p90"), [([], 0.01), ([0.01] * 40, float("nan"))])
def test_a_service_that_died_is_not_called_calm(latencies: list[float], normal_p90: float) -> None:
    assert seconds_to_calm(latencies, 10.0, normal_p90) is None


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        ([0.01] * 40, 0.0),
        ([0.5] * 10 + [0.01] * 30, 1.0),
        ([0.01] * 10 + [0.5] * 5 + [0.01] * 25, 1.5),
        ([0.5] * 40, None),
    ],
)
def test_calm_is_when_the_last_slow_half_second_has_passed(latencies: list[float], expected: float | None) -> None:
    assert expected == seconds_to_calm(latencies, 10.0, 0.01)


@pytest.mark.parametrize(("failed_at", "expected"), [([0.1, 0.7], 1.0), ([3.9], None), ([], 0.0)])
def test_who_still_refuses_is_not_called_calm(failed_at: list[float], expected: float | None) -> None:
    assert expected == seconds_to_calm([0.01] * (40 - len(failed_at)), 10.0, 0.01, failed_at)
