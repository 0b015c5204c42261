"""The batcher: single owner of the queue and of settling. It decides in one synchronous step and waits for nobody.

No timer: a batch is cut when a backend slot is free and enough waits for it to be worth a pass (`queue.may_start`), so the
next one gathers while the current one runs.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, cast

from embedding_service.backend import Backend, Batch, BatchResult, FloatArray, View
from embedding_service.errors import DeadlineExceeded, EmbedError, Overloaded, Unavailable
from embedding_service.queue import Entry, EntryQueue, Queue, QueueLimits, Rows, Taken, Ticket, may_start
from embedding_service.telemetry import BatchFacts, Telemetry


@dataclass(frozen=True, slots=True)
class Row:
    """One input on its way to the trunk."""

    token_ids: tuple[int, ...]
    views: tuple[View, ...]


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


class Batcher:
    """Runs one backend. All methods belong to the event loop's thread; only `Backend.embed` runs elsewhere.

    *queue*, when given, is used in place of one made of *limits*: another order may be measured beside ours.
    """

    def __init__(self, backend: Backend, limits: QueueLimits, telemetry: Telemetry, queue: EntryQueue | None = None) -> None:
        self._backend = backend
        if queue is None:
            queue = Queue(replace(limits, padding_cost=backend.engine.padding_cost))
        self._queue = queue
        self._telemetry = telemetry
        self._free_slots = backend.engine.concurrency
        self._pool = ThreadPoolExecutor(self._free_slots, thread_name_prefix=f"trunk-{backend.trunk.name}")
        self._running: dict[asyncio.Future[BatchResult], Rows] = {}
        self._tokens_per_second = 0.0
        self._draining = False
        self._will_dispatch = False
        self.is_healthy = True
        """Whether the last forward pass went well."""

    def __repr__(self) -> str:
        return f"<Batcher [{len(self._running)} running, {self._queue.num_entries} queued]>"

    @property
    def queue(self) -> EntryQueue:
        """For reading only."""
        return self._queue

    async def run(self, rows: Sequence[Row], *, deadline: float, is_bulk: bool = False) -> Outcome:
        """Queue all *rows* or none, and wait for the last of them. *deadline* is seconds of `time.monotonic`.

        Raises:
            Overloaded: there is no room for all of them.
            DeadlineExceeded: the deadline passed; what had not started is not executed.
            Unavailable: draining, or a forward pass failed.
        """
        return await run_rows(self.admit, rows, deadline=deadline, is_bulk=is_bulk)

    def admit(self, entries: list[Entry]) -> None:
        """Queue all *entries* or none; their tickets are `Waiter`s, told later.

        Raises:
            Overloaded: there is no room for all of them.
            DeadlineExceeded: a deadline had passed on arrival.
            Unavailable: draining.
        """
        if self._draining:
            raise Unavailable("the embedding service is stopping")
        if any(entry.deadline <= entry.arrived for entry in entries):
            raise DeadlineExceeded("the deadline had passed on arrival")
        if not self._queue.has_room(entries):
            raise Overloaded("the embedding queue is full", retry_after=self._seconds_to_drain())
        self._queue.append(entries)
        if not self._will_dispatch:
            self._will_dispatch = True
            # Not at once: what arrives in the same turn of the loop may share the batch.
            asyncio.get_running_loop().call_soon(self._dispatch)

    async def drain(self, grace: float) -> None:
        """Take nothing more, finish what is queued within *grace* seconds, fail the rest, and stop the threads."""
        self._draining = True
        self._dispatch()
        give_up = time.monotonic() + grace
        while self._running and (left := give_up - time.monotonic()) > 0:
            await asyncio.wait(self._running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for entry in self._queue.take_all():
            _fail(entry, Unavailable("the embedding service is stopping"))
        self._pool.shutdown(wait=not self._running, cancel_futures=True)

    def _seconds_to_drain(self) -> float:
        """When half of what waits will have run, judged by the speed seen so far; at least 50 ms."""
        if not self._tokens_per_second:
            return 1.0
        return min(max(self._queue.num_tokens / self._tokens_per_second / 2, 0.05), 10.0)

    def _dispatch(self) -> None:
        """Start as many batches as there are free slots and work for them."""
        self._will_dispatch = False
        while self._free_slots and self._may_start():
            taken = self._queue.take(time.monotonic(), free_slots=self._free_slots)
            self._let_go(taken)
            if taken.batch:
                self._start(taken)
        self._telemetry.queue_changed(self._queue.num_entries, self._queue.num_tokens)

    def _may_start(self) -> bool:
        return may_start(self._queue.rows, list(self._running.values()), self._queue.limits.side_pass_share)

    def _let_go(self, taken: Taken) -> None:
        for entry in taken.expired:
            _fail(entry, DeadlineExceeded("the deadline passed in the queue"))
        if taken.expired:
            self._telemetry.entries_dropped("expired", len(taken.expired))
        if taken.num_departed:
            self._telemetry.entries_dropped("departed", taken.num_departed)

    def _start(self, taken: Taken) -> None:
        batch = Batch(tuple(e.token_ids for e in taken.batch), tuple(e.views for e in taken.batch))
        started = time.monotonic()
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._backend.embed, batch)
        self._free_slots -= 1
        self._running[future] = taken.rows
        future.add_done_callback(lambda done: self._finish(taken, batch, started, done))

    def _finish(self, taken: Taken, batch: Batch, started: float, done: asyncio.Future[BatchResult]) -> None:
        self._free_slots += 1
        del self._running[done]
        seconds = time.monotonic() - started
        try:
            result = _checked(done.result(), batch)
        # A backend may raise anything, and its batch must be settled whatever it was.
        except (Exception, asyncio.CancelledError) as fault:
            self.is_healthy = False
            self._settle_failed(taken, fault)
        else:
            self.is_healthy = True
            self._settle(taken, result, started, seconds)
        self._learn_speed(batch.num_tokens, seconds)
        facts = BatchFacts(len(taken.batch), batch.num_tokens, taken.padded_tokens, seconds, not self.is_healthy)
        self._telemetry.batch_ended(facts)
        self._dispatch()

    def _settle(self, taken: Taken, result: BatchResult, started: float, seconds: float) -> None:
        for entry, vectors in zip(taken.batch, result, strict=True):
            _waiter(entry).put(entry.index, vectors, started - entry.arrived, seconds)

    def _settle_failed(self, taken: Taken, fault: BaseException) -> None:
        for entry in taken.batch:
            error = Unavailable("the forward pass failed")
            error.__cause__ = fault
            _fail(entry, error)

    def _learn_speed(self, num_tokens: int, seconds: float) -> None:
        speed = self._backend.engine.concurrency * num_tokens / max(seconds, 1e-6)
        self._tokens_per_second += 0.1 * (speed - self._tokens_per_second)


async def run_rows(
    admit: Callable[[list[Entry]], None], rows: Sequence[Row], *, deadline: float, is_bulk: bool = False
) -> Outcome:
    """*rows* by way of *admit*, as `Batcher.run` does it."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pending = PendingRequest(len(rows), future)
    now = time.monotonic()
    admit([Entry(row.token_ids, row.views, pending, i, now, deadline, is_bulk) for i, row in enumerate(rows)])
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await future
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the vectors were ready") from None
    finally:
        future.cancel()


def _waiter(entry: Entry) -> Waiter:
    return cast("Waiter", entry.ticket)


def _fail(entry: Entry, error: EmbedError) -> None:
    _waiter(entry).fail(error)


def _checked(result: BatchResult, batch: Batch) -> BatchResult:
    """*result* when it has one entry a row and one array a view."""
    if [len(row) for row in result] != [len(views) for views in batch.views]:
        raise ValueError("the backend answered another number of rows or views than it was given")
    return result
