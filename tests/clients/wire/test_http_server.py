import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from clients.wire.http_server import AnnouncingServer, HttpBounds, http_config

QUICK = HttpBounds(receive_seconds=0.1, open_ended={"/stream"})
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
async def listening(app: Echo, bounds: HttpBounds = QUICK) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(http_config(app, drain_seconds=1, bounds=bounds, lifespan="off"))
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
