from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.measuring.bisection import (
    LEAST_SHARE,
    MOST_SHARE,
    Bracket,
    Judgement,
    Tried,
    bracket,
    judged,
    most_within,
    next_rate,
    tail_of,
)
from perf.measuring.loads import OVERRUN, UNANSWERED, latency_of, quantiles_of
from perf.results import Load, Run

LATE = "the generator was late: 31.0 ms at p99"


def run_at(rate: float, p99: float, **more: object) -> Run:
    made = {
        "system": "fake",
        "num_heads": 1,
        "workload": "short",
        "load": Load(kind="poisson", rate=rate),
        "round": 0,
        "seconds": 1.0,
        "throughput": rate,
        "num_texts": 5_000,
        "latency_ms": {"p99": p99},
    }
    return Run(**{**made, **more})  # type: ignore[arg-type]


def limited_to(limit: float) -> Callable[[float], Awaitable[Run]]:
    async def measure(rate: float) -> Run:
        return run_at(rate, 10 if rate <= limit else 99)

    return measure


@pytest.mark.parametrize(
    ("tried", "between"),
    [
        ([], (20, 110)),
        ([Tried(80, "within")], (80, 110)),
        ([Tried(80, "too much")], (20, 80)),
        ([Tried(80, "too much"), Tried(60, "within")], (60, 80)),
        ([Tried(60, "too much"), Tried(80, "within")], (20, 60)),
        ([Tried(80, "unusable")], (20, 80)),
        ([Tried(80, "unusable"), Tried(60, "within")], (60, 80)),
        ([Tried(80, "unusable"), Tried(60, "too much")], (20, 60)),
    ],
)
def test_the_next_rate_is_the_geometric_middle_of_what_is_left(tried: list[Tried], between: tuple[float, float]) -> None:
    assert next_rate(tried, 100) ** 2 == pytest.approx(between[0] * between[1])


@given(st.lists(st.sampled_from(["within", "too much", "unusable"]), max_size=8), st.floats(1, 1e5))
def test_no_rate_is_tried_twice_or_outside_what_is_left(judgements: list[Judgement], peak: float) -> None:
    tried: list[Tried] = []
    for judgement in judgements:
        rate = next_rate(tried, peak)
        low, high = bracket(tried)

        assert LEAST_SHARE * peak < rate < MOST_SHARE * peak
        assert low < rate < (high or float("inf"))
        assert rate not in {one.rate for one in tried}
        tried.append(Tried(rate, judgement))


@given(st.floats(1, 10_000), st.floats(0.55, 1.05))
async def test_the_bound_is_found_between_what_was_within_and_what_was_too_much(peak: float, share: float) -> None:
    found = await most_within(50, limited_to(share * peak), peak, 6)

    assert found is not None
    assert found.rate <= share * peak
    assert found.least_too_much is None or found.rate < share * peak < found.least_too_much < 1.05 * (found.rate or peak)
    assert len(found.tried) == 6


async def test_a_system_that_is_never_within_has_only_what_was_too_much() -> None:
    found = await most_within(50, limited_to(0), 100.0, 2)

    assert found is not None
    assert found.rate == 0
    assert found.least_too_much == min(rate for rate, _ in found.tried)


async def test_without_a_rate_that_was_too_much_there_is_no_upper_end() -> None:
    found = await most_within(50, limited_to(1e6), 100.0, 2)

    assert found is not None
    assert found == Bracket(found.tried[-1][0], None, found.tried)


async def test_a_rate_at_which_nothing_was_answered_is_too_much_and_has_no_tail() -> None:
    async def measure(rate: float) -> Run:
        return run_at(rate, 0, latency_ms={}, void=UNANSWERED, num_texts=0)

    found = await most_within(50, measure, 100.0, 2)

    assert found is not None
    assert (0.0, ()) == (found.rate, found.tried)
    assert found.least_too_much is not None


@pytest.mark.parametrize("spoilt", [{"void": LATE}, {"is_disturbed": True}])
async def test_an_unusable_run_is_repeated_once(spoilt: dict[str, object]) -> None:
    asked: list[float] = []

    async def measure(rate: float) -> Run:
        asked.append(rate)
        return run_at(rate, 10, **(spoilt if len(asked) == 1 else {}))

    found = await most_within(50, measure, 100.0, 1)

    assert found == Bracket(asked[0], None, ((asked[0], 10),))
    assert 2 == len(asked) == asked.count(asked[0])


async def test_a_rate_that_stays_unusable_does_not_count_and_the_search_goes_on_below() -> None:
    async def measure(rate: float) -> Run:
        return run_at(rate, 10, void=LATE if rate > 65 else "")

    found = await most_within(50, measure, 100.0, 3)

    assert found is not None
    assert 55 < found.rate < 65
    assert found.least_too_much is None
    assert len(found.tried) == 2


async def test_with_no_usable_run_nothing_is_found() -> None:
    async def measure(rate: float) -> Run:
        return run_at(rate, 10, is_disturbed=True)

    assert await most_within(50, measure, 100.0, 3) is None


@pytest.mark.parametrize(
    ("run", "judgement"),
    [
        (run_at(1, 50), "within"),
        (run_at(1, 50.1), "too much"),
        (run_at(1, 1, void=OVERRUN), "too much"),
        (run_at(1, 1, void=UNANSWERED), "too much"),
        (run_at(1, 1, num_errors=5), "within"),
        (run_at(1, 1, num_errors=6), "too much"),
        (run_at(1, 1, num_errors=6, void=LATE), "too much"),
        (run_at(1, 99, void=LATE), "unusable"),
        (run_at(1, 99, is_disturbed=True), "unusable"),
    ],
)
def test_only_what_the_deployment_did_is_held_against_it(run: Run, judgement: Judgement) -> None:
    assert judgement == judged(run, 50)


@pytest.mark.parametrize(("slow", "judgement"), [(1, "within"), (4, "too much")])
def test_few_answers_tell_whether_their_tail_is_within(slow: int, judgement: Judgement) -> None:
    latencies = [10.0] * (190 - slow) + [99.0] * slow
    run = run_at(1, 0, latency_ms=latency_of(latencies), quantiles_ms=quantiles_of(latencies))

    assert "p99" not in run.latency_ms
    assert tail_of(run) is not None
    assert judgement == judged(run, 50)
