"""A round counts when nobody else was at work: waited for before it, checked after it, repeated a few times."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final, TypeVar

from perf.machine import MAX_WAITS, QUIET_SHARE, Snapshot, others_share, snapshot, wait_until_quiet

Result = TypeVar("Result")

MAX_TRIES: Final = 3


@dataclass(slots=True)
class Patience:
    """*seconds* that may yet be lost to neighbours, by waiting for them and in rounds that do not count, of all who share it."""

    seconds: float = math.inf

    def lose(self, seconds: float) -> None:
        """They are gone."""
        self.seconds = max(0.0, self.seconds - seconds)

    @property
    def is_at_its_end(self) -> bool:
        """No second is left: what comes is measured as it comes."""
        return self.seconds <= 0


@dataclass(slots=True)
class Rounds:
    """Takes rounds; *pids* and their descendants are what is measured, all others are neighbours. *num_disturbed* were kept."""

    pids: Collection[int]
    say: Callable[[str], None]
    max_waits: int = MAX_WAITS
    patience: Patience = field(default_factory=Patience)
    take_snapshot: Callable[[Collection[int]], Snapshot] = snapshot
    num_disturbed: int = 0

    async def take(self, measure: Callable[[], Awaitable[Result]]) -> Result:
        """What *measure* gives in a quiet round; after `MAX_TRIES`, or out of patience, the last is kept, counted and told."""
        for number in range(1, MAX_TRIES + 1):
            await self._wait_until_quiet()
            before, begun = self.take_snapshot(self.pids), time.monotonic()
            result = await measure()
            share = others_share(before, self.take_snapshot(self.pids))
            if share < QUIET_SHARE:
                return result
            self.say(f"others used {share:.0%} of the machine meanwhile: this round does not count")
            if number == MAX_TRIES or self.patience.is_at_its_end:
                break
            self.patience.lose(time.monotonic() - begun)
        self.say("and it is kept all the same, since the machine does not become quiet")
        self.num_disturbed += 1
        return result

    async def _wait_until_quiet(self) -> None:
        if self.patience.is_at_its_end:
            return
        waits = math.ceil(min(self.max_waits, self.patience.seconds))
        self.patience.lose(await asyncio.to_thread(wait_until_quiet, self.pids, self.say, waits))
