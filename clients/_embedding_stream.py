"""Many callers, one stream to the embedding service: each input is answered on its own, messages carry what is ready together.

No timer: while one message is being written, what arrives gathers for the next.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

_MAX_INPUTS = 256
"""Of one message."""


class _Request:
    """A caller's inputs. *future* is done once all are answered, one failed, or the caller has left."""

    __slots__ = ("deadline", "first", "future", "missing", "vectors")

    def __init__(self, first: int, count: int, deadline: Deadline) -> None:
        self.first = first
        self.deadline = deadline
        self.future: asyncio.Future[list[Vectors]] = asyncio.get_running_loop().create_future()
        self.vectors: list[Vectors] = [()] * count
        self.missing = count

    def put(self, number: int, vectors: Vectors) -> None:
        self.vectors[number - self.first] = vectors
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.vectors)

    def fail(self, error: TrunklineError) -> None:
        if not self.future.done():
            self.future.set_exception(type(error)(error.message, retry_after=error.retry_after))

    def expire(self) -> None:
        self.fail(DeadlineExceeded("the deadline passed while waiting for the embedding service"))


class _Unsent(NamedTuple):
    """An input that waits for the next message."""

    number: int
    value: pb.Input
    request: _Request


class AsyncEmbeddingStream:
    """What `AsyncEmbeddingClient.stream` gives. All methods belong to one event loop; calls may run at the same time.

    The connection is made when there is something to send. When it breaks, what was under way fails with Unavailable, and the
    next call makes a new one.
    """

    def __init__(self, method: Callable[[], Any], options: EmbedOptions, *, max_open: int) -> None:
        self._method = method
        self._options = options
        self._template = embed_request(options)
        self._max_open = max_open
        self._next_number = 1
        self._unsent: deque[_Unsent] = deque()
        self._open: dict[int, _Request] = {}
        self._abandoned: list[int] = []
        self._wake = asyncio.Event()
        self._conversing: asyncio.Task[None] | None = None
        self._closed = False
        self._finishing = False
        self.heard_at = float("-inf")
        """When the service last sent anything, of `time.monotonic`."""

    def __repr__(self) -> str:
        return f"<AsyncEmbeddingStream [{len(self._open)} open, {len(self._unsent)} of them unsent]>"

    @property
    def num_open(self) -> int:
        """Inputs under way."""
        return len(self._open)

    async def embed(self, inputs: Sequence[Input], deadline: Deadline) -> list[Vectors]:
        """The vectors of each input, in order.

        Raises:
            Overloaded: *max_open* inputs are under way already, or the service is full.
            DeadlineExceeded: *deadline* passed; what had not begun is not executed.
            TrunklineError: see `clients` for the tree. One failed input fails the call.
        """
        if not inputs:
            return []
        if self._open and len(self._open) + len(inputs) > self._max_open:
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
        request = _Request(self._next_number, len(inputs), deadline)
        for number, value in enumerate([build_input(value) for value in inputs], request.first):
            self._open[number] = request
            self._unsent.append(_Unsent(number, value, request))
        self._next_number += len(inputs)
        self._wake.set()
        if self._conversing is None or self._conversing.done():
            self._conversing = asyncio.create_task(self._converse())
        return request

    def _leave(self, request: _Request) -> None:
        """Nobody waits for *request* any more; what of it is still open the service need not answer."""
        if not request.missing:
            return
        request.future.cancel()
        for number in range(request.first, request.first + len(request.vectors)):
            if self._open.pop(number, None) is not None:
                self._abandoned.append(number)
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
        for numbers, error in part.failures:
            for number in numbers:
                request = self._open.pop(number, None)
                if request is not None:
                    request.fail(error)

    def _next_message(self) -> bytes | None:
        """The next message: one run of consecutive numbers, at most `_MAX_INPUTS`, and whatever was abandoned."""
        sending: list[_Unsent] = []
        while self._unsent and len(sending) < _MAX_INPUTS:
            item = self._unsent[0]
            if item.number not in self._open:
                self._unsent.popleft()
                # The service never heard of it.
                self._forget(item.number)
                continue
            if sending and item.number != sending[-1].number + 1:
                break
            sending.append(self._unsent.popleft())
        abandoned, self._abandoned = self._abandoned, []
        if not sending and not abandoned:
            return None
        timeouts = [item.request.deadline.remaining() for item in sending]
        first = sending[0].number if sending else 0
        return build_stream_message(self._template, first, [item.value for item in sending], timeouts, abandoned)

    def _forget(self, number: int) -> None:
        with contextlib.suppress(ValueError):
            self._abandoned.remove(number)

    def _fail_all(self, error: TrunklineError) -> None:
        waiting, self._open = self._open, {}
        self._unsent.clear()
        for request in waiting.values():
            request.fail(error)
