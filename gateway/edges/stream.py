"""`POST /v1/classify/stream`: a line of JSON in, a line of JSON out, in order, for as long as the caller likes.

The body is never collected: no more is read than can be answered. Where the gateway is full a stream waits, and lets others go
first, instead of failing.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Final, NamedTuple

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from clients import Deadline, InvalidRequest, NotFound, Overloaded, ServerFault, TrunklineError, Unavailable
from clients.wire.asgi import CallerLeftError
from gateway.admission import free
from gateway.classification import Answer
from gateway.edges.lines import Line, LineSplitter, batches_of, classification_of, read_lines
from gateway.quota import QuotaUsedUp, charge
from gateway.routes import (
    ERRORS,
    REQUEST_HEADERS,
    State,
    may_reuse,
    notes_of,
    patience,
    public,
    refuse_compression,
    request_id_of,
    respond,
    sticky_key_of,
)
from gateway.schemas import ErrorInfo, StreamEnd, StreamLine, StreamResult, result_bodies

MAX_LINE_BYTES: Final = 1024 * 1024
MAX_LINES: Final = 1_024
"""Read, and not yet written: a caller that sends as many and only then reads, gets all its answers."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""Of those lines."""

MAX_RUNNING: Final = 8
"""Requests of one stream inside the pipeline at once."""

MAX_ANSWER_BYTES: Final = 1024 * 1024
"""Of answers that wait for the caller to read; with more than that a request keeps its place of `MAX_RUNNING` until then."""

IDLE_SECONDS: Final = 300.0
"""A caller who neither sends nor reads for so long is taken to have left."""

MEDIA_TYPE: Final = "application/x-ndjson"

_BACKOFF_SECONDS: Final = 0.01
_MAX_BACKOFF_SECONDS: Final = 0.5

_log = logging.getLogger(__name__)
_encoder: Final = msgspec.json.Encoder()

router = APIRouter()


def _lines(schema: str) -> dict[str, object]:
    return {"content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


@router.post(
    "/v1/classify/stream",
    summary="Label lines of texts",
    openapi_extra={
        "requestBody": {"required": True, "description": "One object a line.", **_lines("StreamLine")},
        "parameters": [
            {
                "name": "start",
                "in": "query",
                "required": False,
                "description": "The first line's index: who was cut off sends again from the first line without an answer.",
                "schema": {"type": "integer", "minimum": 0},
            },
            *REQUEST_HEADERS,
        ],
    },
    responses={
        200: {"description": "A StreamResult a line, in order, and then one StreamEnd.", **_lines("StreamResult")},
        **{status: ERRORS[status] for status in (400, 415, 429)},
    },
)
async def classify_stream(request: Request) -> Response:
    """Each line is answered on its own, an error being that line's alone. Lines of white space are passed over, uncounted."""
    return await respond(request, _open, is_whole=False)


async def _open(request: Request, state: State) -> Response:
    refuse_compression(request)
    state.streams.check()
    return StreamAnswer(request, state, first=_start(request), timeout=patience(request, None, state.settings))


def _start(request: Request) -> int:
    given = request.query_params.get("start", "0")
    if not (given.isascii() and given.isdigit() and len(given) < 16):
        raise InvalidRequest("start is not a whole number of lines")
    return int(given)


class StreamAnswer(Response):
    """One stream. Its reader, its writer and the requests in between are tasks of one group, and end together."""

    def __init__(self, request: Request, state: State, *, first: int, timeout: float) -> None:
        self._request = request
        self._state = state
        self._next = first
        self._first = first
        self._timeout = timeout
        self._sticky_key = sticky_key_of(request)
        self._may_reuse = may_reuse(request)
        self._request_id = request_id_of(request)
        self._room = _Room()
        self._running = asyncio.Semaphore(MAX_RUNNING)
        self._num_unwritten = 0
        """Bytes of answers."""
        self._answering: asyncio.Queue[tuple[list[Line], asyncio.Task[_Answers]] | None] = asyncio.Queue()
        self._error: TrunklineError | None = None
        self._num_errors = 0
        super().__init__(headers={"x-accel-buffering": "no"}, media_type=MEDIA_TYPE)
        # The length is not known.
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        del scope
        try:
            with self._state.streams.opened():
                await self._run(receive, send)
        except CallerLeftError:
            self._state.telemetry.refused(499, "departed")
        else:
            self._state.telemetry.served(200)

    async def _run(self, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(receive, group))
                await self._write(send)
                reading.cancel()
        except* CallerLeftError:
            has_left = True
        else:
            has_left = False
        if has_left:
            raise CallerLeftError

    async def _read(self, receive: Receive, group: asyncio.TaskGroup) -> None:
        """Begin to answer what comes, as far as there is room; then wait for the caller to leave.

        Raises:
            CallerLeftError: it has.
        """
        splitter = LineSplitter(MAX_LINE_BYTES)
        has_more = True
        while has_more and self._error is None:
            content, has_more = await self._received(receive)
            lines = splitter.feed(content) + ([] if has_more else splitter.end())
            read = read_lines(lines, self._next, MAX_LINE_BYTES)
            self._next += len(read)
            for batch in batches_of(read):
                await self._room.take(batch)
                self._answering.put_nowait((batch, group.create_task(self._answer(batch))))
        self._answering.put_nowait(None)
        while (await receive())["type"] != "http.disconnect":
            pass
        raise CallerLeftError

    async def _received(self, receive: Receive) -> tuple[bytes, bool]:
        """The next piece of the body, and whether more follow."""
        drain = self._state.drain
        try:
            async with drain.patience(IDLE_SECONDS):
                message = await receive()
        except TimeoutError:
            if drain.is_on:
                self._error = Unavailable("the gateway is stopping; send the rest again")
                return b"", True
            self._error = InvalidRequest(f"no line came for {IDLE_SECONDS:.0f} seconds")
            return b"", True
        if message["type"] == "http.disconnect":
            raise CallerLeftError
        return message.get("body", b""), message.get("more_body", False)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while (answering := await self._answering.get()) is not None:
            batch, task = answering
            answers = await task
            self._num_errors += answers.num_errors
            await self._send(send, answers.content, more=True)
            self._num_unwritten -= len(answers.content)
            if answers.keeps_place:
                self._running.release()
            self._room.give(batch)
        error = None if self._error is None else ErrorInfo(self._error.code, self._error.message)
        end = StreamEnd(error is None, self._next - self._first, self._num_errors, error)
        await self._send(send, _encoder.encode_lines([end]), more=False)

    async def _send(self, send: Send, content: bytes, *, more: bool) -> None:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await send({"type": "http.response.body", "body": content, "more_body": more})
        except TimeoutError:
            raise CallerLeftError from None

    async def _answer(self, batch: list[Line]) -> "_Answers":
        """One result a line, in order."""
        # Places are given in the order of the lines: what is to be written next has one, whoever else keeps theirs.
        await self._running.acquire()
        results = await self._results(batch)
        content = _encoder.encode_lines(results)
        self._num_unwritten += len(content)
        keeps_place = self._num_unwritten > MAX_ANSWER_BYTES
        if not keeps_place:
            self._running.release()
        return _Answers(content, sum(result.error is not None for result in results), keeps_place)

    async def _results(self, batch: list[Line]) -> list[StreamResult]:
        readable = [line for line in batch if isinstance(line.asked, StreamLine)]
        try:
            found = await self._classified(readable) if readable else []
        except Exception as error:  # whatever it was, the other lines are answered
            _log.error("request %s: lines failed unexpectedly", self._request_id, exc_info=error)
            found = [failed(line, ServerFault("the gateway failed in a way it should not")) for line in readable]
        said = iter(found)
        return [failed(line, line.asked) if isinstance(line.asked, TrunklineError) else next(said) for line in batch]

    async def _classified(self, lines: Sequence[Line], *, is_charged: bool = False) -> list[StreamResult]:
        asked = [line.asked for line in lines if isinstance(line.asked, StreamLine)]
        try:
            answer = await self._when_there_is_room(asked, is_charged=is_charged)
            notes = await notes_of([line.text for line in asked], Deadline.after(self._timeout))
        except TrunklineError as error:
            # One text can make the whole request one that cannot be served; a head that is not there is so for all.
            if isinstance(error, InvalidRequest) and not isinstance(error, NotFound) and len(lines) > 1:
                return [result for line in lines for result in await self._classified([line], is_charged=True)]
            return [failed(line, public(error)) for line in lines]
        self._state.telemetry.answered(answer)
        return [
            StreamResult(line.index, line.id, body.heads, body.num_tokens, body.truncated, body.cached, body.notes)
            for line, body in zip(lines, result_bodies(answer, notes), strict=True)
        ]

    async def _when_there_is_room(self, asked: Sequence[StreamLine], *, is_charged: bool) -> Answer:
        """The answer to lines that ask for the same. Refused for want of room they try again, as long as a request may take."""
        state = self._state
        work = classification_of(asked, sticky_key=self._sticky_key, may_reuse=self._may_reuse)
        until = Deadline.after(state.settings.max_timeout_seconds)
        pay = free if is_charged else partial(charge, self._request, len(asked))
        for attempt in count():
            try:
                with state.admission.admit(len(asked), is_bulk=True, pay=pay):
                    pay = free
                    return await state.pipeline.classify(work, Deadline.after(self._timeout))
            except QuotaUsedUp as error:
                # It comes by the clock, and however long it takes the stream goes on at the rate of its key.
                until = Deadline.after(state.settings.max_timeout_seconds)
                await asyncio.sleep(error.retry_after or _MAX_BACKOFF_SECONDS)
            except Overloaded:
                if until.expired:
                    raise
                await asyncio.sleep(min(_BACKOFF_SECONDS * 2 ** min(attempt, 16), _MAX_BACKOFF_SECONDS))
        raise AssertionError  # a count does not end


def failed(line: Line, error: TrunklineError) -> StreamResult:
    """*line*, and why it has no answer."""
    text = error.message
    # The message counts the texts of a request; here there is one.
    text = "the text" + text.removeprefix("text 0") if text.startswith("text 0 ") else text
    return StreamResult(line.index, line.id, error=ErrorInfo(error.code, text))


class _Answers(NamedTuple):
    """*content*: the lines of a batch; *keeps_place*: the next one may run once they are written."""

    content: bytes
    num_errors: int
    keeps_place: bool


class _Room:
    """For lines that were read and are not yet answered. One task takes, one gives."""

    def __init__(self) -> None:
        self._num_lines = 0
        self._num_bytes = 0
        self._freed = asyncio.Event()

    async def take(self, lines: Sequence[Line]) -> None:
        """Wait until there is room for *lines*; when nothing else is there, there is."""
        size = sum(line.size for line in lines)
        while self._num_lines and (self._num_lines + len(lines) > MAX_LINES or self._num_bytes + size > MAX_BYTES):
            self._freed.clear()
            await self._freed.wait()
        self._num_lines += len(lines)
        self._num_bytes += size

    def give(self, lines: Sequence[Line]) -> None:
        """*lines* are answered."""
        self._num_lines -= len(lines)
        self._num_bytes -= sum(line.size for line in lines)
        self._freed.set()
