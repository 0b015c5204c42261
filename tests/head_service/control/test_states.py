import pytest
from hypothesis import given
from hypothesis import strategies as st

from head_service.control.states import FINAL, STATES, Event, Standing, after

LEGAL = {
    ("queued", Event.CLAIMED): "running",
    ("queued", Event.CANCEL_ASKED): "cancelled",
    ("running", Event.GIVEN_BACK): "queued",
    ("running", Event.LOST): "queued",
    ("running", Event.CANCEL_ASKED): "running",
    ("running", Event.CANCELLED): "cancelled",
    ("running", Event.SUCCEEDED): "succeeded",
    ("running", Event.REFUSED): "refused",
    ("running", Event.FAILED): "failed",
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", STATES)
def test_what_may_follow_what(state, event):
    then = after(Standing(state, attempt=1, max_attempts=3), event)

    assert LEGAL.get((state, event)) == (then.state if then else None)


@pytest.mark.parametrize(
    ("attempt", "is_cancel_asked", "event", "state", "attempt_then"),
    [
        (1, False, Event.LOST, "queued", 1),
        (3, False, Event.LOST, "failed", 3),
        (1, True, Event.LOST, "cancelled", 1),
        (3, True, Event.LOST, "cancelled", 3),
        (3, False, Event.GIVEN_BACK, "queued", 2),
        (3, True, Event.GIVEN_BACK, "cancelled", 2),
        (1, True, Event.SUCCEEDED, "succeeded", 1),
        (1, True, Event.CANCEL_ASKED, "running", 1),
    ],
)
def test_a_running_run_of_three_attempts_at_most(attempt, is_cancel_asked, event, state, attempt_then):
    then = after(Standing("running", attempt, 3, is_cancel_asked), event)

    assert then is not None
    assert (state, attempt_then) == (then.state, then.attempt)


@given(st.lists(st.sampled_from(Event), max_size=40), st.integers(1, 4))
def test_whatever_happens_attempts_are_bounded_and_an_end_is_an_end(events, max_attempts):
    now = Standing("queued", 0, max_attempts)
    for event in events:
        then = after(now, event)
        if now.state in FINAL:
            assert then is None
        now = then or now
        assert 0 <= now.attempt <= max_attempts
