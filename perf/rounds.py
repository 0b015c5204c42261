"""A round counts when nobody else was at work: waited for before it, checked after it, repeated a few times."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar

from perf.machine import MAX_WAITS, QUIET_SHARE, Snapshot, others_share, snapshot, wait_until_quiet

Result = TypeVar("Result")

MAX_TRIES: Final = 3


@dataclass(slots=True)
class Rounds:
    """Takes rounds; *pids* and their descendants are what is measured, all others are neighbours. *num_disturbed* were kept."""

    pids: Collection[int]
    say: Callable[[str], None]
    max_waits: int = MAX_WAITS
    take_snapshot: Callable[[Collection[int]], Snapshot] = snapshot
    num_disturbed: int = 0

    async def take(self, measure: Callable[[], Awaitable[Result]]) -> Result:
        """What *measure* gives in a quiet round; after `MAX_TRIES` the last is kept, counted and told."""
        for _ in range(MAX_TRIES):
            await asyncio.to_thread(wait_until_quiet, self.pids, self.say, self.max_waits)
            before = self.take_snapshot(self.pids)
            result = await measure()
            share = others_share(before, self.take_snapshot(self.pids))
            if share < QUIET_SHARE:
                return result
            self.say(f"others used {share:.0%} of the machine meanwhile: this round does not count")
        self.say("and it is kept all the same, since the machine does not become quiet")
        self.num_disturbed += 1
        return result
