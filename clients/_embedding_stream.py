"""Many callers, one stream to the embedding service: each input is answered on its own, messages carry what is ready together.

No timer: while one message is being written, what arrives gathers for the next.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import grpc
import grpc.aio

from clients._channel import error_for_rpc
from clients._deadline import Deadline
from clients._embedding_wire import (
    EmbedOptions,
    FloatArray,
    Input,
    StreamPart,
    build_input,
    build_stream_message,
    embed_request,
    parse_stream_message,
)
from clients._errors import Cancelled, DeadlineExceeded, Overloaded, TrunklineError, Unavailable
from clients.wire import embedding_pb2 as pb

Vectors = tuple[FloatArray, ...]
"""One input's vectors, one a view: [width], or [tokens, width] for a tokens view."""

MAX_INPUTS: Final = 256
"""Of one message, and of one caller under way at first."""


class _Request:
    """A caller's inputs. *future* is done once all are answered, one failed, or the caller has left.

    A list may be more than the service lets wait at once. So what is more than `MAX_INPUTS`, and what the service had no room for
    while others of the list were under way, is *held*: each answer lets another one go.
    """

    __slots__ = ("deadline", "future", "held", "missing", "under_way", "vectors")

    def __init__(self, count: int, deadline: Deadline) -> None:
        self.deadline = deadline
        self.future: asyncio.Future[list[Vectors]] = asyncio.get_running_loop().create_future()
        self.vectors: list[Vectors] = [()] * count
        self.missing = count
        self.under_way: dict[int, _Unsent] = {}
        """By the numbers under which they were sent."""
        self.held: deque[_Unsent] = deque()

    def put(self, number: int, vectors: Vectors) -> None:
        self.vectors[self.under_way.pop(number).place] = vectors
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.vectors)

    def fail(self, error: TrunklineError) -> None:
        if not self.future.done():
            self.future.set_exception(type(error)(error.message, retry_after=error.retry_after))

    def expire(self) -> None:
        self.fail(DeadlineExceeded("the deadline passed while waiting for the embedding service"))


class _Unsent(NamedTuple):
    """An input that waits for the next message; *place* is where it stands in its request."""

    place: int
    value: pb.Input
    request: _Request


class AsyncEmbeddingStream:
    """What `AsyncEmbeddingClient.stream` gives. All methods belong to one event loop; calls may run at the same time.

    The connection is made when there is something to send. When it breaks, what was under way fails with Unavailable, and the
    next call makes a new one.
    """

    def __init__(self, method: Callable[[], Any], options: EmbedOptions, *, max_open: int, max_inputs: int = MAX_INPUTS) -> None:
        self._method = method
        self._options = options
        self._template = embed_request(options)
        self._max_open = max_open
        self._max_inputs = min(max_inputs, MAX_INPUTS)
        self._next_number = 1
        self._unsent: deque[_Unsent] = deque()
        self._num_open = 0
        self._open: dict[int, _Request] = {}
        """Whose input was sent under which number."""
        self._abandoned: list[int] = []
        self._wake = asyncio.Event()
        self._conversing: asyncio.Task[None] | None = None
        self._closed = False
        self._finishing = False
        self.heard_at = float("-inf")
        """When the service last sent anything, of `time.monotonic`."""

    def __repr__(self) -> str:
        return f"<AsyncEmbeddingStream [{self._num_open} open, {len(self._unsent)} of them unsent]>"

    @property
    def num_open(self) -> int:
        """Inputs under way."""
        return self._num_open

    async def embed(self, inputs: Sequence[Input], deadline: Deadline) -> list[Vectors]:
        """The vectors of each input, in order.

        Raises:
            Overloaded: *max_open* inputs are under way already, or the service is full.
            DeadlineExceeded: *deadline* passed; what had not begun is not executed.
            TrunklineError: see `clients` for the tree. One failed input fails the call.
        """
        if not inputs:
            return []
        if self._num_open and self._num_open + len(inputs) > self._max_open:
            raise Overloaded("too many inputs wait for the embedding service", retry_after=0.5)
        request = self._start(inputs, deadline)
        # Not asyncio.timeout: it cancels the task and makes its error of that, where a timer is all it takes.
        timer = asyncio.get_running_loop().call_later(deadline.remaining(), request.expire)
        try:
            return await request.future
        finally:
            timer.cancel()
            self._leave(request)
            # The error it ends with knows this frame.
            del request

    async def finish(self, deadline: Deadline) -> None:
        """Take no more calls, and end the stream once those under way are answered, or at *deadline*."""
        self._finishing = True
        self._wake.set()
        if self._conversing is not None:
            await asyncio.wait([self._conversing], timeout=deadline.remaining())
        await self.close()

    async def close(self) -> None:
        """End the stream; calls under way raise Cancelled."""
        self._closed = True
        self._fail_all(Cancelled("the stream was closed during the call"))
        if self._conversing is not None:
            self._conversing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._conversing

    def _start(self, inputs: Sequence[Input], deadline: Deadline) -> _Request:
        if self._closed or self._finishing:
            raise Cancelled("the stream is closed")
        request = _Request(len(inputs), deadline)
        waiting = [_Unsent(place, build_input(value), request) for place, value in enumerate(inputs)]
        self._unsent.extend(waiting[:MAX_INPUTS])
        request.held.extend(waiting[MAX_INPUTS:])
        self._num_open += len(inputs)
        self._wake.set()
        if self._conversing is None or self._conversing.done():
            self._conversing = asyncio.create_task(self._converse())
        return request

    def _leave(self, request: _Request) -> None:
        """Nobody waits for *request* any more; what of it is still open the service need not answer."""
        if not request.missing:
            return
        request.future.cancel()
        self._num_open -= request.missing
        self._abandoned += [number for number in request.under_way if self._open.pop(number, None) is not None]
        # They know it, too.
        request.under_way.clear()
        request.held.clear()
        if len(self._unsent) > 2 * self._num_open + MAX_INPUTS:
            # A peer that reads no more takes no messages, so nothing else would forget them.
            self._unsent = deque(item for item in self._unsent if not item.request.future.done())
        self._wake.set()

    async def _converse(self) -> None:
        """Write what there is until the stream ends; then everybody who still waits is told."""
        call = self._method()
        reading = asyncio.create_task(self._read(call))
        reading.add_done_callback(lambda _: self._wake.set())
        error: TrunklineError = Unavailable("the embedding service ended the stream")
        try:
            while not reading.done():
                await self._wake.wait()
                self._wake.clear()
                while (message := self._next_message()) and not reading.done():
                    await call.write(message)
                if self._finishing and not reading.done():
                    # The service answers what it has, and ends the stream.
                    await call.done_writing()
                    await asyncio.wait([reading])
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader knows how it ended
        finally:
            if not reading.done():
                call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                error = await reading or error
            self._abandoned.clear()
            self._fail_all(error)

    async def _read(self, call: Any) -> TrunklineError | None:
        """Settle what is answered; returns why the stream ended."""
        try:
            async for data in call:
                self.heard_at = time.monotonic()
                self._settle(parse_stream_message(data, self._options))
        except grpc.aio.AioRpcError as error:
            return error_for_rpc(error)
        except TrunklineError as error:
            call.cancel()
            return error
        return None

    def _settle(self, part: StreamPart) -> None:
        for number, vectors in zip(part.numbers, part.vectors, strict=True):
            request = self._open.pop(number, None)
            if request is not None:
                request.put(number, vectors)
                self._num_open -= 1
                if request.held:
                    self._unsent.append(request.held.popleft())
                    self._wake.set()
        for numbers, error in part.failures:
            for number in numbers:
                request = self._open.pop(number, None)
                if request is not None:
                    _settle_failed(request, number, error)

    def _next_message(self) -> bytes | None:
        """The next message: as many as it may carry, and whatever was abandoned."""
        sending: list[_Unsent] = []
        first = self._next_number
        while self._unsent and len(sending) < self._max_inputs:
            item = self._unsent.popleft()
            # The service never heard of those whose caller has left.
            if not item.request.future.done():
                number = first + len(sending)
                item.request.under_way[number] = item
                self._open[number] = item.request
                sending.append(item)
        self._next_number += len(sending)
        abandoned, self._abandoned = self._abandoned, []
        if not sending and not abandoned:
            return None
        timeouts = [item.request.deadline.remaining() for item in sending]
        values = [item.value for item in sending]
        return build_stream_message(self._template, first if sending else 0, values, timeouts, abandoned)

    def _fail_all(self, error: TrunklineError) -> None:
        waiting = dict.fromkeys([*self._open.values(), *(item.request for item in self._unsent)])
        self._open.clear()
        self._unsent.clear()
        for request in waiting:
            request.fail(error)


def _settle_failed(request: _Request, number: int, error: TrunklineError) -> None:
    """What there was no room for goes once others of its request are answered; where none are under way it fails."""
    item = request.under_way.pop(number)
    if isinstance(error, Overloaded) and request.under_way:
        request.held.appendleft(item)
    else:
        request.fail(error)
