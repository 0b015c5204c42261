"""Batches made of several callers' rows, by `--enable_batching` and its parameters file.

Parameters and refusals: TensorFlow Serving's batching/{batching_session,batching_util}.cc and session_bundle_config.proto. Beyond
them: rows that cannot go into one tensor wait in different queues, so one caller's shape fails no other's call; a batch that
fails is run again caller by caller; and what nobody waits for any more is not run.
"""

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from clients.wire.tfs import server_pb2
from head_service.serving.errors import ServingError, invalid, queue_full, too_late
from head_service.serving.flags import FlagError, Flags, read_text_proto

Arrays = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]

DEFAULT_MAX_BATCH_SIZE: Final = 1_000
DEFAULT_MAX_ENQUEUED_BATCHES: Final = 10


class Runs(Protocol):
    """What a batch is run on; see servable.Servable."""

    def run(self, signature_name: str, inputs: Arrays, output_filter: tuple[str, ...]) -> Outputs:
        """In a thread."""
        ...


@dataclass(frozen=True, slots=True)
class Parameters:
    """BatchingParameters, complete. *max_execution_batch_size* is that of one run; only splitting makes it the smaller one."""

    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    batch_timeout_seconds: float = 0.0
    max_enqueued_batches: int = DEFAULT_MAX_ENQUEUED_BATCHES
    num_batch_threads: int = 1
    allowed_batch_sizes: tuple[int, ...] = ()
    pads_variable_lengths: bool = False
    splits_large: bool = False
    max_execution_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    thread_pool_name: str = "model_server_batch_threads"


def read_parameters(flags: Flags) -> Parameters | None:
    """What the flags ask for; None without `--enable_batching`.

    Raises:
        FlagError: the file cannot be read, or its numbers do not go together.
    """
    flag = "--batching_parameters_file"
    if not flags.enable_batching:
        if flags.batching_parameters_file:
            raise FlagError(f"{flag} needs --enable_batching")
        return None
    message = server_pb2.BatchingParameters()
    if flags.batching_parameters_file:
        message = read_text_proto(flag, flags.batching_parameters_file, message)
    return parameters_of(message, flag)


def parameters_of(message: server_pb2.BatchingParameters, flag: str) -> Parameters:
    """*message* with the reference's defaults, checked."""
    largest = message.max_batch_size.value if message.HasField("max_batch_size") else DEFAULT_MAX_BATCH_SIZE
    splits = message.enable_large_batch_splitting.value
    executed = message.max_execution_batch_size.value if message.HasField("max_execution_batch_size") else largest
    queued = message.max_enqueued_batches.value if message.HasField("max_enqueued_batches") else DEFAULT_MAX_ENQUEUED_BATCHES
    threads = message.num_batch_threads.value if message.HasField("num_batch_threads") else os.cpu_count() or 1
    sizes = tuple(message.allowed_batch_sizes)
    if min(largest, executed, queued, threads) < 1 or message.batch_timeout_micros.value < 0:
        raise FlagError(f"{flag}: sizes and counts must be at least 1, and batch_timeout_micros at least 0")
    if executed > largest:
        raise FlagError(f"{flag}: max_execution_batch_size must not be larger than max_batch_size")
    limit = executed if splits else largest
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != limit):
        name = "max_execution_batch_size" if splits else "max_batch_size"
        raise FlagError(f"{flag}: allowed_batch_sizes must increase, and the last must be {name} ({limit})")
    return Parameters(
        max_batch_size=largest,
        batch_timeout_seconds=message.batch_timeout_micros.value / 1e6,
        max_enqueued_batches=queued,
        num_batch_threads=threads,
        allowed_batch_sizes=sizes,
        pads_variable_lengths=message.pad_variable_length_inputs,
        splits_large=splits,
        max_execution_batch_size=limit,
        thread_pool_name=message.thread_pool_name.value or "model_server_batch_threads",
    )


def rounded_up(rows: int, allowed: Sequence[int]) -> int:
    """The batch size to run *rows* with: the smallest allowed one that holds them."""
    return next((size for size in allowed if size >= rows), rows)


@dataclass(slots=True, eq=False)
class Entry:
    """One caller's rows, or a part of them.

    *answered* is cancelled when nobody waits any more; *ended* is called once the rows are run or will not be.
    """

    inputs: Arrays
    rows: int
    answered: "asyncio.Future[Outputs]"
    deadline: float | None
    enqueued: float
    ended: Callable[[], None]


@dataclass(slots=True)
class Batch:
    """Entries that run together. *is_closed*: no more rows fit, or it waited long enough."""

    entries: list[Entry] = field(default_factory=list)
    rows: int = 0
    is_closed: bool = False


@dataclass(slots=True, eq=False)
class Queue:
    """The batches that wait for one servable, signature, set of outputs and shape of rows."""

    servable: Runs
    signature: str
    output_filter: tuple[str, ...]
    batches: deque[Batch] = field(default_factory=deque)


class Batcher:
    """Owner of the queues. Lives on the event loop; batches run on its threads.

    *observe_wait* is told the seconds each entry waited.
    """

    def __init__(self, parameters: Parameters, *, observe_wait: Callable[[float], None] = lambda _: None) -> None:
        self.parameters = parameters
        self._observe_wait = observe_wait
        self._pool = ThreadPoolExecutor(parameters.num_batch_threads, thread_name_prefix="batch")
        self._num_running = 0
        # In turns: the queue whose batch was taken goes to the end.
        self._queues: dict[Hashable, Queue] = {}

    def submit(
        self,
        servable: Runs,
        signature: str,
        inputs: Arrays,
        output_filter: tuple[str, ...],
        *,
        deadline: float | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> "asyncio.Future[Outputs]":
        """The outputs, of the rows given; to be cancelled when nobody waits for them. *deadline* is seconds of `time.monotonic`.

        *ended* is called when the servable is no longer in use for these rows, which for a caller who left is later.

        Raises:
            ServingError: INVALID_ARGUMENT: no rows, or more than may be; UNAVAILABLE: the queue is full.
        """
        rows = rows_of(inputs)
        limits = self.parameters
        if rows > limits.max_batch_size:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {limits.max_batch_size}")
        key = (id(servable), signature, output_filter, self._kind(inputs))
        queue = self._queues.get(key)
        if queue is None:
            queue = Queue(servable, signature, output_filter)
        sizes = self._sizes(queue, rows)
        self._check_room(servable, queue, sizes)
        self._queues[key] = queue
        part_ended = _countdown(len(sizes), ended)
        parts = [self._enqueue(queue, part, size, deadline, part_ended) for part, size in _parts(inputs, sizes)]
        self._dispatch()
        return parts[0] if len(parts) == 1 else asyncio.ensure_future(_joined(parts))

    def close(self) -> None:
        """End the threads. What still waits is not run."""
        self._queues.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _kind(self, inputs: Arrays) -> Hashable:
        """What rows must share to go into one tensor."""
        if self.parameters.pads_variable_lengths:
            return tuple((alias, array.dtype, array.ndim) for alias, array in inputs.items())
        return tuple((alias, array.dtype, array.shape[1:]) for alias, array in inputs.items())

    def _sizes(self, queue: Queue, rows: int) -> list[int]:
        """How *rows* are divided: all in one, or with splitting as many as the open batch holds first."""
        limit = self.parameters.max_execution_batch_size
        if not self.parameters.splits_large:
            return [rows]
        is_open = queue.batches and not queue.batches[-1].is_closed
        room = limit - queue.batches[-1].rows if is_open else limit
        first = min(rows, room)
        rest = rows - first
        return [size for size in (first, *[limit] * (rest // limit), rest % limit) if size]

    def _check_room(self, servable: Runs, queue: Queue, sizes: list[int]) -> None:
        limit = self.parameters.max_execution_batch_size
        is_open = queue.batches and not queue.batches[-1].is_closed and queue.batches[-1].rows + sizes[0] <= limit
        needed = len(sizes) - 1 if is_open else len(sizes)
        enqueued = sum(len(other.batches) for other in self._queues.values() if other.servable is servable)
        if needed and enqueued + needed > self.parameters.max_enqueued_batches:
            may = self.parameters.max_enqueued_batches
            raise queue_full(f"currently {enqueued} batches enqueued and max_enqueued_batches is {may}")

    def _enqueue(
        self, queue: Queue, inputs: Arrays, rows: int, deadline: float | None, ended: Callable[[], None]
    ) -> "asyncio.Future[Outputs]":
        limit = self.parameters.max_execution_batch_size
        loop = asyncio.get_running_loop()
        batch = queue.batches[-1] if queue.batches else None
        if batch is None or batch.is_closed or batch.rows + rows > limit:
            if batch is not None:
                batch.is_closed = True
            batch = Batch()
            queue.batches.append(batch)
            if self.parameters.batch_timeout_seconds > 0:
                loop.call_later(self.parameters.batch_timeout_seconds, self._time_out, batch)
        entry = Entry(inputs, rows, loop.create_future(), deadline, time.monotonic(), ended)
        batch.entries.append(entry)
        batch.rows += rows
        batch.is_closed = batch.is_closed or batch.rows >= limit
        return entry.answered

    def _time_out(self, batch: Batch) -> None:
        batch.is_closed = True
        self._dispatch()

    def _dispatch(self) -> None:
        """Give free threads what may run: without a timeout whatever waits, with one only closed batches."""
        while self._num_running < self.parameters.num_batch_threads:
            key = next((key for key, queue in self._queues.items() if self._is_due(queue)), None)
            if key is None:
                return
            queue = self._queues.pop(key)
            batch = queue.batches.popleft()
            if queue.batches:
                self._queues[key] = queue
            self._start(queue, batch)

    def _is_due(self, queue: Queue) -> bool:
        return bool(queue.batches) and (self.parameters.batch_timeout_seconds == 0 or queue.batches[0].is_closed)

    def _start(self, queue: Queue, batch: Batch) -> None:
        now = time.monotonic()
        entries = list(_still_wanted(batch.entries, now))
        if not entries:
            return
        for entry in entries:
            self._observe_wait(now - entry.enqueued)
        self._num_running += 1
        running = asyncio.get_running_loop().run_in_executor(self._pool, self._run, queue, entries)
        running.add_done_callback(self._ended)
        running.add_done_callback(lambda done: _settle(entries, done))

    def _ended(self, _: object) -> None:
        self._num_running -= 1
        self._dispatch()

    def _run(self, queue: Queue, entries: list[Entry]) -> list[Outputs | ServingError]:
        try:
            return list(self._run_together(queue, entries))
        except ServingError as error:
            if len(entries) == 1:
                return [error]
        # One caller's values fail no other's call.
        return [self._run_alone(queue, entry) for entry in entries]

    def _run_alone(self, queue: Queue, entry: Entry) -> Outputs | ServingError:
        try:
            return next(self._run_together(queue, [entry]))
        except ServingError as error:
            return error

    def _run_together(self, queue: Queue, entries: list[Entry]) -> Iterator[Outputs]:
        rows = sum(entry.rows for entry in entries)
        size = rounded_up(rows, self.parameters.allowed_batch_sizes)
        inputs = {alias: merged([entry.inputs[alias] for entry in entries], size) for alias in entries[0].inputs}
        outputs = queue.servable.run(queue.signature, inputs, queue.output_filter)
        for array in outputs.values():
            if not array.ndim or array.shape[0] != size:
                raise ServingError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    "input tensors",
                )
        begin = 0
        for entry in entries:
            yield {alias: array[begin : begin + entry.rows] for alias, array in outputs.items()}
            begin += entry.rows


def rows_of(inputs: Arrays) -> int:
    """How many rows all of *inputs* have.

    Raises:
        ServingError: INVALID_ARGUMENT: none, or not all as many.
    """
    if not inputs:
        raise invalid("Batching session Run() input tensors must not be empty")
    if not all(array.ndim for array in inputs.values()):
        raise invalid("Batching session Run() input tensors must have at least one dimension")
    sizes = {array.shape[0] for array in inputs.values()}
    if len(sizes) != 1:
        raise invalid("Batching session Run() input tensors must have equal 0th-dimension size")
    [rows] = sizes
    if rows == 0:
        raise invalid("Batching session Run() input tensors must have at least one row")
    return int(rows)


def merged(arrays: Sequence[NDArray[Any]], size: int) -> NDArray[Any]:
    """*arrays* one behind the other, brought to their largest shape by zeros, and to *size* rows by more of the first row."""
    shape = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
    parts = [array if array.shape[1:] == shape else _padded(array, shape) for array in arrays]
    missing = size - sum(len(part) for part in parts)
    if missing > 0:
        parts.append(np.repeat(parts[0][:1], missing, axis=0))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    widths = [(0, 0), *((0, wanted - size) for size, wanted in zip(array.shape[1:], shape, strict=True))]
    return np.pad(array, widths, constant_values=b"" if array.dtype == object else 0)


def _parts(inputs: Arrays, sizes: Sequence[int]) -> Iterator[tuple[Arrays, int]]:
    if len(sizes) == 1:
        yield inputs, sizes[0]
        return
    begin = 0
    for size in sizes:
        yield {alias: array[begin : begin + size] for alias, array in inputs.items()}, size
        begin += size


def _countdown(times: int, ended: Callable[[], None]) -> Callable[[], None]:
    """What calls *ended* the last of so many *times* that it is called itself."""
    left = itertools.count(times - 1, -1)
    return lambda: None if next(left) else ended()


async def _joined(parts: "Sequence[asyncio.Future[Outputs]]") -> Outputs:
    ended = await asyncio.gather(*parts, return_exceptions=True)
    for failed in ended:
        if isinstance(failed, BaseException):
            raise failed
    outputs = [part.result() for part in parts]
    return {alias: np.concatenate([part[alias] for part in outputs]) for alias in outputs[0]}


def _still_wanted(entries: Sequence[Entry], now: float) -> Iterator[Entry]:
    for entry in entries:
        if entry.answered.done():
            entry.ended()
            continue
        if entry.deadline is not None and now >= entry.deadline:
            entry.answered.set_exception(too_late())
            entry.ended()
        else:
            yield entry


def _settle(entries: Sequence[Entry], done: "asyncio.Future[list[Outputs | ServingError]]") -> None:
    failed = asyncio.CancelledError() if done.cancelled() else done.exception()
    for place, entry in enumerate(entries):
        entry.ended()
        if entry.answered.done():
            continue
        if isinstance(failed, asyncio.CancelledError):
            entry.answered.cancel()
            continue
        answer = failed or done.result()[place]
        if isinstance(answer, BaseException):
            entry.answered.set_exception(answer)
        else:
            entry.answered.set_result(answer)
