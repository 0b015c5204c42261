import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.measuring.bisection import GROWTH, Tried, bracket, is_within, most_within, next_rate
from perf.results import Load, Run


def run_at(rate: float, p99: float, **more: object) -> Run:
    made = {
        "system": "fake",
        "num_heads": 1,
        "workload": "short",
        "load": Load(kind="poisson", rate=rate),
        "round": 0,
        "seconds": 1.0,
        "throughput": rate,
        "num_texts": int(rate),
        "latency_ms": {"p99": p99},
    }
    return Run(**{**made, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tried", "rate"),
    [
        ([], 100),
        ([Tried(100, is_within=True)], 100 * GROWTH),
        ([Tried(100, is_within=False)], 50),
        ([Tried(100, is_within=False), Tried(50, is_within=False)], 25),
        ([Tried(100, is_within=True), Tried(160, is_within=False)], 130),
        ([Tried(100, is_within=True), Tried(160, is_within=False), Tried(130, is_within=True)], 145),
        ([Tried(100, is_within=False), Tried(120, is_within=True)], 50),
    ],
)
def test_the_next_rate_follows_from_what_was_tried(tried: list[Tried], rate: float) -> None:
    assert next_rate(tried, 100) == pytest.approx(rate)


@given(st.lists(st.builds(Tried, st.floats(1, 1e6), st.booleans()), max_size=12), st.floats(1, 1e5))
def test_the_next_rate_lies_between_what_was_kept_and_what_was_too_much(tried: list[Tried], start: float) -> None:
    low, high = bracket(tried)
    rate = next_rate(tried, start)

    assert rate > 0
    assert rate > low or not low
    assert high is None or low < rate < high
    assert all(one.rate >= high for one in tried if not one.is_within and high is not None)


@given(st.floats(1, 10_000), st.floats(1, 10_000))
async def test_the_bound_is_found_and_never_exceeded(limit: float, start: float) -> None:
    async def measure(rate: float) -> Run:
        return run_at(rate, 10 if rate <= limit else 99)

    rate, tried = await most_within(50, measure, start, 40)

    assert rate <= limit
    assert rate == pytest.approx(limit, rel=0.01)
    assert len(tried) == 40


async def test_a_system_that_is_never_within_has_no_rate() -> None:
    async def measure(rate: float) -> Run:
        return run_at(rate, 99)

    assert (0.0, ((100.0, 99), (50.0, 99))) == await most_within(50, measure, 100.0, 2)


async def test_a_rate_at_which_nothing_was_answered_is_too_much_and_has_no_tail() -> None:
    async def measure(rate: float) -> Run:
        return run_at(rate, 1) if rate < 80 else run_at(rate, 0, latency_ms={}, void="no request was answered")

    assert (50.0, ((50.0, 1),)) == await most_within(50, measure, 100.0, 2)


def test_only_a_run_that_counts_is_within() -> None:
    assert is_within(run_at(1, 50), 50)
    assert not is_within(run_at(1, 50.1), 50)
    assert not is_within(run_at(1, 1, void="late"), 50)
    assert not is_within(run_at(1, 1, num_errors=1), 50)
