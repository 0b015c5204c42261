from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.replicas import Call, Ejected, Outcome, Policy, Probe, Readmitted, Replicas

POLICY = Policy(
    suspect_seconds=0.1,
    wedged_seconds=2.0,
    wedged_times=10.0,
    max_failures=3,
    base_ejection_seconds=1.0,
    max_ejection_seconds=2.5,
    forgive_seconds=30.0,
)


def of(count: int, policy: Policy = POLICY) -> Replicas:
    return Replicas(count, policy)


def silent(replicas: Replicas, number: int, at: float) -> Call:
    """Eject *number* for its silence; its call is still under way."""
    call = replicas.began(number, 1, at)
    assert Probe(number) in replicas.sweep(at + 0.1)
    assert Ejected(number, 1.0, "silent") == replicas.probed(number, at + 0.1, at + 0.2, is_alive=False)
    return call


def test_the_one_with_the_fewest_texts_outstanding_is_chosen() -> None:
    replicas = of(3)
    replicas.began(0, 2, 0.0)
    replicas.began(1, 1, 0.0)
    replicas.began(2, 5, 0.0)

    assert 1 == replicas.choose()
    assert 0 == replicas.choose({1})


def test_equals_take_turns() -> None:
    replicas = of(3)

    assert {0, 1, 2} == {replicas.choose() for _ in range(3)}


def test_what_is_avoided_is_not_chosen_even_where_nothing_else_is_in_order() -> None:
    replicas = of(2)
    silent(replicas, 0, 0.0)

    assert [0, 0, 0] == [replicas.choose({1}) for _ in range(3)]


def test_silence_alone_makes_a_suspect_that_gets_calls_only_where_there_is_no_other() -> None:
    replicas = of(2)
    replicas.began(0, 1, 0.0)

    assert [] == replicas.sweep(0.09)
    assert [Probe(0)] == replicas.sweep(0.1)
    assert [] == replicas.sweep(0.2)
    assert ("suspected", "serving") == (replicas.state(0), replicas.state(1))
    replicas.began(1, 100, 0.1)
    assert 1 == replicas.choose()
    assert 0 == replicas.choose({1})


def test_a_replica_that_owes_nothing_may_be_silent() -> None:
    replicas = of(2)
    replicas.ended(replicas.began(0, 1, 0.0), Outcome.ANSWERED, 0.01)

    assert replicas.is_at_rest
    assert [] == replicas.sweep(100.0)


def test_a_sign_of_life_lifts_the_suspicion() -> None:
    replicas = of(2)
    replicas.began(0, 1, 0.0)
    replicas.sweep(0.1)

    assert replicas.probed(0, 0.1, 0.11, is_alive=True) is None
    assert "serving" == replicas.state(0)
    assert [] == replicas.sweep(0.2)
    assert [Probe(0)] == replicas.sweep(0.22)


def test_an_answer_lifts_the_suspicion_whatever_becomes_of_the_probe() -> None:
    replicas = of(2)
    call = replicas.began(0, 1, 0.0)
    replicas.began(0, 1, 0.0)
    replicas.sweep(0.1)
    replicas.ended(call, Outcome.ANSWERED, 0.15)

    assert "serving" == replicas.state(0)
    assert replicas.probed(0, 0.1, 0.2, is_alive=False) is None
    assert "serving" == replicas.state(0)


def test_no_sign_of_life_ejects_until_a_probe_is_answered() -> None:
    replicas = of(2)
    call = silent(replicas, 0, 0.0)

    assert [call] == replicas.calls(0)
    assert {1} == {replicas.choose() for _ in range(4)}
    assert [] == replicas.sweep(1.19)
    assert [Probe(0)] == replicas.sweep(1.2)
    assert [] == replicas.sweep(1.25)
    assert replicas.probed(0, 1.2, 1.3, is_alive=False) is None
    assert [] == replicas.sweep(2.2)
    assert [Probe(0)] == replicas.sweep(2.3)
    replicas.ended(call, Outcome.LEFT, 2.3)
    assert Readmitted(0) == replicas.probed(0, 2.3, 2.31, is_alive=True)
    assert {0, 1} == {replicas.choose() for _ in range(2)}


def test_a_late_answer_of_an_ejected_replica_does_not_readmit_it() -> None:
    replicas = of(2)
    replicas.ended(silent(replicas, 0, 0.0), Outcome.ANSWERED, 0.3)

    assert "ejected" == replicas.state(0)


def test_ejections_in_a_row_last_longer_up_to_a_bound_and_are_forgiven() -> None:
    replicas, now, lasted = of(2), 0.0, []
    for pause in (1.0, 1.0, 1.0, 31.0):
        replicas.began(0, 1, now)
        replicas.sweep(now + 0.1)
        ejected = replicas.probed(0, now + 0.1, now + 0.2, is_alive=False)
        assert isinstance(ejected, Ejected)
        lasted.append(ejected.seconds)
        now += 0.2 + ejected.seconds
        replicas.sweep(now)
        assert Readmitted(0) == replicas.probed(0, now, now, is_alive=True)
        for call in replicas.calls(0):
            replicas.ended(call, Outcome.LEFT, now)
        now += pause
    replicas.began(0, 1, now)
    replicas.sweep(now + 0.1)

    assert [1.0, 2.0, 2.5, 2.5] == lasted
    assert Ejected(0, 1.0, "silent") == replicas.probed(0, now + 0.1, now + 0.2, is_alive=False)


@pytest.mark.parametrize(
    ("outcomes", "is_ejected"),
    [
        ([Outcome.FAILED] * 2, False),
        ([Outcome.FAILED] * 3, True),
        ([Outcome.TIMED_OUT] * 3, True),
        ([Outcome.TIMED_OUT, Outcome.FAILED, Outcome.TIMED_OUT], True),
        ([Outcome.FAILED, Outcome.FAILED, Outcome.ANSWERED, Outcome.FAILED], False),
        ([Outcome.FAILED, Outcome.LEFT, Outcome.FAILED, Outcome.LEFT, Outcome.FAILED], True),
        ([Outcome.LEFT] * 9, False),
    ],
)
def test_failures_and_time_outs_one_after_another_eject(outcomes: list[Outcome], *, is_ejected: bool) -> None:
    replicas = of(2)
    for now, outcome in enumerate(outcomes):
        change = replicas.ended(replicas.began(0, 1, now), outcome, now + 0.05)

    assert is_ejected == (Ejected(0, 1.0, "failures") == change) == ("ejected" == replicas.state(0))


def test_a_time_out_during_which_others_were_answered_is_the_callers_own() -> None:
    replicas = of(2)
    for now in range(9):
        impatient = replicas.began(0, 1, now)
        replicas.ended(replicas.began(0, 1, now), Outcome.ANSWERED, now + 0.01)
        assert replicas.ended(impatient, Outcome.TIMED_OUT, now + 0.02) is None


def test_the_last_one_is_never_ejected() -> None:
    replicas = of(2)
    silent(replicas, 0, 0.0)
    replicas.began(1, 1, 0.3)
    replicas.sweep(0.4)

    assert replicas.probed(1, 0.4, 0.5, is_alive=False) is None
    for _ in range(9):
        assert replicas.ended(replicas.began(1, 1, 0.6), Outcome.FAILED, 0.7) is None
    assert 1 == replicas.choose()


@pytest.mark.parametrize(("longest", "ejected_at"), [(0.01, 2.0), (0.5, 5.0)])
def test_one_that_shows_life_but_answers_nothing_while_others_do_is_wedged(longest: float, ejected_at: float) -> None:
    replicas = of(2)
    replicas.ended(replicas.began(0, 1, -longest), Outcome.ANSWERED, 0.0)
    replicas.began(0, 1, 0.0)
    ejections = []
    for step in range(1, 60):
        now = step / 10
        replicas.ended(replicas.began(1, 1, now - 0.01), Outcome.ANSWERED, now)
        for action in replicas.sweep(now):
            if isinstance(action, Ejected):
                ejections.append((now, action.reason))
            else:
                replicas.probed(action.replica, now, now, is_alive=True)
        if ejections:
            break

    assert [(ejected_at, "wedged")] == ejections


def test_nobody_is_wedged_while_nobody_answers() -> None:
    replicas = of(2)
    replicas.began(0, 1, 0.0)
    replicas.began(1, 1, 0.0)
    for step in range(1, 100):
        for action in replicas.sweep(step / 10):
            assert isinstance(action, Probe)
            replicas.probed(action.replica, step / 10, step / 10, is_alive=True)


def test_answers_in_parts_are_signs_of_work() -> None:
    replicas = of(2)
    replicas.began(0, 256, 0.0)
    for step in range(1, 100):
        replicas.worked(0, step / 20)
        assert [] == replicas.sweep(step / 20)


def test_one_that_drains_gets_no_calls_and_keeps_those_it_has() -> None:
    replicas = of(2)
    call = replicas.began(0, 1, 0.0)
    replicas.told(0, 0.0, is_serving=False)

    assert "draining" == replicas.state(0)
    assert {1} == {replicas.choose() for _ in range(4)}
    assert replicas.another({1}) is None
    assert [1, 0] == replicas.in_order()
    assert replicas.ended(call, Outcome.ANSWERED, 0.01) is None
    replicas.told(0, 1.0, is_serving=True)
    assert {0, 1} == {replicas.choose() for _ in range(2)}


def test_a_suspect_is_good_enough_for_a_second_attempt_but_does_not_count_as_one_that_is_left() -> None:
    replicas = of(2)
    replicas.began(1, 1, 0.0)
    replicas.sweep(0.1)
    assert "suspected" == replicas.state(1)

    assert 1 == replicas.another({0})
    for _ in range(9):
        assert replicas.ended(replicas.began(0, 1, 0.1), Outcome.FAILED, 0.1) is None


def test_where_none_is_in_order_all_are_tried() -> None:
    replicas = of(2)
    for number in (0, 1):
        replicas.told(number, 0.0, is_serving=False)

    assert {0, 1} == {replicas.choose() for _ in range(2)}


def test_one_that_comes_back_while_it_is_ejected_is_probed_at_once() -> None:
    replicas = of(2)
    silent(replicas, 0, 0.0)
    replicas.told(0, 0.3, is_serving=False)
    replicas.told(0, 0.4, is_serving=True)

    assert [Probe(0)] == replicas.sweep(0.4)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["call", "end", "told", "probed", "sweep"]),
        st.integers(0, 2),
        st.sampled_from(list(Outcome)),
        st.booleans(),
        st.floats(0.0, 3.0),
    ),
    max_size=80,
)


@given(EVENTS)
def test_whatever_happens_one_is_left_and_the_books_agree(events: list[tuple[str, int, Outcome, bool, float]]) -> None:
    replicas, calls, now = of(3, replace(POLICY, max_failures=2)), [], 0.0
    probed: dict[int, float] = {}
    for what, number, outcome, yes, pause in events:
        now += pause
        change = None
        if what == "call":
            chosen = replicas.choose({number} if yes else ())
            assert not (yes and chosen == number)
            usable = [n for n in range(3) if replicas.is_usable(n) and not (yes and n == number)]
            assert not usable or chosen in usable
            calls.append(replicas.began(chosen, number + 1, now))
        elif what == "end" and calls:
            change = replicas.ended(calls.pop(number % len(calls)), outcome, now)
        elif what == "told":
            replicas.told(number, now, is_serving=yes)
        elif what == "probed" and number in probed:
            change = replicas.probed(number, probed.pop(number), now, is_alive=yes)
        elif what == "sweep":
            for action in replicas.sweep(now):
                if isinstance(action, Probe):
                    assert action.replica not in probed
                    probed[action.replica] = now
        if isinstance(change, Ejected):
            assert 1.0 <= change.seconds <= 2.5
        assert any(replicas.state(n) != "ejected" for n in range(3))
        assert [sum(call.size for call in calls if call.replica == n) for n in range(3)] == list(replicas.outstanding)
        assert calls == [] or not replicas.is_at_rest
