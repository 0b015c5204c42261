"""Whether the gateway is stopping, told to those who would else wait for a caller that may never send anything more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Drain:
    """Begins once and does not end. Belongs to the event loop."""

    def __init__(self) -> None:
        self.is_on = False
        self._waits: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """The gateway is stopping: it is not ready any more, and no wait by `patience` goes on."""
        self.is_on = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(now)

    @contextlib.asynccontextmanager
    async def patience(self, seconds: float) -> AsyncIterator[None]:
        """Wait *seconds* at most, and not at all once the gateway is stopping.

        Raises:
            TimeoutError: that was too long; `is_on` tells which of the two it was.
        """
        if self.is_on:
            raise TimeoutError
        async with asyncio.timeout(seconds) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)
