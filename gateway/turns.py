"""A few requests begin their work in one turn of the event loop; who comes meanwhile is heard, and refused, in between.

To read a text and to ask for it takes some hundred microseconds. Of a thousand requests that come within a moment all would
begin in one turn, and nobody else would be looked at until the last of them had.
"""

import asyncio
from collections import deque
from typing import Final

PER_TURN: Final = 8
"""Requests: of a text each, about two milliseconds of work."""


class Turns:
    """First come, first served. Used from one event loop."""

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = per_turn
        self._left = per_turn
        """0 only while a turn's end is awaited, and only then anybody waits."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Return at once where this turn of the loop has room, else in a later one."""
        if self._left:
            self._leave_one_less()
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        await mine

    def _leave_one_less(self) -> None:
        self._left -= 1
        if not self._left:
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._left = self._per_turn
        while self._waiting and self._left:
            first = self._waiting.popleft()
            # Who has left needs no turn.
            if not first.done():
                first.set_result(None)
                self._leave_one_less()
