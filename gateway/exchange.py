"""One HTTP request between arrival and end: its ids, which go on to the backends, and what is told of it afterwards.

`WithExchanges` opens one for each request and keeps it where everything that works for the request finds it. Observers (access
log, traces) get its facts once it is over; never what it was about.

Ids travel as gRPC metadata of `Predict` where the call is of one request alone. A call that carries rows of several requests has
no ids: it belongs to none of them. Nor have the texts on the embedding stream, which is one call for all requests; the embedding
service's own log and traces see the stream.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients.wire.logs import trace_id
from clients.wire.metadata import REQUEST_ID, TRACEPARENT
from gateway.classification import Answer, StageTimings

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from gateway.traces import Traces

_log = logging.getLogger(__name__)
_REQUEST_ID: Final = re.compile(r"[\w.:-]{1,128}", re.ASCII)
REQUEST_ID_KEY: Final = REQUEST_ID.encode()
_TRACEPARENT_KEY: Final = TRACEPARENT.encode()

MAX_HEADS_TOLD: Final = 512
"""Calls of heads kept of one request: a stream is one request for as long as its caller likes."""

clock: Final = time.perf_counter
"""Seconds, of no known beginning; that of all times here."""


class Ids(NamedTuple):
    """What a call to a backend carries of the request it is for; "" where there is nothing."""

    request_id: str = ""
    traceparent: str = ""


class HeadFacts(NamedTuple):
    """A call of one head version: *outcome* is "ok" or an error's code, *started* by `clock`."""

    name: str
    version: int
    outcome: str
    started: float
    seconds: float


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """A request that ended. *method* is its route, "" where there is none; *reason* an error's code where it was refused.

    *ended_ns* counts from 1970, *total* is seconds from arrival until then, *ended* is the same moment by `clock`. *timings* is
    None where nothing was classified. *heads* are the first `MAX_HEADS_TOLD` calls.
    """

    method: str
    request_id: str
    traceparent: str
    status: int
    reason: str
    num_heads: int
    num_texts: int
    num_tokens: int
    timings: StageTimings | None
    heads: Sequence[HeadFacts]
    total: float
    ended: float
    ended_ns: int


def new_request_id() -> str:
    """32 hex digits that nobody had before."""
    return secrets.token_hex(16)


def request_id_in(value: bytes) -> str:
    """The caller's own id in a header's *value*; "" where it is no plain word."""
    text = value.decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else ""


Observer = Callable[[RequestFacts], None]
"""Must be quick. One that raises is not heard by the caller."""


@dataclass(slots=True)
class Exchange:
    """A request under way; owned by its middleware, filled by whoever works for it."""

    given_id: str = ""
    traceparent: str = ""
    is_observed: bool = False
    arrived: float = field(default_factory=clock)
    status: int = 0
    reason: str = ""
    num_heads: int = 0
    num_texts: int = 0
    num_tokens: int = 0
    timings: StageTimings | None = None
    heads: list[HeadFacts] = field(default_factory=list)
    span: "Span | None" = None

    @property
    def request_id(self) -> str:
        """The caller's own, when it is one, or a new one, made when it is first asked for."""
        if not self.given_id:
            self.given_id = new_request_id()
        return self.given_id


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
_NO_IDS: Final = Ids()
_passed_on: ContextVar[Ids] = ContextVar("passed_on", default=_NO_IDS)


def ids_passed_on() -> Ids:
    """What the calls made from here carry."""
    return _passed_on.get()


def carry(ids: Sequence[Ids]) -> None:
    """The calls made from this task on are for the requests of *ids*: they carry them when it is one request."""
    _passed_on.set(ids[0] if len(ids) == 1 else _NO_IDS)


def current_request_id() -> str:
    """Of the request that this works for; a new one where there is none."""
    found = _current.get()
    return new_request_id() if found is None else found.request_id


def answered(answer: Answer) -> None:
    """The request that this works for, or a part of it, was answered."""
    found = _current.get()
    if found is not None and found.is_observed:
        found.num_heads = max(found.num_heads, len(answer.outcomes))
        found.num_texts += len(answer.texts)
        found.num_tokens += sum(text.num_tokens for text in answer.texts)
        found.timings = answer.timings


def refused(reason: str) -> None:
    """The request that this works for is not served."""
    found = _current.get()
    if found is not None:
        found.reason = reason


def head_ended(name: str, version: int, outcome: str, started: float, seconds: float) -> None:
    """A head was called for the request that this works for."""
    found = _current.get()
    if found is not None and found.is_observed and len(found.heads) < MAX_HEADS_TOLD:
        found.heads.append(HeadFacts(name, version, outcome, started, seconds))


class Exchanges:
    """All requests of a gateway, and who is told of them."""

    def __init__(self, observers: Sequence[Observer] = (), traces: "Traces | None" = None) -> None:
        self._observers = observers
        self._traces = traces

    @property
    def is_on(self) -> bool:
        """Whether anybody wants to know."""
        return bool(self._observers) or self._traces is not None

    def begin(self, headers: Sequence[tuple[bytes, bytes]]) -> Exchange:
        """A request arrives."""
        given = traceparent = ""
        for name, value in headers:
            if name == REQUEST_ID_KEY:
                given = request_id_in(value)
            elif name == _TRACEPARENT_KEY:
                text = value.decode("latin-1")
                traceparent = text if trace_id(text) else ""
        return Exchange(given, traceparent, self.is_on)

    def passed_on(self, exchange: Exchange) -> Ids:
        """What goes to the backends: always what the caller gave, and what was made here where somebody reads it."""
        if self._traces is not None:
            exchange.span, exchange.traceparent = self._traces.begin(exchange.traceparent)
        request_id = exchange.request_id if self.is_on else exchange.given_id
        return Ids(request_id, exchange.traceparent) if request_id or exchange.traceparent else _NO_IDS

    def end(self, exchange: Exchange, method: str) -> None:
        """It is over; all observers are told, and their faults stay theirs."""
        ended = clock()
        facts = RequestFacts(
            method=method,
            request_id=exchange.request_id,
            traceparent=exchange.traceparent,
            status=exchange.status,
            reason=exchange.reason,
            num_heads=exchange.num_heads,
            num_texts=exchange.num_texts,
            num_tokens=exchange.num_tokens,
            timings=exchange.timings,
            heads=exchange.heads,
            total=ended - exchange.arrived,
            ended=ended,
            ended_ns=time.time_ns(),
        )
        for observe in self._observers:
            try:
                observe(facts)
            except Exception as error:  # a fault in telling must not become one in answering
                _log.error("an observer of requests failed: %s", type(error).__name__)
        if self._traces is not None and exchange.span is not None:
            self._traces.end(exchange.span, facts)


class WithExchanges:
    """ASGI middleware: every HTTP request of *app* is an exchange."""

    def __init__(self, app: ASGIApp, exchanges: Exchanges) -> None:
        self._app = app
        self._exchanges = exchanges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = self._exchanges.begin(scope["headers"])
        _current.set(exchange)
        _passed_on.set(self._exchanges.passed_on(exchange))
        if not self._exchanges.is_on:
            await self._app(scope, receive, send)
            return

        async def heard(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, heard)
        finally:
            self._exchanges.end(exchange, route_of(scope))


def route_of(scope: Scope) -> str:
    """The route that answered, as it is declared: a path itself can hold a caller's words."""
    route: Any = scope.get("route")
    if route is not None:
        path = getattr(route, "path", "")
        return path if isinstance(path, str) else ""
    # A shortcut's path is a route as it stands.
    return str(scope["path"]) if "endpoint" in scope and not scope.get("path_params") else ""
