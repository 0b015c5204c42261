"""How much may be inside at once: permits by text, taken for a whole request or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager

from clients import Overloaded


class Admission:
    """*max_texts* permits. Owner of its count; used from the event loop."""

    def __init__(self, max_texts: int) -> None:
        self._max_texts = max_texts
        self.num_texts = 0

    @contextmanager
    def admit(self, num_texts: int) -> Iterator[None]:
        """Hold a permit for each text.

        Raises:
            Overloaded: there are not enough. A request larger than all permits is let in when nothing else is inside.
        """
        if self.num_texts and self.num_texts + num_texts > self._max_texts:
            raise Overloaded("the gateway is full", retry_after=0.5)
        self.num_texts += num_texts
        try:
            yield
        finally:
            self.num_texts -= num_texts
