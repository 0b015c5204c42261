"""The batcher: single owner of the queue and of settling. It decides in one synchronous step and waits for nobody.

No timer: a batch is cut when a backend slot is free and enough waits for it to be worth a pass (`queue.may_start`), so the
next one gathers while the current one runs, and little waits for a small one that has all cores. A full one is cut before, and
follows a pass that runs, on the same thread and without us.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, cast

from clients.wire.logs import describe
from embedding_service.backend import Backend, Batch, BatchResult, FloatArray, View
from embedding_service.errors import DeadlineExceeded, EmbedError, Overloaded, Unavailable
from embedding_service.priority import give_way
from embedding_service.queue import (
    Entry,
    EntryQueue,
    Queue,
    QueueLimits,
    Rows,
    Taken,
    Ticket,
    is_for_one_pass,
    joins_next,
    long_room,
    may_start,
    still_wanted,
)
from embedding_service.telemetry import BatchFacts, TrunkTelemetry

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One input on its way to the trunk; *pair_at* as in `backend.Batch`."""

    token_ids: tuple[int, ...]
    views: tuple[View, ...]
    pair_at: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request's rows gave: *vectors[i][j]* is row i by its view j. Seconds are of the slowest row."""

    vectors: list[list[FloatArray]]
    queue_seconds: float
    inference_seconds: float


class Waiter(Ticket, Protocol):
    """Who is told what becomes of its entries: each of them is put or failed once, unless it is settled before."""

    def put(self, index: int, vectors: list[FloatArray], queue_seconds: float, inference_seconds: float) -> None:
        """Row *index* has its vectors."""
        ...

    def fail(self, error: EmbedError) -> None:
        """A row cannot be had."""
        ...


class PendingRequest:
    """A request's rows between admission and answer. Settled exactly once: by the last row, the first failure, or leaving."""

    def __init__(self, num_rows: int, future: asyncio.Future[Outcome]) -> None:
        self._future = future
        self._vectors: list[list[FloatArray]] = [[] for _ in range(num_rows)]
        self._missing = num_rows
        self._queue_seconds = 0.0
        self._inference_seconds = 0.0

    @property
    def is_settled(self) -> bool:
        """Answered, failed, or left by its caller (the future is cancelled)."""
        return self._future.done()

    def put(self, index: int, vectors: list[FloatArray], queue_seconds: float, inference_seconds: float) -> None:
        """Row *index* has its vectors. Too late for a settled request, and then ignored."""
        if self.is_settled:
            return
        self._vectors[index] = vectors
        self._queue_seconds = max(self._queue_seconds, queue_seconds)
        self._inference_seconds = max(self._inference_seconds, inference_seconds)
        self._missing -= 1
        if not self._missing:
            self._future.set_result(Outcome(self._vectors, self._queue_seconds, self._inference_seconds))

    def fail(self, error: EmbedError) -> None:
        """One row cannot be had, so the request cannot; ignored when already settled."""
        if not self.is_settled:
            self._future.set_exception(error)


class PassSlots:
    """How many passes may run at once on one processor, whatever trunks they are of. Those who share it take turns."""

    def __init__(self, total: int) -> None:
        self.num_free = total
        self._total = total
        self._members: deque[Callable[[], None]] = deque()

    def join(self, dispatch: Callable[[], None]) -> None:
        """*dispatch* is called when a slot is free that others did not want."""
        self._members.append(dispatch)

    @property
    def are_all_free(self) -> bool:
        """Whether no pass is under way."""
        return self.num_free == self._total

    @property
    def is_one_taken(self) -> bool:
        """Whether just one pass is under way."""
        return self.num_free == self._total - 1

    @property
    def are_shared(self) -> bool:
        """Whether more than one takes turns."""
        return len(self._members) > 1

    def take(self) -> None:
        """A pass starts; the caller has seen that a slot is free."""
        self.num_free -= 1

    def give(self) -> None:
        """A pass has ended: all are asked, another one first each time."""
        self.num_free += 1
        self._members.rotate(-1)
        for dispatch in list(self._members):
            dispatch()


@dataclass(frozen=True, slots=True, eq=False)
class _UnderWay:
    """A batch that is run on *thread*, or will be."""

    taken: Taken
    rows: Rows
    thread: ThreadPoolExecutor


@dataclass(frozen=True, slots=True, eq=False)
class _Follower:
    """A batch cut ahead: its pass begins on the same thread when that of *leader* has ended."""

    batch: _UnderWay
    future: "asyncio.Future[Pass]"
    leader: "asyncio.Future[Pass]"


class Batcher:
    """Runs one backend. All methods belong to the event loop's thread; only `Backend.embed` runs elsewhere.

    *slots* are shared with other batchers of the same processor; None: the engine has them to itself. *queue*, when given, is
    used in place of one made of *limits*: another order may be measured beside ours.
    """

    def __init__(
        self,
        backend: Backend,
        limits: QueueLimits,
        telemetry: TrunkTelemetry,
        slots: PassSlots | None = None,
        *,
        queue: EntryQueue | None = None,
    ) -> None:
        self._backend = backend
        if queue is None:
            queue = Queue(limits, backend.engine.pass_cost)
        self._queue = queue
        self._telemetry = telemetry
        self._concurrency = backend.engine.concurrency
        self._slots = slots or PassSlots(self._concurrency)
        self._slots.join(self._dispatch)
        # One thread each, so that a batch can be given to the thread of a certain pass.
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"trunk-{backend.trunk.name}-{number}", initializer=give_way)
            for number in range(self._concurrency)
        ]
        self._idle = list(self._threads)
        self._running: dict[asyncio.Future[Pass], _UnderWay] = {}
        """The one that began first stands first."""
        self._follower: _Follower | None = None
        self._lone_tokens = backend.engine.lone_tokens if queue.limits.lone_tokens is None else queue.limits.lone_tokens
        self._lone: _UnderWay | None = None
        """The pass that began alone, while it runs."""
        self._tokens_per_second = 0.0
        self._draining = False
        self._has_dispatched = asyncio.Event()
        self._will_dispatch = False
        self._late_classes: frozenset[bool] = frozenset()
        self.is_healthy = True
        """Whether the last forward pass went well."""
        self.on_health: Callable[[], None] = lambda: None
        """Called when `is_healthy` has changed."""

    def __repr__(self) -> str:
        ahead = ", 1 cut ahead" if self._follower is not None else ""
        return f"<Batcher [{len(self._running)} running{ahead}, {self._queue.num_entries} queued]>"

    @property
    def queue(self) -> EntryQueue:
        """For reading only."""
        return self._queue

    async def run(self, rows: Sequence[Row], *, deadline: float, is_bulk: bool = False) -> Outcome:
        """Queue all *rows* or none, and wait for the last of them. *deadline* is seconds of `time.monotonic`.

        Raises:
            Overloaded: there is no room for all of them, or what is there already has waited too long.
            DeadlineExceeded: the deadline passed; what had not started is not executed.
            Unavailable: draining, or a forward pass failed.
        """
        return await run_rows(self.admit, rows, deadline=deadline, is_bulk=is_bulk)

    def admit(self, entries: list[Entry]) -> None:
        """Queue all *entries* or none; their tickets are `Waiter`s, told later.

        Raises:
            Overloaded: there is no room for all of them, or what is there already has waited too long.
            DeadlineExceeded: a deadline had passed on arrival.
            Unavailable: draining.
        """
        if self._draining:
            raise Unavailable("the embedding service is stopping")
        if any(entry.deadline <= entry.arrived for entry in entries):
            raise DeadlineExceeded("the deadline had passed on arrival")
        if not self._will_dispatch:
            self._will_dispatch = True
            self._late_classes = self._queue.late_classes(time.monotonic())
            # Not at once: what arrives in the same turn of the loop may share the batch.
            asyncio.get_running_loop().call_soon(self._dispatch_once)
        if entries[0].is_bulk in self._late_classes:
            raise Overloaded("the embedding queue moves too slowly", retry_after=self._seconds_to_drain())
        self.check_room(entries, is_bulk=entries[0].is_bulk)
        self._queue.append(entries)

    def check_room(self, entries: list[Entry], *, is_bulk: bool) -> None:
        """Refuse *entries*, or without any what would be refused whatever it is, before work is spent on it.

        Raises:
            Overloaded: the queue is full, or an interactive caller would have to wait for too long.
        """
        reason = self._reason_to_refuse(entries, is_bulk=is_bulk)
        if reason:
            raise Overloaded(reason, retry_after=self._seconds_to_drain())

    def refusal(self) -> Overloaded | None:
        """What whoever is interactive would be refused with now, whatever it asks for; None where something may go in."""
        reason = self._reason_to_refuse([], is_bulk=False)
        return Overloaded(reason, retry_after=self._seconds_to_drain()) if reason else None

    async def drain(self, grace: float) -> None:
        """Take nothing more, finish what is queued within *grace* seconds, fail the rest, and stop the threads."""
        self._draining = True
        self._dispatch()
        give_up = time.monotonic() + grace
        while (self._running or self._queue.num_entries) and (left := give_up - time.monotonic()) > 0:
            await self._moved_on(left)
        for entry in self._queue.take_all():
            _fail(entry, Unavailable("the embedding service is stopping"))
        for thread in self._threads:
            thread.shutdown(wait=not self._running, cancel_futures=True)

    async def _moved_on(self, seconds: float) -> None:
        """Wait until something of what is to be drained may have changed; others may have all slots, and then nothing runs."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return
        self._has_dispatched.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_dispatched.wait()

    def _reason_to_refuse(self, entries: list[Entry], *, is_bulk: bool) -> str:
        limits = self._queue.limits
        if not is_bulk and self._queue.interactive_tokens > limits.max_wait_seconds * self._tokens_per_second > 0:
            return "too much is waiting to be embedded"
        return "" if self._queue.has_room(entries) else "the embedding queue is full"

    def _seconds_to_drain(self) -> float:
        """When half of what waits will have run, judged by the speed seen so far; at least 50 ms."""
        if not self._tokens_per_second:
            return 1.0
        return min(max(self._queue.num_tokens / self._tokens_per_second / 2, 0.05), 10.0)

    def _dispatch_once(self) -> None:
        self._will_dispatch = False
        self._dispatch()

    def _dispatch(self) -> None:
        """Start as many batches as there are free slots and work for them, and hand over one more where that is of use."""
        while (free := self._num_free_slots()) > 0 and self._may_start():
            in_turns = self._slots.are_all_free and is_for_one_pass(self._queue.rows, self._lone_tokens)
            now, has_long_room = time.monotonic(), self._has_long_room()
            taken = self._queue.take(now, free_slots=1 if in_turns else free, has_long_room=has_long_room)
            self._start(taken, in_turns=in_turns)
        leader = self._leader() if self._may_cut_ahead() else None
        if leader is not None:
            has_long_room = self._has_long_room(without=leader)
            self._follow(leader, self._queue.take_ahead(time.monotonic(), has_long_room=has_long_room))
        if self._draining:
            self._has_dispatched.set()

    def _has_long_room(self, without: "asyncio.Future[Pass] | None" = None) -> bool | None:
        running = [batch.rows for future, batch in self._running.items() if future is not without]
        return long_room(running, self._concurrency, self._queue.limits.long_tokens)

    def _leader(self) -> "asyncio.Future[Pass] | None":
        """Of the short passes that run, the one that began first, and so most likely ends first.

        None where all are long: what follows one of those might wait for it beside an idle thread.
        """
        long_tokens = self._queue.limits.long_tokens
        return next((future for future, batch in self._running.items() if batch.rows.longest < long_tokens), None)

    def _num_free_slots(self) -> int:
        return min(self._slots.num_free, self._concurrency - len(self._running))

    def _may_cut_ahead(self) -> bool:
        """Whether to cut a batch for a thread that is not free yet: it then begins it without us.

        One at a time, and only where there is enough for a full one (`Queue.take_ahead`). Others who share the slots would never
        get one.
        """
        is_busy = len(self._running) == self._concurrency and self._follower is None
        return is_busy and self._queue.limits.ahead_share is not None and not self._slots.are_shared

    def _may_start(self) -> bool:
        lone = self._lone if self._slots.is_one_taken else None
        if lone is not None and joins_next(self._queue.rows, lone.rows, self._lone_tokens):
            return False
        running = [batch.rows for batch in self._running.values()]
        return may_start(self._queue.rows, running, self._queue.limits.side_pass_share)

    def _let_go(self, taken: Taken) -> None:
        for entry in taken.expired:
            _fail(entry, DeadlineExceeded("the deadline passed in the queue"))
        if taken.expired:
            self._telemetry.entries_dropped("expired", len(taken.expired))
        if taken.num_departed:
            self._telemetry.entries_dropped("departed", taken.num_departed)

    def _start(self, taken: Taken, *, in_turns: bool = False) -> None:
        """Run *taken*, if anything of it is to be run; *in_turns*: what was left behind waits for its end."""
        self._let_go(taken)
        if not taken.batch:
            return
        is_alone = self._slots.are_all_free and (in_turns or not self._queue.num_entries)
        batch = _UnderWay(taken, taken.rows, self._idle.pop())
        self._slots.take()
        self._running[self._submit(batch, is_alone=is_alone)] = batch
        if is_alone:
            self._lone = batch

    def _follow(self, leader: "asyncio.Future[Pass]", taken: Taken) -> None:
        """Run *taken*, if anything of it is to be run, when *leader* has ended."""
        self._let_go(taken)
        if taken.batch:
            batch = _UnderWay(taken, taken.rows, self._running[leader].thread)
            self._follower = _Follower(batch, self._submit(batch, is_alone=False), leader)

    def _submit(self, batch: _UnderWay, *, is_alone: bool) -> "asyncio.Future[Pass]":
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(batch.thread, run_pass, self._backend, batch.taken.batch, is_alone)
        future.add_done_callback(self._finish)
        return future

    def _finish(self, done: "asyncio.Future[Pass]") -> None:
        follower = self._follower
        if follower is not None and done is follower.future:  # cancelled before its turn
            self._follower = None
            self._settle_ended(follower.batch, done)
            return
        batch = self._running.pop(done)
        if batch is self._lone:
            self._lone = None
        self._settle_ended(batch, done)
        if follower is not None and done is follower.leader:
            # It has begun, in the same slot.
            self._follower, self._running[follower.future] = None, follower.batch
            self._dispatch()
        else:
            self._idle.append(batch.thread)
            self._slots.give()

    def _settle_ended(self, batch: _UnderWay, done: "asyncio.Future[Pass]") -> None:
        if done.cancelled():  # drained before its turn came
            for entry in batch.taken.batch:
                _fail(entry, Unavailable("the embedding service is stopping"))
        elif done.exception() is not None:  # the thread itself failed
            self._settle_failed(batch.taken.batch, describe(done.exception()))
        else:
            self._settle(done.result())

    def _settle(self, ended: "Pass") -> None:
        self._let_go(ended.taken)
        entries = ended.taken.batch
        if not entries:
            return
        num_tokens = sum(entry.num_tokens for entry in entries)
        if ended.fault:
            self._settle_failed(entries, ended.fault)
        else:
            for entry, vectors in zip(entries, ended.result, strict=True):
                _waiter(entry).put(entry.index, vectors, ended.began - entry.arrived, ended.seconds)
            self._note_health(is_healthy=True)
            self._learn_speed(num_tokens, ended)
        computed = ended.taken.computed_tokens(self._backend.engine.pass_cost)
        self._telemetry.batch_ended(BatchFacts(len(entries), num_tokens, computed, ended.seconds, bool(ended.fault)))

    def _note_health(self, *, is_healthy: bool) -> None:
        if is_healthy != self.is_healthy:
            self.is_healthy = is_healthy
            self.on_health()

    def _settle_failed(self, entries: Sequence[Entry], fault: Sequence[str]) -> None:
        for entry in entries:
            _fail(entry, Unavailable("the forward pass failed"))
        if self.is_healthy:
            _log.error("a forward pass of %s failed: %s", self._backend.trunk.name, ", ".join(fault))
        self._note_health(is_healthy=False)

    def _learn_speed(self, num_tokens: int, ended: "Pass") -> None:
        """From passes that are worth one: a lone short text says little about how fast a full queue would run."""
        if num_tokens < self._queue.limits.max_batch_tokens / 4:
            return
        num_beside = 1 if ended.is_alone else self._backend.engine.concurrency
        speed = num_beside * num_tokens / max(ended.seconds, 1e-6)
        self._tokens_per_second += (0.1 if self._tokens_per_second else 1.0) * (speed - self._tokens_per_second)


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass that has ended: what was in it (and what left it unexecuted), and its *result* or its *fault*.

    A fault is a description (`logs.describe`), not the exception: that knows its frames, they know the batch, the batch its
    callers, and those the error, so that all of it would live until the garbage collector comes.

    *is_alone* as in `backend.Batch`.
    """

    taken: Taken
    began: float
    seconds: float
    result: BatchResult
    fault: Sequence[str] = ()
    is_alone: bool = False


def run_pass(backend: Backend, entries: Sequence[Entry], is_alone: bool) -> Pass:
    """Run *entries* through *backend* now, but for those that nobody waits for any more. On a thread of the batcher's.

    *is_alone* as in `backend.Batch`.

    Whatever the backend raises becomes the pass's fault.
    """
    began = time.monotonic()
    taken = still_wanted(entries, began)
    if not taken.batch:
        return Pass(taken, began, 0.0, [])
    batch = _batch_of(taken.batch, is_alone=is_alone)
    try:
        result = _checked(backend.embed(batch), batch)
    except Exception as fault:  # a backend may raise anything, and its batch must be settled whatever it was
        return Pass(taken, began, time.monotonic() - began, [], describe(fault), is_alone)
    return Pass(taken, began, time.monotonic() - began, result, (), is_alone)


async def run_rows(
    admit: Callable[[list[Entry]], None], rows: Sequence[Row], *, deadline: float, is_bulk: bool = False
) -> Outcome:
    """*rows* by way of *admit*, as `Batcher.run` does it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Outcome] = loop.create_future()
    pending = PendingRequest(len(rows), future)
    now = time.monotonic()
    admit([Entry(row.token_ids, row.views, pending, i, now, deadline, is_bulk, row.pair_at) for i, row in enumerate(rows)])
    # Not asyncio.timeout: it cancels the task and makes its error of that, where a timer is all it takes.
    timer = loop.call_later(deadline - now, pending.fail, DeadlineExceeded("the deadline passed before the vectors were ready"))
    try:
        return await future
    finally:
        timer.cancel()
        future.cancel()
        # The error it ends with knows this frame.
        del future, pending


def _batch_of(entries: Sequence[Entry], *, is_alone: bool) -> Batch:
    pair_at = tuple(entry.pair_at for entry in entries)
    token_ids, views = tuple(entry.token_ids for entry in entries), tuple(entry.views for entry in entries)
    return Batch(token_ids, views, pair_at if any(pair_at) else (), is_alone)


def _waiter(entry: Entry) -> Waiter:
    return cast("Waiter", entry.ticket)


def _fail(entry: Entry, error: EmbedError) -> None:
    _waiter(entry).fail(error)


def _checked(result: BatchResult, batch: Batch) -> BatchResult:
    """*result* when it has one entry a row and one array a view."""
    if [len(row) for row in result] != [len(views) for views in batch.views]:
        raise ValueError("the backend answered another number of rows or views than it was given")
    return result
