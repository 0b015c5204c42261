import asyncio
import contextlib
import errno
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from clients.wire.http_server import (
    ACCEPTED_PER_TURN,
    FEW_FILES,
    MANY_FILES,
    AnnouncingServer,
    Door,
    HttpBounds,
    allow_many_connections,
    http_config,
    open_door,
    protocol_with,
    queues_at,
)
from clients.wire.listening import ListenError
from tests.certificates import Authority

QUICK = HttpBounds(receive_seconds=0.1, send_seconds=0.1, open_ended={"/stream"})
ASKING = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"


class Echo:
    """Answers what it is sent; /slow not before it is let go."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.seen.append(message["type"])
        if scope["path"] == "/slow":
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def listening(app: Echo, bounds: HttpBounds = QUICK, door: Door = open_door, **options: Any) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(http_config(app, drain_seconds=1, bounds=bounds, door=door, lifespan="off", **options))
        serving = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.close()


async def answer_to(port: int, *parts: bytes) -> bytes:
    """All that comes back until the server hangs up."""
    async with connected(port) as (reader, writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()


async def test_a_connection_is_used_again() -> None:
    async with listening(Echo()) as port, connected(port) as (reader, writer):
        for body in (b"once", b"more"):
            writer.write(ASKING + body)
            assert (await reader.readuntil(body)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("part", [b"", b"POST /ec", ASKING[:-2], ASKING + b"on"])
async def test_a_request_that_does_not_arrive_in_time_is_told_so_and_the_connection_ends(part: bytes) -> None:
    async with listening(Echo()) as port:
        assert (await answer_to(port, part)).startswith(b"HTTP/1.1 408")


async def test_bytes_that_trickle_in_do_not_buy_time() -> None:
    async with listening(Echo()) as port, connected(port) as (reader, writer):
        answered = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            for byte in b"POST /echo HTTP/1.1\r\n" + b"x" * 10_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)
                if answered.done():
                    break
        # A byte that crosses the hanging up may cost the answer, never the end.
        with contextlib.suppress(ConnectionError):
            assert (await answered).startswith(b"HTTP/1.1 408")
        assert answered.done()


async def test_whoever_works_on_a_request_hears_that_its_caller_was_hung_up_on() -> None:
    app = Echo()
    async with listening(app) as port:
        await answer_to(port, ASKING + b"on")
        while not app.seen:
            await asyncio.sleep(0)
    assert ["http.disconnect"] == app.seen


async def test_requests_of_which_each_read_ends_within_one_are_not_late_together() -> None:
    """The end of one and the beginning of the next come in one piece, as of a caller who does not wait for answers."""
    whole = ASKING + b"once"
    async with listening(Echo()) as port, connected(port) as (reader, writer):
        writer.write(whole[:20])
        for _ in range(12):
            await asyncio.sleep(QUICK.receive_seconds / 4)
            writer.write(whole[20:] + whole[:20])
            assert (await reader.readuntil(b"once")).startswith(b"HTTP/1.1 200")


LARGE = b"x" * 8_000_000


async def large_answers(scope: Scope, receive: Receive, send: Send) -> None:
    """Far more than any socket's buffer holds."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(LARGE))]})
    await send({"type": "http.response.body", "body": LARGE})


@contextlib.asynccontextmanager
async def large_answers_by(bounds: HttpBounds, num_asked: int) -> AsyncIterator[tuple[socket.socket, ServerState]]:
    """The caller's end of a connection on which that many were asked for."""
    config, state = http_config(large_answers, drain_seconds=1, lifespan="off", timeout_keep_alive=0), ServerState()
    config.load()
    make = partial(protocol_with(bounds), config=config, server_state=state, app_state={})
    ours, callers = socket.socketpair()
    with ours, callers:
        callers.setblocking(False)
        callers.send(num_asked * (ASKING + b"once"))
        transport, _ = await asyncio.get_running_loop().create_connection(make, sock=ours)
        try:
            async with asyncio.timeout(20):
                yield callers, state
        finally:
            if not transport.is_closing():
                transport.abort()
            await asyncio.sleep(0)


@pytest.mark.parametrize("num_asked", [1, 3])
async def test_a_caller_who_never_reads_is_hung_up_on_and_nothing_of_it_stays(num_asked: int) -> None:
    async with large_answers_by(QUICK, num_asked) as (_, state):
        while not state.connections:
            await asyncio.sleep(0)
        while state.connections or state.tasks:
            await asyncio.sleep(0.01)


async def test_a_caller_who_reads_a_little_between_two_looks_is_left_alone() -> None:
    async with large_answers_by(HttpBounds(), 1) as (caller, state):
        while not state.connections:
            await asyncio.sleep(0)
        [protocol] = state.connections
        transport, loop = protocol.transport, asyncio.get_running_loop()
        while not transport.get_write_buffer_size():
            await asyncio.sleep(0)
        for _ in range(10):
            before = transport.get_write_buffer_size()
            protocol._look_at_unsent()
            while transport.get_write_buffer_size() == before:
                await loop.sock_recv(caller, 65_536)
        assert [protocol] == list(state.connections)
        protocol._look_at_unsent()
        protocol._look_at_unsent()
        while state.connections:
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def asking_for_much_by_tls(tmp_path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, ServerState]]:
    """A caller with a small buffer who has asked for a large answer, and has its beginning."""
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    options = {"ssl_certfile": str(pair.certificate), "ssl_keyfile": str(pair.key), "bounds": QUICK, "lifespan": "off"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(http_config(large_answers, drain_seconds=1, **options))  # type: ignore[arg-type]
        serving = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0)
        with socket.create_connection(listener.getsockname()) as peer:
            peer.setblocking(False)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            trusting = ssl.create_default_context(cafile=str(authority.path))
            reader, writer = await asyncio.open_connection(sock=peer, ssl=trusting, server_hostname="localhost")
            try:
                async with asyncio.timeout(30):
                    writer.write(ASKING + b"once")
                    await reader.readuntil(b"\r\n\r\n")
                    yield reader, server.server_state
            finally:
                writer.transport.abort()
                server.should_exit = True
                await serving


async def test_by_tls_who_reads_nothing_is_hung_up_on(tmp_path: Path) -> None:
    async with asking_for_much_by_tls(tmp_path) as (reader, state):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        while state.connections:
            await asyncio.sleep(0.01)


async def test_by_tls_who_reads_slowly_is_let_go_on(tmp_path: Path) -> None:
    async with asking_for_much_by_tls(tmp_path) as (reader, state):
        for _ in range(12):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(QUICK.send_seconds / 2)
            reader._transport.resume_reading()  # type: ignore[attr-defined]
            await reader.readexactly(200_000)
        assert state.connections


async def test_an_open_ended_body_may_take_its_time_while_it_comes() -> None:
    async with listening(Echo()) as port, connected(port) as (reader, writer):
        writer.write(b"POST /stream HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(QUICK.receive_seconds / 4)
            writer.write(b"1\r\na\r\n")
        writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"a" * 10)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 40_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1_000 + b"\r\n", b"431"),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\n" + b"a: b\r\n" * 1_000 + b"\r\n", b"431"),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\n" + b"a: b\r\n" * 1_000 + b"\r\nabc", b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc", b"400"),
    ],
)
async def test_a_head_that_is_too_large_or_no_head_is_refused_and_the_app_never_hears_of_it(
    request_head: bytes, status: bytes
) -> None:
    app = Echo()
    async with listening(app) as port:
        assert (await answer_to(port, request_head)).startswith(b"HTTP/1.1 " + status)
    assert [] == app.seen


async def test_a_request_that_is_worked_on_is_not_ended_by_half_of_the_next_one() -> None:
    app = Echo()
    async with listening(app) as port, connected(port) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" + ASKING + b"on")
        await asyncio.sleep(3 * QUICK.receive_seconds)
        app.go.set()
        writer.write(b"ce")
        assert 2 == (await reader.readuntil(b"once")).count(b"HTTP/1.1 200")


class Bouncer:
    """A door that lets nobody in while it is shut, and remembers who asked."""

    def __init__(self, content: str = "no room") -> None:
        self.is_shut = True
        self.asked: list[str] = []
        self._content = content

    def __call__(self, path: str, headers: Sequence[tuple[bytes, bytes]], _: Mapping[str, Any]) -> Response | None:
        self.asked.append(path)
        return PlainTextResponse(self._content, 429, {"x-host": dict(headers)[b"host"].decode()}) if self.is_shut else None


async def test_who_is_refused_at_the_door_is_told_so_on_a_connection_that_goes_on() -> None:
    app, door = Echo(), Bouncer()
    async with listening(app, door=door) as port, connected(port) as (reader, writer):
        writer.write(ASKING + b"once")
        refused = await reader.readuntil(b"no room")
        door.is_shut = False
        writer.write(b"POST /echo?a=b HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nmore")
        answered = await reader.readuntil(b"more")

    assert refused.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\ncontent-length: 7\r\n" in refused
    assert b"\r\nx-host: x\r\n" in refused
    assert answered.startswith(b"HTTP/1.1 200")
    assert ["/echo", "/echo"] == door.asked
    assert ["http.request"] == app.seen


async def test_a_refusal_is_told_before_the_body_which_may_then_come_or_not() -> None:
    app, door = Echo(), Bouncer()
    async with listening(app, door=door) as port, connected(port) as (reader, writer):
        writer.write(ASKING)
        await reader.readuntil(b"no room")
        door.is_shut = False
        writer.write(b"on" + b"ce" + ASKING + b"more")
        assert (await reader.readuntil(b"more")).startswith(b"HTTP/1.1 200")
        door.is_shut = True
        writer.write(ASKING + b"on")
        # Nothing is said beside the refusal when the rest is waited for no longer.
        assert (await reader.read()).endswith(b"no room")
    assert ["http.request"] == app.seen


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"200"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"200"),
        (b"POST /echo HTTP/1.0\r\nhost: x\r\n\r\n", b"200"),
        (b"POST /echo HTTP/1.0\r\nhost: x\r\nconnection: keep-alive\r\n\r\n", b"200"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 1_000 + b"\r\n", b"431"),
    ],
)
async def test_the_door_is_for_posts_of_connections_that_go_on(request_head: bytes, status: bytes) -> None:
    door = Bouncer()
    async with listening(Echo(), door=door) as port:
        assert (await answer_to(port, request_head)).startswith(b"HTTP/1.1 " + status)
    assert [] == door.asked


async def test_who_waits_to_be_let_on_with_the_body_is_told_by_the_app() -> None:
    door = Bouncer()
    async with listening(Echo(), door=door) as port, connected(port) as (reader, writer):
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"once")
        assert (await reader.readuntil(b"once")).startswith(b"HTTP/1.1 200")
    assert [] == door.asked


async def test_nobody_is_refused_at_the_door_before_who_came_first_on_the_connection_is_answered() -> None:
    app, door = Echo(), Bouncer()
    async with listening(app, door=door) as port, connected(port) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" + ASKING + b"once")
        while not app.seen:
            await asyncio.sleep(0)
        app.go.set()
        assert 2 == (await reader.readuntil(b"once")).count(b"HTTP/1.1 200")
        writer.write(ASKING + b"more")
        assert (await reader.readuntil(b"no room")).startswith(b"HTTP/1.1 429")
    assert ["/echo"] == door.asked


async def test_what_is_let_in_after_a_refusal_may_take_longer_than_an_idle_connection() -> None:
    app, door = Echo(), Bouncer()
    async with listening(app, HttpBounds(), door, timeout_keep_alive=0.1) as port, connected(port) as (reader, writer):
        writer.write(ASKING + b"once" + b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"no room")
        await asyncio.sleep(0.3)
        app.go.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_nothing_is_said_beside_a_refusal_of_what_turns_out_to_be_nonsense() -> None:
    door = Bouncer()
    head = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with listening(Echo(), door=door) as port:
        answer = await answer_to(port, head, b"not a size\r\n")
    assert 1 == answer.count(b"HTTP/1.1 ")
    assert answer.endswith(b"no room")


async def test_a_caller_that_does_not_read_what_it_is_refused_with_is_not_refused_without_end() -> None:
    door = Bouncer("no room" * 10_000)
    async with listening(Echo(), HttpBounds(), door) as port, connected(port) as (_, writer):
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n" * 1_000)
        seen = -1
        while seen < len(door.asked) or not door.asked:
            seen = len(door.asked)
            await asyncio.sleep(0.05)
    assert len(door.asked) < 500


async def test_one_connection_too_many_is_dropped_and_the_others_stay() -> None:
    async with listening(Echo(), HttpBounds(max_connections=1)) as port, connected(port) as (reader, writer):
        writer.write(ASKING + b"once")
        await reader.readuntil(b"once")
        with contextlib.suppress(ConnectionError):
            assert b"" == await answer_to(port, ASKING)
        writer.write(ASKING + b"more")
        await reader.readuntil(b"more")


async def test_who_wants_to_know_hears_of_the_end_while_requests_are_still_answered(capsys: pytest.CaptureFixture[str]) -> None:
    app, told = Echo(), asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = AnnouncingServer(http_config(app, drain_seconds=5, lifespan="off"), "it listens", on_stop=told.set)
        serving = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0)
        async with connected(port) as (reader, writer):
            writer.write(ASKING.replace(b"/echo", b"/slow") + b"body")
            while not app.seen:
                await asyncio.sleep(0)
            server.should_exit = True
            await told.wait()
            app.go.set()
            assert b"200" in await reader.readline()
        await serving

    assert "it listens\n" == capsys.readouterr().out


def test_one_turn_of_the_loop_takes_many_connections() -> None:
    """uvloop's loop, whose turns accept one a listener; with asyncio's own one listener would do."""
    accepted_at: list[int] = []
    turn = 0

    class Counted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted_at.append(turn)
            transport.close()

    async def main() -> None:
        nonlocal turn
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        servers = [await loop.create_server(Counted, sock=one) for one in queues_at(listener)]
        callers = [socket.create_connection(listener.getsockname()) for _ in range(2 * ACCEPTED_PER_TURN)]
        async with asyncio.timeout(10):
            while len(accepted_at) < len(callers):
                turn += 1
                await asyncio.sleep(0)
        for one in [*callers, *servers]:
            one.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())

    assert accepted_at[-1] - accepted_at[0] < ACCEPTED_PER_TURN / 2


NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        pytest.param(1_024, 1_000_000, MANY_FILES, id="the usual limit is raised"),
        pytest.param(1_024, NO_LIMIT, MANY_FILES, id="as far as is of use where there is no other"),
        pytest.param(1_024, 4_096, 4_096, id="as far as it may be"),
        pytest.param(50_000, 1_000_000, 50_000, id="a higher one stays"),
        pytest.param(NO_LIMIT, NO_LIMIT, NO_LIMIT, id="none stays none"),
    ],
)
def test_as_many_files_may_be_open_as_the_system_lets_and_never_fewer_than_before(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, wanted: limits.append(wanted))
    allow_many_connections()
    assert (expected, hard) == limits[-1]


def test_a_system_that_refuses_more_open_files_is_no_reason_not_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, wanted: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (1_024, NO_LIMIT))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_many_connections()


def test_where_hardly_any_file_may_be_open_it_is_told_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (FEW_FILES - 1, FEW_FILES - 1))
    with pytest.raises(ListenError, match="ulimit -n"):
        allow_many_connections()


def test_where_too_few_files_may_be_open_a_listener_is_closed_and_the_reason_told() -> None:
    made: list[socket.socket] = []

    class Scarce(socket.socket):
        def dup(self) -> socket.socket:
            if len(made) == 5:
                raise OSError(errno.EMFILE, "Too many open files")
            made.append(super().dup())
            return made[-1]

    listener = Scarce()
    with pytest.raises(ListenError, match=r"too few files may be open.* ulimit -n"):
        queues_at(listener)
    assert [-1] * 6 == [one.fileno() for one in [listener, *made]]


async def test_who_stops_a_server_stops_all_of_its_listeners() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    queues = queues_at(listener)
    server = uvicorn.Server(http_config(Echo(), drain_seconds=1, lifespan="off"))
    serving = asyncio.create_task(server._serve(queues))
    while not server.started:
        await asyncio.sleep(0)
    async with connected(port) as (reader, writer):
        writer.write(ASKING + b"once")
        assert (await reader.readuntil(b"once")).startswith(b"HTTP/1.1 200")
    server.should_exit = True
    await serving

    assert [-1] * ACCEPTED_PER_TURN == [queue.fileno() for queue in queues]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
