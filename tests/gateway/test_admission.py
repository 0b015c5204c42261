from collections.abc import Sequence
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import DeadlineExceeded, InvalidRequest, NotFound, Overloaded, TrunklineError, Unavailable
from gateway.admission import FORGOTTEN_SECONDS, LEAST_BOUND, Admission


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admission(max_texts: int = 1_000, *, clock: Clock | None = None) -> Admission:
    return Admission(max_texts, max_wait_seconds=2.0, clock=clock or Clock())


def leave_at(
    rate: int, where: Admission, clock: Clock, *, inside: int, seconds: float, errors: Sequence[TrunklineError] = ()
) -> None:
    """*rate* single texts a second are let in and answered, while *inside* others stay; *errors* end more of them for each."""
    with where.admit(inside):
        for _ in range(int(rate * seconds)):
            clock.now += 1 / rate
            with where.admit(1):
                pass
            for error in errors:
                with suppress(TrunklineError), where.admit(1):
                    raise error


def refuse_all(where: Admission, clock: Clock, *, seconds: float) -> None:
    """A thousand texts a second are let in, as far as they are, and refused by a backend, while others stay."""
    with where.admit(100):
        for _ in range(int(1_000 * seconds)):
            clock.now += 0.001
            with suppress(Overloaded), where.admit(1):
                raise Overloaded("the queue is full")


def test_a_request_is_let_in_whole_or_refused_whole_and_leaves_no_permit_behind() -> None:
    where = admission(10)
    with where.admit(6):
        with pytest.raises(Overloaded), where.admit(5):
            pytest.fail("was let in")
        assert 6 == where.num_texts
        with where.admit(4):
            assert 10 == where.num_texts
    assert 0 == where.num_texts


def test_a_request_larger_than_all_permits_is_let_in_when_it_is_alone() -> None:
    where = admission(10)
    with where.admit(11), pytest.raises(Overloaded), where.admit(1):
        pytest.fail("was let in")


def test_bulk_leaves_room_for_interactive_requests() -> None:
    where = admission(100)
    with where.admit(75, is_bulk=True):
        with pytest.raises(Overloaded), where.admit(1, is_bulk=True):
            pytest.fail("was let in")
        with where.admit(25):
            assert 100 == where.num_texts


def test_who_is_refused_for_want_of_room_pays_nothing() -> None:
    paid: list[str] = []
    where = admission(10)
    with where.admit(6, pay=lambda: paid.append("six")):
        with pytest.raises(Overloaded), where.admit(5, pay=lambda: paid.append("five")):
            pytest.fail("was let in")
        assert ["six"] == paid


def test_who_cannot_pay_takes_no_permit_and_is_told_so() -> None:
    def refuse() -> None:
        raise Overloaded("the key has nothing left")

    where = admission(10)
    with pytest.raises(Overloaded, match="the key has nothing left"), where.admit(6, pay=refuse):
        pytest.fail("was let in")
    with where.admit(10):
        assert 10 == where.num_texts


def test_nothing_is_let_in_that_would_wait_for_too_long_and_the_answer_says_when_to_come_back() -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    leave_at(200, where, clock, inside=100, seconds=5)

    assert 400 == pytest.approx(where.bound, rel=0.05)
    with where.admit(400 - 5), pytest.raises(Overloaded) as told, where.admit(105):
        pytest.fail("was let in")
    assert 0.5 == pytest.approx(told.value.retry_after, rel=0.3)


@pytest.mark.parametrize("error", [Overloaded("full"), Unavailable("gone"), DeadlineExceeded("late")])
def test_what_a_backend_refuses_or_lets_wait_makes_no_room_for_more_of_it(error: TrunklineError) -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    leave_at(200, where, clock, inside=100, seconds=5)
    leave_at(200, where, clock, inside=100, seconds=5, errors=[error] * 4)
    assert 400 == pytest.approx(where.bound, rel=0.05)


@pytest.mark.parametrize("error", [InvalidRequest("twice"), NotFound("no such head")])
def test_callers_mistakes_say_nothing_about_how_fast_texts_are_answered(error: TrunklineError) -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    leave_at(200, where, clock, inside=100, seconds=5)
    with suppress(TrunklineError), where.admit(100):
        for _ in range(1_000):
            clock.now += 0.01
            with suppress(TrunklineError), where.admit(1):
                raise error
        raise error
    assert 400 == pytest.approx(where.bound, rel=0.05)


def test_where_everything_is_refused_by_a_backend_little_is_let_in_until_something_is_answered() -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    leave_at(400, where, clock, inside=100, seconds=5)
    refuse_all(where, clock, seconds=10)
    assert LEAST_BOUND == where.bound
    leave_at(400, where, clock, inside=100, seconds=5)
    assert 800 == pytest.approx(where.bound, rel=0.05)


def test_a_gateway_that_begins_beside_a_full_backend_lets_little_in_and_says_when_to_come_back() -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    refuse_all(where, clock, seconds=1)
    assert LEAST_BOUND == where.bound
    with where.admit(1):
        assert 0.5 == where.seconds_until_room(LEAST_BOUND)


@pytest.mark.parametrize("inside", [0, 3])
def test_an_outage_is_forgotten_when_few_callers_are_left(inside: int) -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    leave_at(400, where, clock, inside=100, seconds=5)
    refuse_all(where, clock, seconds=10)
    leave_at(5, where, clock, inside=inside, seconds=FORGOTTEN_SECONDS - 1)
    assert LEAST_BOUND == where.bound
    leave_at(5, where, clock, inside=inside, seconds=2)
    assert 10_000 == where.bound


def test_what_was_learnt_of_a_service_that_works_is_not_forgotten() -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    leave_at(400, where, clock, inside=100, seconds=5)
    leave_at(5, where, clock, inside=3, seconds=10 * FORGOTTEN_SECONDS)
    assert 800 == pytest.approx(where.bound, rel=0.05)


def test_the_time_in_which_nobody_asks_is_not_taken_for_slowness() -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    for _ in range(20):
        clock.now += 2
        with where.admit(128):
            clock.now += 0.2
    assert 10_000 == where.bound


def test_few_callers_say_nothing_about_how_many_there_could_be() -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    leave_at(5, where, clock, inside=3, seconds=20)
    assert 10_000 == where.bound


def test_a_stall_lowers_the_bound_and_what_moves_again_raises_it() -> None:
    clock = Clock()
    where = admission(10_000, clock=clock)
    leave_at(400, where, clock, inside=200, seconds=5)
    fast = where.bound
    leave_at(4, where, clock, inside=100, seconds=5)
    slow = where.bound
    leave_at(400, where, clock, inside=100, seconds=5)

    assert slow < fast / 2
    assert slow >= 128
    assert fast == pytest.approx(where.bound, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans(), st.floats(0, 1)), max_size=60))
def test_permits_are_counted_whatever_comes_and_goes(requests: list[tuple[int, bool, float]]) -> None:
    clock = Clock()
    where = admission(100, clock=clock)
    inside: list[tuple[ExitStack, int]] = []
    for num_texts, is_bulk, stay in requests:
        clock.now += stay
        held = ExitStack()
        try:
            held.enter_context(where.admit(num_texts, is_bulk=is_bulk))
            inside.append((held, num_texts))
        except Overloaded:
            assert inside
        if stay > 0.5 and inside:
            inside.pop(0)[0].close()
        assert sum(count for _, count in inside) == where.num_texts <= 100
    for held, _ in inside:
        held.close()
    assert 0 == where.num_texts
