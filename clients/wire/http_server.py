"""How every HTTP front of ours listens: uvicorn, with a bound on each thing that a caller may take its time over or make large.

Only servers import this: it needs the extra `http`. uvicorn itself bounds neither a request's head nor the time it takes to
arrive: a byte a second would hold a connection for ever.
"""

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from clients.wire.delivery import num_arrived, num_on_the_way
from clients.wire.listening import TOO_FEW_FILES, ListenError

KEEP_ALIVE_SECONDS: Final = 30

GC_THRESHOLDS: Final = (500_000, 50, 100)
"""More objects alive until the collector looks at the young ones, and how many times it does so until it looks at older ones.

The first is more than the requests and connections of a full server are, so that being full is not taken for having left
something behind. Tests see to it that what is answered, refused or fails leaves no circle. When the collector comes after all, it
takes half a second or more."""

FEW_FILES: Final = 128
MANY_FILES: Final = 17_408
"""As many connections as two fronts of a process may have, 8,192 each, and some for all else."""

ACCEPTED_PER_TURN: Final = 32
"""New connections. Each of them wakes up as many listeners, and all but one find nothing: some ten microseconds."""

Endpoint = Callable[[Request], Awaitable[Response]]

Door = Callable[[str, Sequence[tuple[bytes, bytes]], Mapping[str, Any]], Response | None]
"""Told the path of a POST whose head has arrived, its headers (names in lower case) and the application's state: what it is
refused with before the application hears of it, None to let it in. Must be quick, and never raise; its headers are sent as they
are."""


def open_door(_path: str, _headers: Sequence[tuple[bytes, bytes]], _state: Mapping[str, Any]) -> None:
    """The `Door` that lets everybody in."""


@dataclass(frozen=True, slots=True)
class HttpBounds:
    """Of one connection.

    A request arrives within *receive_seconds* of its first byte, or of its connection's beginning. The body of one to a path of
    *open_ended* may take as long as it likes, but not so long without any byte. A caller who takes nothing of an answer for
    *send_seconds* is hung up on before twice as many are over. *max_header_bytes* are those of names and values together.
    """

    receive_seconds: float = 30.0
    send_seconds: float = 30.0
    max_header_bytes: int = 32_768
    max_url_bytes: int = 8_192
    max_connections: int = 8_192
    open_ended: Collection[str] = ()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, holding a connection to *bounds*, with a *door* in front of the application.

    Most of what a short request costs until it is answered is spent on making a task and a cycle of ASGI's messages of it. A
    server that has more to refuse than to answer should not spend it.
    """

    bounds = HttpBounds()
    door: Door = staticmethod(open_door)

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._late: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._num_unsent = 0
        """Bytes that were waiting for the caller to read at the last look; 0 where none were, or it has read some since."""
        self._num_arrived: int | None = None
        """By TLS, the bytes that had arrived at the last look; None where none were on their way."""
        self._is_whole = False
        """Whether the request that is being read has arrived."""
        self._num_header_bytes = 0
        self._has_headers = False
        self._is_turned_away = False
        """Whether the request that is being read has been refused at the door."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own does
        """See `asyncio.Protocol`."""
        if len(self.connections) >= self.bounds.max_connections:
            transport.abort()
            return
        super().connection_made(transport)
        self._expect()
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._arrived()
        if self._look is not None:
            self._look.cancel()
        if self.transport is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.transport is None or self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_whole:
            self._arrived()
        elif self._late is None or self._is_open_ended:
            self._expect()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._num_unsent = 0
        super().resume_writing()

    def on_message_begin(self) -> None:
        """See httptools."""
        if self._is_whole:
            # Its end and this one's beginning came together: the time of that is not this one's.
            self._arrived()
        self._is_whole = self._has_headers = self._is_turned_away = False
        self._num_header_bytes = 0
        # One that was refused a moment ago, in the same bytes, has set it.
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        if len(self.url) + len(url) <= self.bounds.max_url_bytes:
            super().on_url(url)
        else:
            self._refuse(b"414 URI Too Long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        # Each header is some memory beside its bytes.
        self._num_header_bytes += len(name) + len(value) + 64
        if self._num_header_bytes <= self.bounds.max_header_bytes:
            super().on_header(name, value)
        else:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self.transport.is_closing():
            return
        self._has_headers = True
        refusal = self._at_the_door()
        if refusal is None:
            super().on_headers_complete()
        else:
            self._turn_away(refusal)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if not (self._is_turned_away or self.transport.is_closing()):
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._is_whole = True
        if self._is_turned_away:
            self.on_response_complete()
        elif not self.transport.is_closing():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn."""
        if self._is_turned_away and not self._is_whole:
            self.transport.close()
        elif not self.transport.is_closing():
            super().send_400_response(msg)

    def _at_the_door(self) -> Response | None:
        """What the request is refused with; None where the application is to hear of it.

        It does of any that is not a plain request of a connection that goes on: those are rare, and uvicorn knows the rules.
        """
        cycle, parser = self.cycle, self.parser
        is_answering = cycle is not None and not cycle.response_complete
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or not parser.should_keep_alive():
            return None
        if is_answering or self.flow.write_paused or self.expect_100_continue or parser.should_upgrade() or self.root_path:
            return None
        path, _, _ = self.url.partition(b"?")
        return self.door(path.decode("latin-1"), self.headers, self.app_state)

    def _turn_away(self, refusal: Response) -> None:
        """Say *refusal* at once; what else comes of the request is read and forgotten."""
        self._is_turned_away = True
        headers = [*self.server_state.default_headers, *refusal.raw_headers]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[refusal.status_code], *lines, b"\r\n", refusal.body]))

    @property
    def _is_open_ended(self) -> bool:
        return self._has_headers and not self._is_turned_away and self.scope["path"] in self.bounds.open_ended

    def _expect(self) -> None:
        """More of a request is awaited from now."""
        self._arrived()
        self._late = self.loop.call_later(self.bounds.receive_seconds, self._on_late)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _look_later(self) -> None:
        self._look = self.loop.call_later(self.bounds.send_seconds, self._look_at_unsent)

    def _look_at_unsent(self) -> None:
        """Hang up where nothing has left since the last look: a transport that is to close waits for that without end."""
        if self._nothing_has_arrived() if self.scheme == "https" else self._nothing_has_left():
            self.transport.abort()
        else:
            self._look_later()

    def _nothing_has_left(self) -> bool:
        # Only of one that takes no more is it known that what waits is what waited before.
        is_full = self.flow.write_paused or self.transport.is_closing()
        before, self._num_unsent = self._num_unsent, self.transport.get_write_buffer_size() if is_full else 0
        return self._num_unsent >= before > 0

    def _nothing_has_arrived(self) -> bool:
        before, self._num_arrived = self._num_arrived, num_arrived(self.transport) if num_on_the_way(self.transport) else None
        return before is not None and self._num_arrived == before

    def _on_late(self) -> None:
        self._late = None
        if self.flow.read_paused or self.pipeline:
            # It is we who do not read, or a request before this one that is not answered yet.
            self._expect()
        else:
            self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        """Say why, where nothing has been said yet, and hang up; what already works on the request hears of it."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete and cycle.response_started
        if not (is_answering or self._is_turned_away):
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


class Shortcuts:
    """*app*, an ASGI application, with each POST to one of *endpoints* answered without its router and middleware.

    Those cost more than reading the request does, and most of what refusing it costs. An endpoint here answers its own errors.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["endpoint"] = endpoint
        answer = await endpoint(Request(scope, receive))
        await answer(scope, receive, send)


def shortcuts(routes: Sequence[Route]) -> dict[str, Endpoint]:
    """The endpoints of those *routes* that are for POST and have no parameters, by path."""
    return {route.path: route.endpoint for route in routes if "POST" in (route.methods or ()) and not route.param_convertors}


def protocol_with(bounds: HttpBounds, door: Door = open_door) -> type[BoundedProtocol]:
    """Uvicorn makes the protocols itself, so their bounds and door are a class's."""
    return type("BoundedProtocol", (BoundedProtocol,), {"bounds": bounds, "door": staticmethod(door)})


def queues_at(listener: socket.socket) -> list[socket.socket]:
    """*listener*, so many times that a server takes `ACCEPTED_PER_TURN` connections of it each time round its event loop.

    libuv, and so uvloop, accepts one a listener and turn. While a turn takes long, since many requests are waiting, callers that
    connect would wait for seconds, and come back on still more connections. The server closes what it is given.

    Raises:
        ListenError: this process may not open so many files; *listener* is closed.
    """
    queues = [listener]
    try:
        while len(queues) < ACCEPTED_PER_TURN:
            queues.append(listener.dup())
    except OSError:
        for queue in queues:
            queue.close()
        raise ListenError(TOO_FEW_FILES) from None
    return queues


def http_config(
    app: ASGIApp, *, drain_seconds: float, bounds: HttpBounds | None = None, door: Door = open_door, **options: Any
) -> uvicorn.Config:
    """Uvicorn's settings as every front of ours has them; *options* win."""
    ours: dict[str, Any] = {
        "http": protocol_with(bounds or HttpBounds(), door),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        # Nothing of ours asks for the caller's address.
        "proxy_headers": False,
        "timeout_graceful_shutdown": max(1, round(drain_seconds)),
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
    }
    return uvicorn.Config(app, **(ours | options))


class AnnouncingServer(uvicorn.Server):
    """uvicorn, printing *line* once it listens.

    Told to stop it calls *on_stop*, goes on as before for *delay_seconds*, so that balancers see that it is not ready any more,
    and only then takes no more connections. Being told to hurry (SIGINT for the second time) ends the delay.
    """

    def __init__(
        self, config: uvicorn.Config, line: str, *, on_stop: Callable[[], None] = lambda: None, delay_seconds: float = 0.0
    ) -> None:
        super().__init__(config)
        self._line = line
        self._on_stop = on_stop
        self._delay_seconds = delay_seconds

    def run(self, sockets: Any = None) -> None:
        """See uvicorn, which raises the signal that stopped it once more when it has drained: no reason to end as if killed."""
        signal.signal(signal.SIGTERM, lambda *_: None)
        super().run(sockets)

    async def startup(self, sockets: Any = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            print(self._line, flush=True)

    async def shutdown(self, sockets: Any = None) -> None:
        """See uvicorn."""
        self._on_stop()
        until = time.monotonic() + self._delay_seconds
        while not self.force_exit and time.monotonic() < until:  # noqa: ASYNC110 (a signal's handler sets it)
            await asyncio.sleep(0.1)
        await super().shutdown(sockets)


def allow_many_connections() -> None:
    """Raise the limit of open files as far as this process may, up to `MANY_FILES`: each connection is one.

    Where it is at the usual 1,024, those who come after are hung up on in place of being refused.

    Raises:
        ListenError: not even `FEW_FILES` may be open, and what opens files at start ends somewhere in the middle of it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(MANY_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # Some systems have a bound below the one they tell.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        raise ListenError(TOO_FEW_FILES)


def calm_collector() -> None:
    """Have the garbage collector leave a full server alone; to be called once all is imported.

    What was imported lives as long as the process and is not looked at again. A waiting call is some fifty objects: by the usual
    700, 10, 10 a full queue is looked through several times a second, and nothing is answered or refused meanwhile.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
