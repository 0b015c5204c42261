"""How much may be inside at once: permits by text, taken for a whole request or not at all.

Two bounds. The fixed one is memory's. The other is patience's: nothing is let in that would have to wait for longer than
*max_wait_seconds*, judged by how fast texts have been answered. By Little's law what is inside, over the rate at which it leaves,
is how long it stays. What the embedding service refuses does not count: full, it refuses faster than it works, and the more of
its refusals were taken for work the more it would be asked.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from clients import DeadlineExceeded, Overloaded, Unavailable

WINDOW_SECONDS: Final = 0.25
"""Over which a rate is counted."""

SATURATED: Final = 64
"""Texts inside that keep every backend busy: a rate counted with fewer says how many came, not how many could have left."""

LEAST_BOUND: Final = 2 * SATURATED
"""However slowly texts are answered: with fewer nobody would notice that they are answered faster again."""

FORGOTTEN_SECONDS: Final = 10.0
"""So long after it was last counted the least rate is forgotten: nothing has been slow since."""

BULK_SHARE: Final = 0.75
"""Of either bound, for bulk: interactive callers always find room beside it."""


def free() -> None:
    """What nothing is to be paid for."""


class Throughput:
    """The rate at which texts are answered while there are enough of them inside. Owner of its counts.

    A rate of *least* or below was an outage's: with so few let in it might never be counted again, so it is forgotten.
    """

    def __init__(self, least: float) -> None:
        self.per_second: float | None = None
        """None as long as nothing is known."""
        self._least = least
        self._counted_at = self._began = 0.0
        self._num_answered = 0
        self._is_saturated = False

    def begin(self, now: float) -> None:
        """Nothing is inside: what was counted since the last rate says how many came."""
        self._began, self._num_answered, self._is_saturated = now, 0, True

    def left(self, num_answered: int, *, inside: int, now: float) -> None:
        """A request has left, with so many texts of it answered: all or none; *inside* were there until then."""
        self._num_answered += num_answered
        self._is_saturated = self._is_saturated and inside >= SATURATED
        if self.per_second is not None and self.per_second <= self._least and now - self._counted_at > FORGOTTEN_SECONDS:
            self.per_second = None
        elapsed = now - self._began
        if elapsed < WINDOW_SECONDS:
            return
        if self._is_saturated:
            rate = self._num_answered / elapsed
            known = self.per_second
            self.per_second = rate if known is None else known + 0.3 * (rate - known)
            self._counted_at = now
        self.begin(now)


class Admission:
    """*max_texts* permits, and fewer while they would mean a wait. Owner of its count; used from the event loop."""

    def __init__(self, max_texts: int, *, max_wait_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_texts = max_texts
        self._max_wait_seconds = max_wait_seconds
        self._clock = clock
        self._throughput = Throughput(LEAST_BOUND / max_wait_seconds)
        self.num_texts = 0

    @contextmanager
    def admit(self, num_texts: int, *, is_bulk: bool = False, pay: Callable[[], None] = free) -> Iterator[None]:
        """Hold a permit for each text, for which *pay* is called before: who is refused for want of room pays nothing.

        What *pay* raises goes to the caller, and says nothing of the backends. A block that ends by what the embedding service
        refuses, or by the deadline, had nothing answered. One that ends by any other exception, such as the caller's own mistake,
        says nothing.

        Raises:
            Overloaded: there are not enough. A request larger than all permits is let in when nothing else is inside.
        """
        seconds = self.seconds_until_room(num_texts, is_bulk=is_bulk)
        if seconds is not None:
            raise Overloaded("the gateway is full", retry_after=seconds)
        pay()
        if not self.num_texts:
            self._throughput.begin(self._clock())
        self.num_texts += num_texts
        try:
            yield
        except (Unavailable, DeadlineExceeded):
            self._left(0)
            raise
        else:
            self._left(num_texts)
        finally:
            self.num_texts -= num_texts

    def seconds_until_room(self, num_texts: int, *, is_bulk: bool = False) -> float | None:
        """None where *num_texts* would be let in now; else when to ask again."""
        bound = self.bound * (BULK_SHARE if is_bulk else 1.0)
        if not self.num_texts or self.num_texts + num_texts <= bound:
            return None
        return self._retry_after(self.num_texts + num_texts - bound)

    @property
    def bound(self) -> float:
        """How many texts may be inside now."""
        rate = self._throughput.per_second
        if rate is None:
            return self._max_texts
        return min(self._max_texts, max(LEAST_BOUND, rate * self._max_wait_seconds))

    def _left(self, num_answered: int) -> None:
        self._throughput.left(num_answered, inside=self.num_texts, now=self._clock())

    def _retry_after(self, num_too_many: float) -> float:
        """When so many texts will have left; 50 ms to 10 s."""
        rate = self._throughput.per_second
        return min(max(num_too_many / rate, 0.05), 10.0) if rate else 0.5
