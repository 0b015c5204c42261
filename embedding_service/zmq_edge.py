"""The two ports of bert-as-service: requests come in on one (PULL), answers go out on the other (PUB) to whoever asked.

The protocol has no way to say who may ask, to take a request back, or to say that an answer arrived. So everything is bounded
here: requests under way, their bytes, and the bytes of answers that libzmq holds for clients that do not read. Beyond a bound
a request is answered with an error at once; a client never hangs for having asked too much.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import zmq
import zmq.asyncio

from embedding_service.bert_as_service import (
    SHOW_CONFIG,
    SHOW_STATUS,
    TERMINATION,
    BertAsService,
    Embed,
    Frame,
    MalformedRequestError,
    Request,
    document_frames,
    error_frames,
    fault_frames,
    parse_request,
    parse_texts,
    vector_frames,
)
from embedding_service.errors import EmbedError, Overloaded, Unavailable

_log = logging.getLogger(__name__)

SLOW_JOINER_SECONDS: Final = 0.1
"""A client connects to both ports at once and asks; what is answered before its subscription is here would be lost."""

_MAX_VECTOR_BYTES: Final = 256 * 1024 * 1024
_LINGER_MS: Final = 1_000
_MAX_CLIENTS: Final = 4_096
_ANSWER_OVERHEAD: Final = 512
"""Bytes an unsent answer costs beside its frames."""


class PortError(Exception):
    """*port* could not be had; what it is from says why."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} could not be had")
        self.port = port


@dataclass(frozen=True, slots=True)
class ZmqLimits:
    """*max_message_bytes* of one request; the others are of all clients together.

    While answers of more than *max_unsent_bytes* are held for clients that do not read, new requests are refused; beyond twice
    as much those under way get an error for their vectors, and beyond three times nothing is answered any more.
    """

    max_message_bytes: int = 8 * 1024 * 1024
    max_open: int = 1_024
    max_open_bytes: int = 64 * 1024 * 1024
    max_unsent_bytes: int = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sockets:
    """Both ends, bound."""

    context: zmq.asyncio.Context
    requests: zmq.asyncio.Socket
    answers: "zmq.Socket[bytes]"
    port: int
    port_out: int

    async def close(self) -> None:
        """Close both; what is still to be sent has a second."""
        self.requests.close(linger=0)
        self.answers.close(linger=_LINGER_MS)
        await asyncio.to_thread(self.context.term)


def bind(host: str, port: int, port_out: int, limits: ZmqLimits) -> Sockets:
    """Listen on both ports of *host*; 0 is any free one.

    Raises:
        PortError: one of them could not be had.
    """
    context = zmq.asyncio.Context()
    requests, answers = context.socket(zmq.PULL), zmq.Socket(context, zmq.PUB)
    # Beyond this libzmq cuts the connection without a word and the client hangs; what is refused in words is far below.
    requests.set(zmq.MAXMSGSIZE, 16 * limits.max_message_bytes)
    requests.set(zmq.RCVHWM, 2)
    # A PUB socket never waits: it would drop answers for a client that has asked much at once; their bytes are bounded here.
    answers.set(zmq.SNDHWM, 0)
    answers.copy_threshold = 0
    try:
        return Sockets(context, requests, answers, _bind(requests, host, port), _bind(answers, host, port_out))
    except BaseException:
        requests.close(linger=0)
        answers.close(linger=0)
        context.term()
        raise


def _bind(bound: "zmq.Socket[Any]", host: str, port: int) -> int:
    # libzmq binds to addresses only, not to names.
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound.set(zmq.IPV6, int(family == socket.AF_INET6))
    name = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    try:
        bound.bind(f"tcp://{name}:{port or '*'}")
    except zmq.ZMQError as error:
        raise PortError(port) from error
    endpoint = bound.get(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])


@contextlib.asynccontextmanager
async def serving(protocol: BertAsService, embed: Embed, sockets: Sockets, limits: ZmqLimits) -> AsyncIterator[None]:
    """Serve *sockets* for as long as the context lasts, and close them. Leave it when *embed* answers at once, having drained."""
    edge = ZmqEdge(protocol, embed, sockets, limits)
    reading = asyncio.create_task(edge.read())
    try:
        yield
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        await edge.close()
        await sockets.close()


class _Rarely:
    """Logs what anybody may cause as often as they like: the first time, the second, the fourth, the eighth."""

    def __init__(self, message: str) -> None:
        self._message = message
        self.count = 0

    def note(self) -> None:
        self.count += 1
        if not self.count & (self.count - 1):
            _log.warning(self._message, self.count)


class _Unsent:
    """The bytes of answers that libzmq has not passed on. It tells of each when asked, so it is asked seldom."""

    def __init__(self) -> None:
        self._answers: list[tuple[zmq.MessageTracker, int]] = []
        self._num_bytes = 0
        self._look_at = 0

    def add(self, tracker: zmq.MessageTracker, num_bytes: int) -> None:
        self._answers.append((tracker, num_bytes))
        self._num_bytes += num_bytes
        if len(self._answers) > self._look_at:
            self._look()

    def exceeds(self, max_bytes: int) -> bool:
        if self._num_bytes > max_bytes:
            self._look()
        return self._num_bytes > max_bytes

    def _look(self) -> None:
        self._answers = [answer for answer in self._answers if not answer[0].done]
        self._num_bytes = sum(num_bytes for _, num_bytes in self._answers)
        self._look_at = 64 + 2 * len(self._answers)


class ZmqEdge:
    """Single owner of what is under way on two *sockets*. All methods belong to the event loop."""

    def __init__(self, protocol: BertAsService, embed: Embed, sockets: Sockets, limits: ZmqLimits) -> None:
        self._protocol = protocol
        self._embed = embed
        self._sockets = sockets
        self._limits = limits
        self._open: dict[asyncio.Task[None], int] = {}
        self._open_bytes = 0
        self._unsent = _Unsent()
        self._delayed: dict[asyncio.TimerHandle, list[Frame]] = {}
        self._delayed_bytes = 0
        self._joined: OrderedDict[bytes, float] = OrderedDict()
        self._malformed = _Rarely("ignored %d messages that are not of bert-as-service's protocol")
        self._dropped = _Rarely("dropped %d answers that nobody read")
        self._terminations = _Rarely("ignored %d requests to terminate; stop the service with a signal")

    def __repr__(self) -> str:
        return f"<ZmqEdge [{len(self._open)} open, {len(self._delayed)} delayed]>"

    async def read(self) -> None:
        """Take requests until cancelled."""
        while True:
            frames = await self._sockets.requests.recv_multipart()
            self._receive(frames)
            # HAZARD: a message that is there already is received without a turn of the loop; a flood would stop everything else.
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Nothing more is read. What does not end by itself in a moment is given up, everybody told."""
        for give_up in (False, True):
            for task in list(self._open):
                if give_up:
                    task.cancel()
            if self._open:
                await asyncio.wait(list(self._open), timeout=_LINGER_MS / 1000)
        if self._delayed:
            await asyncio.sleep(SLOW_JOINER_SECONDS)
        self._delayed_bytes = 0
        for timer, frames in list(self._delayed.items()):
            timer.cancel()
            self._send(frames)
        self._delayed.clear()

    def _receive(self, frames: list[bytes]) -> None:
        try:
            request = parse_request(frames)
        except MalformedRequestError:
            self._malformed.note()
            return
        try:
            self._admit(request)
        except Exception as error:  # whatever one request does, its caller must not wait for ever, and the next one is read
            _log.error("a request failed unexpectedly: %s", type(error).__name__)
            self._reply(request, fault_frames(request))

    def _admit(self, request: Request) -> None:
        if request.message == TERMINATION:
            self._terminations.note()
            return
        self._note_client(request)
        if request.message in {SHOW_CONFIG, SHOW_STATUS}:
            self._protocol.statistics.asked(request.identity)
            self._reply(request, document_frames(request, self._document(request)))
        elif self._has_room(len(request.message)):
            self._start(request)
        else:
            busy = Overloaded("too many requests or unread answers", retry_after=1.0)
            self._reply(request, error_frames(request, busy))

    def _document(self, request: Request) -> dict[str, Any]:
        document = self._protocol.config() if request.message == SHOW_CONFIG else self._protocol.status()
        return {
            **document,
            "client": request.identity.decode("ascii", "replace"),
            "port": self._sockets.port,
            "port_out": self._sockets.port_out,
            "pyzmq_version": zmq.pyzmq_version(),
            "zmq_version": zmq.zmq_version(),
        }

    def _note_client(self, request: Request) -> None:
        """A client not seen before, or asking for the config as each does first, may not have its subscription here yet."""
        if request.message == SHOW_CONFIG or request.identity not in self._joined:
            self._joined[request.identity] = time.monotonic()
        self._joined.move_to_end(request.identity)
        if len(self._joined) > _MAX_CLIENTS:
            self._joined.popitem(last=False)

    def _has_room(self, num_bytes: int) -> bool:
        return (
            len(self._open) < self._limits.max_open
            and self._open_bytes + num_bytes <= self._limits.max_open_bytes
            and not self._holds_more_than(self._limits.max_unsent_bytes)
        )

    def _holds_more_than(self, num_bytes: int) -> bool:
        return self._unsent.exceeds(num_bytes - self._delayed_bytes)

    def _start(self, request: Request) -> None:
        task = asyncio.create_task(self._answer(request))
        self._open[task] = len(request.message)
        self._open_bytes += len(request.message)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open_bytes -= self._open.pop(task)

    async def _answer(self, request: Request) -> None:
        try:
            frames = await self._encode(request)
        except EmbedError as error:
            frames = error_frames(request, error)
        except asyncio.CancelledError:
            frames = error_frames(request, Unavailable("the embedding service is stopping"))
        except Exception as error:  # whatever it was, the caller must not wait for ever
            _log.error("a request failed unexpectedly: %s", type(error).__name__)
            frames = fault_frames(request)
        self._reply(request, frames)

    async def _encode(self, request: Request) -> list[Frame]:
        texts = parse_texts(request.message, max_bytes=self._limits.max_message_bytes)
        self._protocol.statistics.asked(request.identity, num_texts=len(texts))
        vectors = await self._protocol.encode(texts, self._embed, max_bytes=_MAX_VECTOR_BYTES)
        tokens = await self._protocol.tokens(texts) if self._protocol.show_tokens else None
        if self._holds_more_than(2 * self._limits.max_unsent_bytes):
            raise Overloaded("too many unread answers", retry_after=1.0)
        return vector_frames(request, vectors, tokens)

    def _reply(self, request: Request, frames: list[Frame]) -> None:
        wait = self._joined.get(request.identity, 0.0) + SLOW_JOINER_SECONDS - time.monotonic()
        if wait <= 0:
            self._send(frames)
            return

        def send() -> None:
            del self._delayed[timer]
            self._delayed_bytes -= _num_bytes(frames)
            self._send(frames)

        timer = asyncio.get_running_loop().call_later(wait, send)
        self._delayed[timer] = frames
        self._delayed_bytes += _num_bytes(frames)

    def _send(self, frames: list[Frame]) -> None:
        if self._holds_more_than(3 * self._limits.max_unsent_bytes):
            self._dropped.note()
            return
        longest = max(range(len(frames)), key=lambda index: len(frames[index]))
        for index, frame in enumerate(frames):
            flags = zmq.NOBLOCK | (zmq.SNDMORE if index + 1 < len(frames) else 0)
            if index != longest:
                self._sockets.answers.send(frame, flags)
                continue
            tracker = self._sockets.answers.send(frame, flags, copy=False, track=True)
            self._unsent.add(tracker, _num_bytes(frames))


def _num_bytes(frames: list[Frame]) -> int:
    return sum(map(len, frames)) + _ANSWER_OVERHEAD
