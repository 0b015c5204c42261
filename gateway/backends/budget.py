"""How many calls may be under way a second time. Retries and hedges of one backend share it."""

import asyncio
from collections import deque

from clients import Deadline


class Budget:
    """Extra calls are at most *share* of the calls under way, or *floor* where that is more. All methods belong to one loop.

    Who gets no permit at once waits in turn: when a replica dies, all its calls fail together, and are tried again in waves.
    """

    def __init__(self, share: float = 0.2, floor: int = 5) -> None:
        self._share = share
        self._floor = floor
        self._active = 0
        self._extra = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Budget [{self._active} calls, {self._extra} extra, {len(self._waiting)} waiting]>"

    def enter(self) -> None:
        """A caller's call begins."""
        self._active += 1

    def leave(self) -> None:
        """It is over, however many times it was tried."""
        self._active -= 1

    def take(self) -> bool:
        """A permit for an extra call, now or not at all."""
        if self._waiting or not is_within(self._active, self._extra, self._share, self._floor):
            return False
        self._extra += 1
        return True

    async def wait(self, deadline: Deadline) -> bool:
        """A permit; False once *deadline* has passed."""
        if self.take():
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(deadline.remaining()):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give_back()
            else:
                turn.cancel()
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def give_back(self) -> None:
        """An extra call is over."""
        self._extra -= 1
        while self._waiting and is_within(self._active, self._extra, self._share, self._floor):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._extra += 1


def is_within(active: int, extra: int, share: float, floor: int) -> bool:
    """Whether one more extra call may begin beside *extra*, of *active* calls."""
    return extra < max(floor, share * active)
