"""Replicas that answer what a test tells them to, when it tells them to."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from clients import TrunklineError, Unavailable
from gateway.backends.breaker import BreakerState
from gateway.backends.replicas import Reason


class FakeReplica:
    """A call waits for *gate*, then answers or raises *answer*; a probe waits for *pulse*. `say` is what health says."""

    def __init__(self, answer: Any = "answer") -> None:
        self.answer = answer
        self.gate, self.pulse = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.pulse.set()
        self.calls = self.cancelled = self.probes = 0
        self._health: asyncio.Queue[bool | TrunklineError] = asyncio.Queue()

    def freeze(self) -> None:
        """Nothing is answered any more."""
        self.gate.clear()
        self.pulse.clear()

    def thaw(self) -> None:
        """Everything is answered."""
        self.gate.set()
        self.pulse.set()

    def say(self, is_serving: bool | TrunklineError) -> None:
        """By health; an error ends the watch."""
        self._health.put_nowait(is_serving)

    async def call(self) -> Any:
        """What the test's attempts make."""
        self.calls += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def probe(self, timeout: float) -> None:
        """A sign of life."""
        self.probes += 1
        try:
            async with asyncio.timeout(timeout):
                await self.pulse.wait()
        except TimeoutError:
            raise Unavailable("no sign of life") from None

    async def watch_health(self) -> AsyncGenerator[bool, None]:
        """See `gateway.backends.pool.Replica`."""
        while not isinstance(said := await self._health.get(), TrunklineError):
            yield said
        raise said


class Facts:
    """Keeps what it is told, in words."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def ejected(self, backend: str, replica: int, reason: Reason) -> None:
        self.seen.append(f"ejected {replica} {reason}")

    def readmitted(self, backend: str, replica: int) -> None:
        self.seen.append(f"readmitted {replica}")

    def retried(self, backend: str) -> None:
        self.seen.append("retried")

    def retry_refused(self, backend: str) -> None:
        self.seen.append("retry refused")

    def hedged(self, backend: str) -> None:
        self.seen.append("hedged")

    def breaker(self, head: str, version: int, state: BreakerState) -> None:
        self.seen.append(f"{head} {state}")


async def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait until *condition* is true; fails after *seconds*."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
