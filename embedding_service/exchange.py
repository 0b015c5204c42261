"""What is told of a request once it has ended: who asked, what became of it, how long it took. Never what it was about.

An edge opens an `Exchange` when a request arrives and ends it with the answer; observers (access log, traces) get its facts.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from clients.wire.logs import clean_id
from clients.wire.metadata import REQUEST_ID, TRACEPARENT
from embedding_service.errors import EmbedError
from embedding_service.infer import EmbedAnswer, EmbedCall
from embedding_service.telemetry import Timings, longest

_log = logging.getLogger(__name__)

Protocol = Literal["grpc", "grpc-stream", "http", "zmq"]
Headers = Iterable[tuple[str | bytes, str | bytes]]


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """A request that ended. Names of trunks and engines are this service's own, never the caller's words.

    *method* is an RPC's name or a route, *traceparent* W3C's header as it came. *outcome* is "ok", "cancelled" or an error's
    code. *ended_ns* counts from 1970; *total* is seconds from arrival until then. *timings* are of the part that made the
    vectors and was over *idle* seconds before the end; None where it gave none. What is not known is "" or 0.
    """

    protocol: Protocol
    method: str
    request_id: str
    traceparent: str
    outcome: str
    num_inputs: int
    num_tokens: int
    trunk: str
    engine: str
    ended_ns: int
    total: float
    timings: Timings | None
    idle: float


Observer = Callable[[RequestFacts], None]
"""Must be quick. One that raises is not heard by the caller."""


class Exchange:
    """One request between arrival and end; owned by its edge. As a context it ends with it, and tells of what left it."""

    __slots__ = (
        "_answered",
        "_arrived",
        "_exchanges",
        "_failure",
        "_num_inputs",
        "_num_tokens",
        "_timings",
        "_trunk",
        "method",
        "protocol",
        "request_id",
        "traceparent",
    )

    def __init__(self, exchanges: "Exchanges", protocol: Protocol, method: str, request_id: str, traceparent: str) -> None:
        self.protocol: Protocol = protocol
        self.method = method
        self.request_id = request_id
        self.traceparent = traceparent
        self._exchanges = exchanges
        self._arrived = self._answered = time.monotonic()
        self._failure = self._trunk = ""
        self._num_inputs = self._num_tokens = 0
        self._timings: Timings | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end(_outcome_of(error))

    def asked(self, num_inputs: int) -> None:
        """It, or another part of it, could be read, and has *num_inputs*."""
        self._num_inputs += num_inputs

    def answered(self, trunk: str, num_tokens: int, timings: Timings) -> None:
        """There are vectors of it, or of a part of it, from *trunk*."""
        self._trunk = trunk
        self._num_tokens += num_tokens
        self._timings = timings if self._timings is None else longest([self._timings, timings])
        self._answered = time.monotonic()

    def failed(self, code: str) -> None:
        """It, or a part of it, failed; the first reason stays."""
        self._failure = self._failure or code

    def end(self, outcome: str = "ok") -> None:
        """It is over, with *outcome* unless it failed before."""
        if not self._exchanges.is_on:
            return
        now = time.monotonic()
        facts = RequestFacts(
            protocol=self.protocol,
            method=self.method,
            request_id=self.request_id,
            traceparent=self.traceparent,
            outcome=self._failure or outcome,
            num_inputs=self._num_inputs,
            num_tokens=self._num_tokens,
            trunk=self._trunk,
            engine=self._exchanges.engine_of(self._trunk) if self._trunk else "",
            ended_ns=time.time_ns(),
            total=now - self._arrived,
            timings=self._timings,
            idle=now - self._answered,
        )
        self._exchanges.tell(facts)


class Exchanges:
    """All requests of a service, and who is told of them. *engine_of* gives the label of a trunk's engine by its name."""

    def __init__(self, observers: Sequence[Observer] = (), engine_of: Callable[[str], str] = str) -> None:
        self.is_on = bool(observers)
        self.engine_of = engine_of
        self._observers = observers

    def begin(self, protocol: Protocol, method: str, headers: Callable[[], Headers | None]) -> Exchange:
        """A request arrives; its *headers* (or gRPC metadata) are looked at only where somebody wants to know."""
        request_id = traceparent = ""
        if self.is_on:
            for name, value in headers() or ():
                key = _text(name).lower()
                if key == REQUEST_ID:
                    request_id = clean_id(_text(value))
                elif key == TRACEPARENT:
                    traceparent = _text(value)
        return Exchange(self, protocol, method, request_id, traceparent)

    def tell(self, facts: RequestFacts) -> None:
        """All observers are told; their faults stay theirs."""
        for observe in self._observers:
            try:
                observe(facts)
            except Exception as error:  # a fault in telling must not become one in answering
                _log.error("an observer of requests failed: %s", type(error).__name__)


def heard(
    embed: Callable[[EmbedCall], Awaitable[EmbedAnswer]], begin: Callable[[], Exchange]
) -> Callable[[EmbedCall], Awaitable[EmbedAnswer]]:
    """*embed*, each call of which is an exchange."""

    async def told(call: EmbedCall) -> EmbedAnswer:
        with begin() as exchange:
            exchange.asked(len(call.inputs))
            answer = await embed(call)
            exchange.answered(answer.trunk.name, answer.num_tokens, answer.timings)
            return answer

    return told


def _outcome_of(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return error.code if isinstance(error, EmbedError) else "internal"


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
