"""Calls of many requests made as few: while the allowed calls are out, arrivals gather, and leave together in the next.

No timer. Under light load a call leaves at once and alone; what comes in the same turn of the event loop, and under load what
came while the other calls were out, leaves together.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from clients import Deadline, DeadlineExceeded, InvalidResponse, Overloaded, TrunklineError
from gateway.exchange import Ids, carry, ids_passed_on

Row = TypeVar("Row")
Answer = TypeVar("Answer")

Send = Callable[[Sequence[Row], Deadline], Awaitable[Sequence[Answer]]]
"""One call: rows to as many answers, in order; raises TrunklineError."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """*max_calls* are out at once, each with at most *max_rows*; *max_pending* rows may gather."""

    max_calls: int = 4
    max_rows: int = 256
    max_pending: int = 8_192


@dataclass(slots=True, eq=False)
class _Waiter(Generic[Row, Answer]):
    """A request's rows. *future* is done once answered, failed, or left by its caller."""

    rows: Sequence[Row]
    deadline: Deadline
    future: "asyncio.Future[Sequence[Answer]]"
    ids: Ids = field(default_factory=ids_passed_on)


class Coalescer(Generic[Row, Answer]):
    """Single owner of what waits for one kind of call. All methods belong to the event loop."""

    def __init__(self, send: "Send[Row, Answer]", limits: CallLimits) -> None:
        self._send = send
        self._limits = limits
        self._pending: deque[_Waiter[Row, Answer]] = deque()
        self._num_rows = 0
        self._calls: dict[asyncio.Task[None], list[_Waiter[Row, Answer]]] = {}
        self._will_dispatch = False

    def __repr__(self) -> str:
        return f"<Coalescer [{len(self._calls)} calls out, {self._num_rows} rows pending]>"

    @property
    def num_rows(self) -> int:
        """How many wait for a call."""
        return self._num_rows

    async def run(self, rows: Sequence[Row], deadline: Deadline) -> Sequence[Answer]:
        """Answers for *rows*, in order; more than *max_rows* go in several calls.

        Raises:
            Overloaded: too much waits already.
            DeadlineExceeded: *deadline* passed; rows still waiting are not sent.
            TrunklineError: the call they were in failed.
        """
        if self._num_rows and self._num_rows + len(rows) > self._limits.max_pending:
            raise Overloaded("too many texts wait for a backend", retry_after=0.5)
        size = self._limits.max_rows
        waiters = [self._queue(rows[start : start + size], deadline) for start in range(0, len(rows), size)]
        loop = asyncio.get_running_loop()
        if not self._will_dispatch:
            self._will_dispatch = True
            loop.call_soon(self._dispatch)
        # Not asyncio.timeout: it cancels the task and makes its error of that, where a timer is all it takes.
        timer = loop.call_later(deadline.remaining(), _expire, waiters)
        parts: list[Sequence[Answer]] = []
        try:
            for waiter in waiters:
                parts.append(await waiter.future)  # noqa: PERF401 (who comes after a failed one is left, below)
        finally:
            timer.cancel()
            if len(parts) < len(waiters):
                for waiter in waiters:
                    _leave(waiter.future)
                self._cancel_deserted()
                # The error it ends with knows this frame.
                waiters.clear()
                del waiter
        return parts[0] if len(parts) == 1 else [answer for part in parts for answer in part]

    def fail(self, error: TrunklineError) -> None:
        """Tell *error* to all who wait, and cancel the calls that are out, but for the one that asks for it."""
        asking = asyncio.current_task() if self._calls else None
        waiting = [*self._pending, *(member for call, members in self._calls.items() if call is not asking for member in members)]
        self._pending.clear()
        self._num_rows = 0
        _fail(waiting, error)
        self._cancel_deserted()

    async def close(self) -> None:
        """Cancel the calls that are out."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _queue(self, rows: Sequence[Row], deadline: Deadline) -> _Waiter[Row, Answer]:
        waiter: _Waiter[Row, Answer] = _Waiter(rows, deadline, asyncio.get_running_loop().create_future())
        self._pending.append(waiter)
        self._num_rows += len(rows)
        return waiter

    def _dispatch(self) -> None:
        self._will_dispatch = False
        while self._pending and len(self._calls) < self._limits.max_calls:
            members = self._take()
            if members:
                call = asyncio.create_task(self._call(members))
                self._calls[call] = members
                call.add_done_callback(self._ended)

    def _take(self) -> list[_Waiter[Row, Answer]]:
        """Who goes in the next call: first come first served, without the departed and the expired."""
        members: list[_Waiter[Row, Answer]] = []
        num_rows = 0
        while self._pending:
            waiter = self._pending[0]
            alive = not waiter.future.done() and not waiter.deadline.expired
            if alive and members and num_rows + len(waiter.rows) > self._limits.max_rows:
                break
            self._pending.popleft()
            self._num_rows -= len(waiter.rows)
            if alive:
                members.append(waiter)
                num_rows += len(waiter.rows)
        return members

    async def _call(self, members: list[_Waiter[Row, Answer]]) -> None:
        carry([member.ids for member in members])
        rows = [row for member in members for row in member.rows]
        # The most patient member decides; the others leave by their own deadlines.
        deadline = max((member.deadline for member in members), key=lambda deadline: deadline.at)
        try:
            answers = _counted(await self._send(rows, deadline), len(rows))
        except TrunklineError as error:
            _fail(members, error)
        except asyncio.CancelledError:
            _fail(members, TrunklineError("the gateway is stopping"))
            raise
        except Exception as error:  # whatever it was, its members must be told
            _fail(members, TrunklineError(f"a call failed: {type(error).__name__}"))
        else:
            _settle(members, answers)
        finally:
            # An error knows this frame, and the members know the error.
            del members

    def _ended(self, call: asyncio.Task[None]) -> None:
        del self._calls[call]
        self._dispatch()

    def _cancel_deserted(self) -> None:
        """A call whose members have all left is of use to nobody."""
        for call, members in self._calls.items():
            if all(member.future.done() for member in members):
                call.cancel()


def _counted(answers: Sequence[Answer], expected: int) -> Sequence[Answer]:
    if len(answers) != expected:
        raise InvalidResponse("a backend answered another number of rows than it was given")
    return answers


def _settle(members: list[_Waiter[Row, Answer]], answers: Sequence[Answer]) -> None:
    start = 0
    for member in members:
        end = start + len(member.rows)
        if not member.future.done():
            member.future.set_result(answers[start:end])
        start = end


def _expire(members: list[_Waiter[Row, Answer]]) -> None:
    _fail(members, DeadlineExceeded("the deadline passed while waiting for a backend"))


def _fail(members: list[_Waiter[Row, Answer]], error: TrunklineError) -> None:
    for member in members:
        if not member.future.done():
            member.future.set_exception(error)


def _leave(future: "asyncio.Future[Sequence[Answer]]") -> None:
    """Nobody waits any more; an error nobody will read is marked as read."""
    if not future.cancel() and not future.cancelled():
        future.exception()
