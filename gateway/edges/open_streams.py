"""How many streams are open: each holds a connection and some lines for as long as its caller likes."""

from collections.abc import Iterator
from contextlib import contextmanager

from clients import Overloaded


class OpenStreams:
    """At most *max_open* at once. Owner of its count; used from the event loop."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self.num_open = 0

    def check(self) -> None:
        """Overloaded where there is no place for one more."""
        if self.num_open >= self._max_open:
            raise Overloaded("too many streams are open", retry_after=1.0)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Count one more for as long as it lasts."""
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1
