"""The calls to one service with several replicas. `Replicas` decides; this acts: it is the one owner of calls, timer and watches.

A call goes to one replica. When that is lost, or ejected while the call is under way, the call is tried once more, on another
replica that is in order, when the budget has a permit; nowhere else in the gateway is anything tried again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from clients import Cancelled, Deadline, DeadlineExceeded, Overloaded, TrunklineError, Unavailable
from gateway.backends.budget import Budget
from gateway.backends.facts import BackendFacts, NoFacts
from gateway.backends.replicas import NONE, Call, Change, Ejected, Outcome, Policy, Probe, Replicas, State

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Attempt = Callable[[int], Awaitable[Answer]]
"""One call to the replica of that number; raises TrunklineError. It may be made twice, and be cancelled."""

TICK_SECONDS: Final = 0.025
"""Between two looks at the time, while calls are under way or a replica is ejected."""

ANSWER_MARGIN_SECONDS: Final = 0.005
"""Kept back from a backend, at most, so as to answer the caller in time."""

WATCH_AGAIN_SECONDS: Final = 0.25
UNWATCHED_SECONDS: Final = 5.0
"""Until a server that has no health service is asked for it again."""


class Replica(Protocol):
    """What the pool needs of a client."""

    def watch_health(self) -> AsyncGenerator[bool, None]:
        """Whether the replica takes calls, now and at every change. Ends at once where it cannot tell; raises TrunklineError."""
        ...


@dataclass(frozen=True, slots=True)
class Habits:
    """How one service is treated.

    Attributes:
        backend: its name in logs and metrics.
        probe: asks a replica for a sign of life within so many seconds; any answer is one. Raises TrunklineError.
        greet: called, and waited for, when a replica says that it takes calls. Raises nothing.
        worked_at: when a replica was last heard to work on what is under way, of `time.monotonic`.
        faults: errors that are the replica's own, beside those of `verdict`.
        elsewhere: errors that another replica may not have, beside those of `is_retryable`.
        probe_seconds: silence is not believed before a probe has gone without an answer for so long.
        hedge_seconds: a call that takes longer is made a second time elsewhere, and the first answer taken; 0: never.
    """

    backend: str
    probe: Callable[[int, float], Awaitable[object]]
    greet: Callable[[int], Awaitable[None]] | None = None
    worked_at: Callable[[int], float] | None = None
    faults: tuple[type[TrunklineError], ...] = ()
    elsewhere: tuple[type[TrunklineError], ...] = ()
    probe_seconds: float = 0.1
    hedge_seconds: float = 0.0


class Pool:
    """All methods belong to one event loop. With a single replica it only hands calls on: there is nothing to choose."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        habits: Habits,
        *,
        policy: Policy | None = None,
        budget: Budget | None = None,
        facts: BackendFacts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clients = replicas
        self._habits = habits
        self._replicas = Replicas(len(replicas), policy)
        self._budget = budget or Budget()
        self._facts = facts or NoFacts()
        self._clock = clock
        self._is_single = len(replicas) == 1
        self._movable: dict[Call, asyncio.Timeout] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Pool {self._habits.backend} {self._replicas!r} {self._budget!r}>"

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def backend(self) -> str:
        """Its name in logs and metrics."""
        return self._habits.backend

    @property
    def snapshot(self) -> list[tuple[State, int]]:
        """Of each replica its state and the texts outstanding; of a single one they are not followed."""
        return [(self._replicas.state(number), count) for number, count in enumerate(self._replicas.outstanding)]

    def outstanding(self, number: int) -> int:
        """Texts under way at a replica; of a single one they are not followed."""
        return self._replicas.outstanding[number]

    def in_order(self) -> list[int]:
        """All replicas, those in order first."""
        return self._replicas.in_order()

    def is_usable(self, number: int) -> bool:
        """Whether calls go to a replica while there is a choice."""
        return self._replicas.is_usable(number)

    def start(self) -> None:
        """Begin to watch the replicas' health, where there are several. Ends with `close`."""
        if not self._is_single:
            for number in range(len(self)):
                self._spawn(self._watch(number))

    async def close(self) -> None:
        """End the watches, probes and the timer; calls under way are their callers'."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        background = list(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)

    async def run(self, attempt: "Attempt[Answer]", size: int, deadline: Deadline, avoiding: Collection[int] = NONE) -> Answer:
        """What *attempt* answers, at a replica that is none of *avoiding*; at another one when the first is lost.

        Args:
            attempt: must end by *deadline* by itself.
            size: how many texts it is about.
            deadline: past it no call is made.
            avoiding: numbers of replicas; never all.

        Raises:
            DeadlineExceeded: *deadline* had passed before the call.
            TrunklineError: what the last attempt raised.
        """
        if deadline.expired:
            raise DeadlineExceeded("the deadline had passed before the call")
        if self._is_single:
            return await attempt(0)
        number = self._replicas.choose(avoiding)
        self._budget.enter()
        try:
            if self._habits.hedge_seconds:
                return await self._hedged(number, attempt, size, deadline, avoiding)
            return await self._try(number, attempt, size, is_movable=True)
        except TrunklineError as error:
            if not is_retryable(error) and not isinstance(error, self._habits.elsewhere):
                raise
            return await self._elsewhere({*avoiding, number}, attempt, size, deadline, error)
        finally:
            self._budget.leave()

    async def _try(self, number: int, attempt: "Attempt[Answer]", size: int, *, is_movable: bool) -> Answer:
        call = self._replicas.began(number, size, self._clock())
        if self._timer is None:
            self._arm()
        outcome = Outcome.LEFT
        try:
            if not is_movable:
                answer = await attempt(number)
            else:
                async with asyncio.timeout(None) as moving:
                    self._movable[call] = moving
                    answer = await attempt(number)
            outcome = Outcome.ANSWERED
        except TimeoutError:
            raise Unavailable("the replica was ejected during the call") from None
        except TrunklineError as error:
            outcome = verdict(error, self._habits.faults)
            raise
        finally:
            self._movable.pop(call, None)
            self._act(self._replicas.ended(call, outcome, self._clock()))
        return answer

    async def _elsewhere(
        self, avoiding: set[int], attempt: "Attempt[Answer]", size: int, deadline: Deadline, error: TrunklineError
    ) -> Answer:
        """Once more, where a replica is in order; otherwise *error* stands."""
        if deadline.expired or self._replicas.another(avoiding) is None:
            raise error
        if not await self._budget.wait(deadline):
            self._facts.retry_refused(self._habits.backend)
            raise error
        try:
            number = self._replicas.another(avoiding)
            if number is None or deadline.expired:
                raise error
            self._facts.retried(self._habits.backend)
            return await self._try(number, attempt, size, is_movable=False)
        finally:
            self._budget.give_back()

    async def _hedged(
        self, number: int, attempt: "Attempt[Answer]", size: int, deadline: Deadline, avoiding: Collection[int]
    ) -> Answer:
        """`_try`, and after a while a second one beside it elsewhere; the first good answer wins."""
        first = asyncio.create_task(self._try(number, attempt, size, is_movable=True))
        trying = {first}
        try:
            await asyncio.wait(trying, timeout=self._habits.hedge_seconds)
            other = self._replicas.another({*avoiding, number})
            if first.done() or other is None or deadline.expired or not self._budget.take():
                return await first
            self._facts.hedged(self._habits.backend)
            try:
                trying.add(asyncio.create_task(self._try(other, attempt, size, is_movable=False)))
                return await first_good(trying)
            finally:
                await _ended(trying)
                self._budget.give_back()
        finally:
            await _ended(trying)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._habits.worked_at is not None:
            for number in range(len(self)):
                self._replicas.worked(number, self._habits.worked_at(number))
        for action in self._replicas.sweep(self._clock()):
            if isinstance(action, Probe):
                self._spawn(self._probe(action.replica))
            else:
                self._act(action)
        if not self._replicas.is_at_rest:
            self._arm()

    def _act(self, change: Change | None) -> None:
        if change is None:
            return
        backend, number = self._habits.backend, change.replica
        if not isinstance(change, Ejected):
            _log.warning("%s replica %d answers again", backend, number)
            self._facts.readmitted(backend, number)
            return
        _log.warning("%s replica %d gets no calls for %.1f s: %s", backend, number, change.seconds, change.reason)
        self._facts.ejected(backend, number, change.reason)
        now = asyncio.get_running_loop().time()
        for call in self._replicas.calls(number):
            moving = self._movable.pop(call, None)
            if moving is not None:
                moving.reschedule(now)

    async def _probe(self, number: int) -> None:
        asked_at = self._clock()
        try:
            await self._habits.probe(number, self._habits.probe_seconds)
            is_alive = True
        except TrunklineError as error:
            is_alive = verdict(error) is Outcome.ANSWERED
        self._act(self._replicas.probed(number, asked_at, self._clock(), is_alive=is_alive))

    async def _watch(self, number: int) -> None:
        """Hear from a replica whether it takes calls; a connection that ends says that it does not."""
        while True:
            pause = UNWATCHED_SECONDS
            try:
                async with contextlib.aclosing(self._clients[number].watch_health()) as health:
                    async for is_serving in health:
                        self._told(number, is_serving=is_serving)
                        if is_serving and self._habits.greet is not None:
                            await self._habits.greet(number)
                        pause = WATCH_AGAIN_SECONDS
                # It cannot tell.
                self._told(number, is_serving=True)
            except TrunklineError as error:
                # Whoever may not ask for health is still answered.
                is_lost = is_retryable(error)
                self._told(number, is_serving=not is_lost)
                pause = WATCH_AGAIN_SECONDS if is_lost else UNWATCHED_SECONDS
            await asyncio.sleep(pause)

    def _told(self, number: int, *, is_serving: bool) -> None:
        self._replicas.told(number, self._clock(), is_serving=is_serving)
        if self._timer is None and not self._replicas.is_at_rest:
            self._arm()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.error("looking after the %s replicas failed", self._habits.backend, exc_info=fault)


def for_backend(deadline: Deadline) -> Deadline:
    """What a backend is given of *deadline*: a little less."""
    return deadline.shrunk(min(ANSWER_MARGIN_SECONDS, deadline.remaining() / 20))


def verdict(error: TrunklineError, faults: tuple[type[TrunklineError], ...] = ()) -> Outcome:
    """What *error* says of the replica that was called; *faults* are its own, too."""
    if isinstance(error, DeadlineExceeded):
        return Outcome.TIMED_OUT
    return Outcome.FAILED if is_retryable(error) or isinstance(error, faults) else Outcome.ANSWERED


def is_retryable(error: TrunklineError) -> bool:
    """Whether another replica may do better. A full one is not helped by asking the next one, too."""
    return isinstance(error, Unavailable | Cancelled) and not isinstance(error, Overloaded)


async def first_good(trying: "set[asyncio.Task[Answer]]") -> Answer:
    """The answer of the first that has one; the error of the last where none has."""
    waiting = set(trying)
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        good = next((task for task in done if task.exception() is None), None)
        if good is not None or not waiting:
            return (good or done.pop()).result()


async def _ended(trying: "set[asyncio.Task[Answer]]") -> None:
    """Cancel what still runs, and hear the end of all."""
    for task in trying:
        task.cancel()
    await asyncio.gather(*trying, return_exceptions=True)
