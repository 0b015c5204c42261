"""Time: the moment by which a call must be over, and how long a service asks to be left alone."""

import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """A moment of the monotonic clock, in seconds. It is handed from hop to hop; a timeout is made of it at each."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """The moment *seconds* from now."""
        return cls(time.monotonic() + seconds)

    @property
    def expired(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self.at

    def remaining(self) -> float:
        """Seconds left; 0.0 once it has passed."""
        return max(0.0, self.at - time.monotonic())

    def shrunk(self, margin: float) -> Self:
        """The same, *margin* seconds earlier: what a caller leaves to the next hop so as to answer in time itself."""
        return type(self)(self.at - margin)


def retry_after_seconds(milliseconds: str | bytes | None, seconds: str | None = None) -> float | None:
    """What `retry-after-ms`, or else `retry-after`, says; None where neither says it in a whole number."""
    for value, per_second in ((milliseconds, 1000), (seconds, 1)):
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value or ""
        if text.isascii() and text.isdigit() and len(text) <= 12:
            return int(text) / per_second
    return None
