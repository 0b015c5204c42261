from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.breaker import Breaker, BreakerPolicy

POLICY = BreakerPolicy(max_failures=3, base_seconds=0.5, max_seconds=1.2, forgive_seconds=30.0)


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(POLICY)
    assert [False, False, True] == [breaker.failed(at) for _ in range(3)]
    return breaker


def test_failures_in_a_row_open_it_and_then_nobody_asks() -> None:
    breaker = opened()

    assert ["refuse", "refuse"] == [breaker.admit(0.0), breaker.admit(0.49)]
    assert 0.25 == breaker.seconds_left(0.25)


def test_a_success_between_them_starts_the_count_anew() -> None:
    breaker = Breaker(POLICY)
    for _ in range(9):
        assert not breaker.failed(0.0)
        assert not breaker.failed(0.0)
        assert not breaker.succeeded(0.0)
    assert "ask" == breaker.admit(0.0)


def test_once_its_time_is_over_one_call_decides() -> None:
    breaker = opened()

    assert ["try", "refuse", "refuse"] == [breaker.admit(0.5) for _ in range(3)]
    assert breaker.succeeded(0.6)
    assert ["ask", "ask"] == [breaker.admit(0.6) for _ in range(2)]


def test_a_call_that_decides_and_fails_opens_it_for_longer_up_to_a_bound() -> None:
    breaker, now, lasted = opened(), 0.0, []
    for _ in range(4):
        lasted.append(round(breaker.seconds_left(now), 6))
        now += breaker.seconds_left(now)
        assert "try" == breaker.admit(now)
        assert breaker.failed(now)

    assert [0.5, 1.0, 1.2, 1.2] == lasted


def test_a_call_that_was_to_decide_and_was_left_lets_the_next_one_decide() -> None:
    breaker = opened()
    breaker.admit(0.5)
    breaker.left()

    assert "try" == breaker.admit(0.5)


def test_a_late_answer_does_not_close_it() -> None:
    breaker = opened()

    assert not breaker.succeeded(0.1)
    assert "refuse" == breaker.admit(0.1)


def test_late_failures_do_not_keep_it_open() -> None:
    breaker = opened()
    for _ in range(9):
        assert not breaker.failed(0.4)

    assert "try" == breaker.admit(0.5)


def test_a_head_that_lasted_has_a_clean_record() -> None:
    breaker = opened()
    breaker.admit(0.5)
    breaker.succeeded(0.5)
    for _ in range(3):
        breaker.failed(31.0)

    assert 0.5 == breaker.seconds_left(31.0)


def test_it_can_be_opened_at_once() -> None:
    breaker = Breaker(POLICY)

    assert [True, False] == [breaker.trip(0.0), breaker.trip(0.0)]
    assert "refuse" == breaker.admit(0.0)


@given(st.lists(st.tuples(st.sampled_from(["admit", "succeeded", "failed", "trip", "left"]), st.floats(0, 2)), max_size=100))
def test_it_never_stays_shut_and_only_one_decides(events: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(POLICY), 0.0
    for what, pause in events:
        now += pause
        before = breaker.state
        if what == "admit":
            verdict = breaker.admit(now)
            assert (verdict == "ask") is (before == "closed")
            assert verdict != "try" or (before == "open" and breaker.state == "half_open")
        elif what == "left":
            breaker.left()
        else:
            getattr(breaker, what)(now)
        assert breaker.seconds_left(now) <= 1.2 + 1e-9
    if breaker.state == "open":
        assert "try" == breaker.admit(now + 1.2 + 1e-9)
