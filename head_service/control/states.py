"""What may become of a training run: one pure function over a snapshot."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal

State = Literal["queued", "running", "succeeded", "refused", "failed", "cancelled"]
STATES: Final[tuple[State, ...]] = ("queued", "running", "succeeded", "refused", "failed", "cancelled")
FINAL: Final[frozenset[State]] = frozenset({"succeeded", "refused", "failed", "cancelled"})


class Event(StrEnum):
    """What happens to a run."""

    CLAIMED = "claimed"
    """A worker takes it."""
    GIVEN_BACK = "given back"
    """A worker that is told to stop puts it back; the attempt does not count."""
    LOST = "lost"
    """Its lease ran out, its process died, or a service it needs was away: worth another attempt."""
    CANCEL_ASKED = "cancel asked"
    """Somebody wants it to stop; the worker may see that later."""
    CANCELLED = "cancelled"
    """The worker has stopped it because that was asked."""
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    """Trained, and not good enough."""
    FAILED = "failed"
    """It can never end well as it is."""


_ENDS: Final[dict[Event, State]] = {
    Event.CANCELLED: "cancelled",
    Event.SUCCEEDED: "succeeded",
    Event.REFUSED: "refused",
    Event.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands. *attempt* counts how often it was claimed, less what was given back."""

    state: State
    attempt: int
    max_attempts: int
    is_cancel_asked: bool = False


def after(now: Standing, event: Event) -> Standing | None:
    """Where a run stands after *event*; None where the event cannot happen to it, which changes nothing."""
    if now.state == "queued":
        return _after_queued(now, event)
    if now.state == "running":
        return _after_running(now, event)
    return None


def _after_queued(now: Standing, event: Event) -> Standing | None:
    if event is Event.CLAIMED:
        return replace(now, state="running", attempt=now.attempt + 1)
    if event is Event.CANCEL_ASKED:
        return replace(now, state="cancelled", is_cancel_asked=True)
    return None


def _after_running(now: Standing, event: Event) -> Standing | None:
    if event in _ENDS:
        return replace(now, state=_ENDS[event])
    if event is Event.CANCEL_ASKED:
        return replace(now, is_cancel_asked=True)
    if event is Event.GIVEN_BACK:
        return replace(now, state="cancelled" if now.is_cancel_asked else "queued", attempt=now.attempt - 1)
    if event is Event.LOST:
        return replace(now, state=_after_loss(now))
    return None


def _after_loss(now: Standing) -> State:
    if now.is_cancel_asked:
        return "cancelled"
    return "queued" if now.attempt < now.max_attempts else "failed"
