"""Whether a head is asked at all. Pure: told the time and what happened, it answers at once."""

from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]
Verdict = Literal["ask", "refuse", "try"]


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """*max_failures* in a row open it, for *base_seconds*; the n-th time in a row for n times that, at most *max_seconds*.

    A head that lasted *forgive_seconds* has a clean record.
    """

    max_failures: int = 5
    base_seconds: float = 0.5
    max_seconds: float = 10.0
    forgive_seconds: float = 30.0


class Breaker:
    """Closed: calls go out. Open: none does. Half-open, once its time is over: one does, and decides."""

    def __init__(self, policy: BreakerPolicy | None = None) -> None:
        self._policy = policy or BreakerPolicy()
        self._num_failures = 0
        self._num_openings = 0
        self._open_until = float("-inf")
        self._closed_at = float("-inf")
        self.state: BreakerState = "closed"

    def __repr__(self) -> str:
        return f"<Breaker [{self.state}, {self._num_failures} failures]>"

    def admit(self, now: float) -> Verdict:
        """May a call go out? "try": this one decides, and its end is told by `succeeded`, `failed` or `left`."""
        if self.state == "closed":
            return "ask"
        if self.state == "open" and now >= self._open_until:
            self.state = "half_open"
            return "try"
        return "refuse"

    def seconds_left(self, now: float) -> float:
        """Until it may be tried again."""
        return max(0.0, self._open_until - now)

    def succeeded(self, now: float) -> bool:
        """A call was answered well; True where that closed it. An answer from before it opened closes nothing."""
        self._num_failures = 0
        if self.state != "half_open":
            return False
        self.state = "closed"
        self._closed_at = now
        return True

    def failed(self, now: float) -> bool:
        """A call failed; True where that opened it."""
        self._num_failures += 1
        if self.state == "open" or (self.state == "closed" and self._num_failures < self._policy.max_failures):
            return False
        return self.trip(now)

    def trip(self, now: float) -> bool:
        """Open it at once; False where it is open."""
        if self.state == "open":
            return False
        is_new = self.state == "closed" and now - self._closed_at > self._policy.forgive_seconds
        self._num_openings = 1 if is_new else self._num_openings + 1
        self._open_until = now + min(self._policy.base_seconds * self._num_openings, self._policy.max_seconds)
        self._num_failures = 0
        self.state = "open"
        return True

    def left(self) -> None:
        """The call that was to decide ended without saying anything: the next one decides."""
        if self.state == "half_open":
            self.state = "open"
