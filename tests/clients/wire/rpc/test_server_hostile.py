"""Callers that break the rules, by raw sockets: the server stays up, stays small, and answers a good caller meanwhile."""

import asyncio
import contextlib
import logging
import random
import resource
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from clients.wire.rpc import frames as h2
from clients.wire.rpc.connection import Bounds
from clients.wire.rpc.headers import block
from clients.wire.rpc.messages import prefixed
from clients.wire.rpc.server import AsyncServer, Patience
from clients.wire.rpc.tls import client_context, server_context
from tests.certificates import Authority
from tests.clients.wire.rpc.waiting import until

OWN: Any = [("grpc.use_local_subchannel_pool", 1)]
QUICK = Patience(receive=0.3, send=0.5, goodbye=0.2, close=0.2, sweep=0.05)
BEGIN = h2.PREFACE + h2.settings(())


def asking(path: str = "/s/echo", *more: tuple[str, str], method: str = "POST", content: str = "application/grpc") -> bytes:
    """A request's header block."""
    return block(((":method", method), (":scheme", "http"), (":path", path), ("content-type", content), *more))


def headers(stream_id: int, content: bytes | None = None, flags: int = h2.END_HEADERS) -> bytes:
    return h2.frame(h2.HEADERS, flags, stream_id, asking() if content is None else content)


def data(stream_id: int, content: bytes, flags: int = h2.END_STREAM) -> bytes:
    return h2.frame(h2.DATA, flags, stream_id, content)


class Service:
    """Handlers, and how many of them are at work at most."""

    def __init__(self) -> None:
        self.num_running = 0
        self.most_running = 0

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def large(self, request: bytes, context: Any) -> bytes:
        return bytes(int(request))

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await asyncio.Event().wait()
        finally:
            self.num_running -= 1
        return request

    async def each(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def deaf(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return await self.wait(b"", context)

    def handler(self) -> grpc.GenericRpcHandler:
        methods: dict[str, Any] = {n: grpc.unary_unary_rpc_method_handler(getattr(self, n)) for n in ("echo", "large", "wait")}
        methods["each"] = grpc.stream_stream_rpc_method_handler(self.each)
        methods["deaf"] = grpc.stream_unary_rpc_method_handler(self.deaf)
        return grpc.method_handlers_generic_handler("s", methods)


class Attacked:
    """A server under attack."""

    def __init__(self, server: AsyncServer, service: Service, port: int, caplog: pytest.LogCaptureFixture) -> None:
        self.server, self.service, self.port, self.caplog = server, service, port, caplog

    @contextlib.asynccontextmanager
    async def connected(self, first: bytes = BEGIN) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(20):
                writer.write(first)
                yield reader, writer
        finally:
            writer.transport.abort()

    async def ending(self, *parts: bytes, first: bytes = BEGIN) -> list[h2.Frame]:
        """All that the server says until it hangs up."""
        loop = asyncio.get_running_loop()
        received = bytearray()
        # No transport: it throws away what is unread as soon as a write fails, and the server's last word with it.
        with socket.create_connection(("127.0.0.1", self.port)) as peer:
            peer.setblocking(False)

            async def send() -> None:
                for part in (first, *parts):
                    await loop.sock_sendall(peer, part)

            async with asyncio.timeout(20):
                sending = asyncio.create_task(send())
                with contextlib.suppress(ConnectionError):
                    while got := await loop.sock_recv(peer, 65_536):
                        received.extend(got)
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await sending
        return list(h2.FrameReader(2**24).feed(bytes(received)))

    async def answers(self, *parts: bytes, until: Callable[[list[h2.Frame]], bool]) -> list[h2.Frame]:
        """What the server says until it is enough."""
        found: list[h2.Frame] = []
        reader_of_frames = h2.FrameReader(2**24)
        async with self.connected() as (reader, writer):
            for part in parts:
                writer.write(part)
            while not until(found):
                got = await reader.read(65_536)
                assert got, "the server hung up"
                found.extend(reader_of_frames.feed(got))
        return found


@pytest.fixture
async def attacked(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Attacked]:
    """A server of small patience; a good caller is answered at its side before and after. Bounds come as the parameter."""
    caplog.set_level(logging.WARNING)
    more: dict[str, Any] = getattr(request, "param", {})
    server, service = AsyncServer(**({"patience": QUICK} | more)), Service()
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel:
        good = channel.unary_unary("/s/echo")
        assert await good(b"x", timeout=10) == b"x"
        yield Attacked(server, service, port, caplog)
        assert await good(b"x", timeout=10) == b"x"
    await server.stop(None)
    assert not server.running
    assert not server.connections
    assert server.num_open == 0
    assert service.num_running == 0
    assert not [record for record in caplog.records if record.name.startswith(("clients", "asyncio"))]


def goodbye(found: list[h2.Frame]) -> int | None:
    """The code that the connection ended with."""
    codes = [h2.read_goaway(one.payload)[1] for one in found if one.kind == h2.GOAWAY]
    return codes[-1] if codes else None


def resets(found: list[h2.Frame]) -> dict[int, int]:
    """Codes by stream."""
    return {one.stream_id: h2.read_u32(one.payload) for one in found if one.kind == h2.RST_STREAM}


# What is no HTTP/2


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", bytes(24), h2.PREFACE[:-1] + b"X"],
    ids=["http1", "tls", "zeros", "nearly"],
)
async def test_what_is_not_http2_is_hung_up_on(attacked: Attacked, first: bytes) -> None:
    assert goodbye(await attacked.ending(first=first)) is None


@pytest.mark.parametrize(
    "first",
    [
        b"",
        h2.PREFACE[:9],
        BEGIN + b"\0\0",
        BEGIN + headers(1)[:-3],
        BEGIN + headers(1, flags=0),
        BEGIN + headers(1) + h2.head(h2.DATA, 0, 1, 9_999),
    ],
    ids=["nothing", "half a preface", "half a head", "half of headers", "no continuation", "half of data"],
)
async def test_what_never_comes_whole_is_not_waited_for(attacked: Attacked, first: bytes) -> None:
    await attacked.ending(first=first)


async def test_headers_that_trickle_in_do_not_buy_time(attacked: Attacked) -> None:
    async with attacked.connected(BEGIN + headers(1, flags=0)) as (reader, writer):
        ended = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            while not ended.done():
                writer.write(h2.frame(h2.CONTINUATION, 0, 1, b"\0"))
                await asyncio.sleep(0.02)
        with contextlib.suppress(ConnectionError):
            await ended


async def test_a_long_upload_whose_frames_straddle_what_is_read_goes_on(attacked: Attacked) -> None:
    """Each part ends within a frame, and the next one ends that frame: nothing is late."""
    whole = headers(1, asking("/s/each")) + b"".join(data(1, prefixed(b"%03d" % number), 0) for number in range(60))
    async with attacked.connected() as (reader, writer):
        start = len(headers(1, asking("/s/each"))) + 5
        writer.write(whole[:start])
        for place in range(start, len(whole), 17):
            await asyncio.sleep(0.015)
            writer.write(whole[place : place + 17])
        writer.write(data(1, b""))
        got = b""
        while prefixed(b"059") not in got:
            got += await reader.read(65_536)


@pytest.mark.parametrize("attacked", [{"max_running": 4}], indirect=True)
@pytest.mark.parametrize("begun", [b"", prefixed(b"never whole")[:-1]])
async def test_requests_that_never_come_whole_take_no_room_for_long(attacked: Attacked, begun: bytes) -> None:
    streams = range(1, 9, 2)
    content = b"".join(headers(number) + (data(number, begun, 0) if begun else b"") for number in streams)
    async with attacked.connected() as (reader, writer):
        writer.write(content)
        while attacked.server.num_open < 4:
            await asyncio.sleep(0.001)
        assert attacked.server.is_full
        while attacked.server.num_open:
            await asyncio.sleep(0.01)
        writer.write(headers(9) + data(9, prefixed(b"whole")))
        got = b""
        while prefixed(b"whole") not in got:
            got += await reader.read(65_536)


async def test_a_request_whose_parts_keep_coming_is_waited_for(attacked: Attacked) -> None:
    message = prefixed(b"bit by bit")
    async with attacked.connected() as (reader, writer):
        writer.write(headers(1))
        for place in range(len(message)):
            await asyncio.sleep(QUICK.receive / 4)
            writer.write(data(1, message[place : place + 1], h2.END_STREAM if place == len(message) - 1 else 0))
        got = b""
        while message not in got:
            got += await reader.read(65_536)


# What breaks HTTP/2

WRONG = {
    "headers without a stream": (headers(0), h2.PROTOCOL_ERROR),
    "an even stream": (headers(2), h2.PROTOCOL_ERROR),
    "data of no stream": (data(0, b"x"), h2.PROTOCOL_ERROR),
    "data before headers": (data(1, b"x"), h2.PROTOCOL_ERROR),
    "reset before headers": (h2.rst_stream(5, 0), h2.PROTOCOL_ERROR),
    "credit before headers": (h2.window_update(5, 1), h2.PROTOCOL_ERROR),
    "credit of nothing": (h2.window_update(0, 0), h2.PROTOCOL_ERROR),
    "credit overflow": (h2.window_update(0, h2.MAX_WINDOW), h2.FLOW_CONTROL_ERROR),
    "credit overflow of a stream": (headers(1) + h2.window_update(1, h2.MAX_WINDOW), h2.FLOW_CONTROL_ERROR),
    "padding": (headers(1) + data(1, b"\xff" + bytes(9), h2.PADDED), h2.PROTOCOL_ERROR),
    "padding of headers": (headers(1, b"\xff" + bytes(9), h2.END_HEADERS | h2.PADDED), h2.PROTOCOL_ERROR),
    "a frame too large": (h2.head(h2.DATA, 0, 1, 2**24 - 1), h2.FRAME_SIZE_ERROR),
    "a push": (h2.frame(h2.PUSH_PROMISE, 4, 1, bytes(9)), h2.PROTOCOL_ERROR),
    "interrupted headers": (headers(1, flags=0) + h2.frame(h2.PING, 0, 0, bytes(8)), h2.PROTOCOL_ERROR),
    "continuation of nothing": (h2.frame(h2.CONTINUATION, 4, 1, b""), h2.PROTOCOL_ERROR),
    "a block that is none": (headers(1, b"\xff" * 40), h2.COMPRESSION_ERROR),
    "data after the end": (headers(1, asking("/s/wait")) + data(1, prefixed(b"x")) + data(1, b"x"), h2.STREAM_CLOSED),
    "a ping of a wrong size": (h2.frame(h2.PING, 0, 0, b"x"), h2.FRAME_SIZE_ERROR),
    "settings of a wrong size": (h2.frame(h2.SETTINGS, 0, 0, b"x"), h2.FRAME_SIZE_ERROR),
    "a window that there is not": (h2.settings([(h2.INITIAL_WINDOW_SIZE, 2**31)]), h2.FLOW_CONTROL_ERROR),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_breaks_the_protocol_ends_the_connection_and_says_why(attacked: Attacked, name: str) -> None:
    content, code = WRONG[name]
    assert goodbye(await attacked.ending(content)) == code


async def test_more_data_than_there_is_credit_for_ends_the_connection(attacked: Attacked) -> None:
    content = headers(1, asking("/s/deaf")) + data(1, prefixed(bytes(1_000_000)), 0) * 9
    assert goodbye(await attacked.ending(content)) == h2.FLOW_CONTROL_ERROR


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (data(1, struct.pack(">BI", 0, 2**32 - 1)), "8"),
        (data(1, b"\x80\0\0\0\1x"), "13"),
        (data(1, b"\1\0\0\0\1x"), "13"),
        (data(1, b"\0\0"), "13"),
        (data(1, prefixed(b"x") + b"\0\0"), "13"),
        (data(1, prefixed(b"x") * 2), "13"),
        (data(1, b""), "13"),
    ],
    ids=["four gigabytes", "reserved flag", "not told how compressed", "half a head", "a head too many", "two", "none"],
)
async def test_requests_that_are_none_are_told_so_and_the_connection_lives(
    attacked: Attacked, content: bytes, status: str
) -> None:
    ping = h2.frame(h2.PING, 0, 0, b"12345678")
    found = await attacked.answers(headers(1) + content + ping, until=lambda found: any(one.kind == h2.PING for one in found))
    (answer,) = [one for one in found if one.kind == h2.HEADERS]
    assert b"grpc-status" + bytes((len(status),)) + status.encode() in answer.payload


@pytest.mark.parametrize(
    "content",
    [
        asking(content="text/plain"),
        asking(path=""),
        asking(method="GET"),
        block([(":method", "POST")]),
    ],
    ids=["content type", "no path", "method", "no fields"],
)
async def test_requests_that_are_not_grpc_are_refused_as_http(attacked: Attacked, content: bytes) -> None:
    found = await attacked.answers(headers(1, content), until=lambda found: 1 in resets(found))
    assert any(b"415" in one.payload for one in found if one.kind == h2.HEADERS)


async def test_an_encoding_that_is_not_known_is_unimplemented(attacked: Attacked) -> None:
    content = headers(1, asking("/s/echo", ("grpc-encoding", "snappy")))
    found = await attacked.answers(content, until=lambda found: any(one.kind == h2.HEADERS for one in found))
    assert any(b"grpc-status\x0212" in one.payload for one in found)


async def test_streams_that_go_back_are_not_answered(attacked: Attacked) -> None:
    ping = h2.frame(h2.PING, 0, 0, b"12345678")
    first = headers(5) + data(5, prefixed(b"x")) + headers(3) + ping
    found = await attacked.answers(first, until=lambda found: any(one.kind == h2.PING for one in found))
    assert not [one for one in found if one.stream_id == 3]


# Floods

FLOODS = {
    "empty data": headers(1, asking("/s/deaf")) + data(1, b"", 0) * 30_000,
    "pings": h2.frame(h2.PING, 0, 0, bytes(8)) * 30_000,
    "settings": h2.settings([(h2.INITIAL_WINDOW_SIZE, 1)]) * 30_000,
    "priorities": h2.frame(h2.PRIORITY, 0, 1, bytes(5)) * 30_000,
    "empty continuations": headers(1, flags=0) + h2.frame(h2.CONTINUATION, 0, 1) * 30_000,
    "continuations": headers(1, flags=0) + h2.frame(h2.CONTINUATION, 0, 1, bytes(999)) * 200,
    "a header bomb": headers(1, b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4_000 + b"\xbe" * 9_000),
    "streams that go back": headers(5) + headers(3) * 30_000,
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_the_connection(attacked: Attacked, name: str) -> None:
    assert goodbye(await attacked.ending(FLOODS[name])) == h2.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("waiting", ["nothing", "a call's trailers"])
async def test_metadata_that_are_too_large_end_their_call_and_no_other(attacked: Attacked, waiting: str) -> None:
    large = asking("/s/echo", *((f"x-{n}", "v" * 100) for n in range(300)))
    begun = headers(1, asking("/s/wait"), h2.END_HEADERS) + data(1, prefixed(b"x"))
    third = h2.header_frames(large, 3, 0, 16_384) if waiting == "nothing" else headers(3) + h2.header_frames(large, 3, 1, 16_384)
    fourth = headers(5) + data(5, prefixed(b"abc"))

    found = await attacked.answers(
        begun + third + fourth, until=lambda frames: any(one.stream_id == 5 and one.flags & 1 for one in frames)
    )

    assert not [one for one in found if one.stream_id == 1 or one.kind == h2.GOAWAY]
    of_third = [(one.kind, b"grpc-status\x018" in one.payload) for one in found if one.stream_id == 3]
    assert of_third == ([(h2.HEADERS, True), (h2.RST_STREAM, False)] if waiting == "nothing" else [(h2.RST_STREAM, False)])
    assert any(one.kind == h2.DATA and one.payload == prefixed(b"abc") for one in found if one.stream_id == 5)


# With patience: what arrives in one piece keeps a busy machine longer than the quick one waits for the rest of a frame.
@pytest.mark.parametrize("attacked", [{"patience": Patience()}], indirect=True)
async def test_calls_that_are_begun_and_given_up_at_once_are_bounded(attacked: Attacked) -> None:
    one = asking("/s/wait")
    content = b"".join(
        headers(number, one) + data(number, prefixed(b"x")) + h2.rst_stream(number, h2.CANCEL) for number in range(1, 50_000, 2)
    )
    assert goodbye(await attacked.ending(content)) == h2.ENHANCE_YOUR_CALM
    assert attacked.service.most_running <= attacked.server.bounds.max_streams


async def test_settings_that_change_many_streams_count_for_more(attacked: Attacked) -> None:
    one = asking("/s/wait")
    opened = b"".join(headers(number, one) for number in range(1, 8_000, 2))
    many = h2.settings([(h2.INITIAL_WINDOW_SIZE, 1), (h2.INITIAL_WINDOW_SIZE, 2)] * 80_000)[9:]
    changes = h2.frame(h2.SETTINGS, 0, 0, many[:999_996]) + h2.settings([(h2.INITIAL_WINDOW_SIZE, 1)]) * 400
    assert goodbye(await attacked.ending(opened + changes)) == h2.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("attacked", [{"bounds": Bounds(max_streams=4)}, {"max_running": 4}], indirect=True)
async def test_more_streams_than_may_be_are_refused(attacked: Attacked) -> None:
    content = b"".join(headers(number, asking("/s/wait")) for number in range(1, 21, 2))
    found = await attacked.answers(content, until=lambda found: len(resets(found)) == 6)
    assert resets(found) == dict.fromkeys(range(9, 21, 2), h2.REFUSED_STREAM)


@pytest.mark.parametrize("attacked", [{"max_connections": 5}], indirect=True)
async def test_more_connections_than_may_be_are_hung_up_on(attacked: Attacked) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            reader, _ = await stack.enter_async_context(attacked.connected())
            assert await reader.readexactly(h2.HEAD_BYTES)
        for _ in range(20):
            with contextlib.suppress(ConnectionError):
                async with attacked.connected() as (reader, _):
                    assert not await reader.read()
        assert len(attacked.server.connections) == 5


@pytest.mark.parametrize("attacked", [{"bounds": Bounds()}], indirect=True)
async def test_many_small_messages_in_one_frame_take_time_in_proportion(attacked: Attacked) -> None:
    """A million bytes of empty messages: cutting each off the rest would copy a hundred gigabytes."""
    content = headers(1, asking("/s/each")) + h2.window_update(0, 2**30) + h2.window_update(1, 2**30)
    async with attacked.connected(BEGIN + content + data(1, prefixed(b"") * 200_000)) as (reader, _):
        num_bytes = 0
        while num_bytes < 200_000 * (h2.HEAD_BYTES + 5):
            num_bytes += len(got := await reader.read(2**20))
            assert got


@pytest.mark.parametrize("message", [b"", b"x" * 9_000], ids=["empty", "not empty"])
async def test_a_stream_that_nobody_reads_is_not_credited(attacked: Attacked, message: bytes) -> None:
    part = data(1, prefixed(message) * (900_000 // (5 + len(message))), 0)
    assert goodbye(await attacked.ending(headers(1, asking("/s/deaf")), *[part] * 8)) == h2.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("attacked", [{"bounds": Bounds()}], indirect=True)
async def test_what_is_packed_small_and_becomes_large_is_not_unpacked_before_it_is_read(attacked: Attacked) -> None:
    packed = zlib.compress(bytes(60 * 1_048_576), 9)
    one = struct.pack(">BI", 1, len(packed)) + packed
    content = headers(1, asking("/s/deaf", ("grpc-encoding", "deflate"))) + data(1, one * 10, 0) + data(1, one * 10, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with attacked.connected(BEGIN + content + h2.frame(h2.PING, 0, 0, b"12345678")) as (reader, _):
        await reader.readuntil(b"12345678")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


# Who does not read


async def test_who_reads_nothing_is_hung_up_on(attacked: Attacked) -> None:
    """Its windows are wide open, and its socket is full."""
    wide = h2.settings([(h2.INITIAL_WINDOW_SIZE, h2.MAX_WINDOW)]) + h2.window_update(0, 2**30)
    calls = b"".join(headers(number, asking("/s/large")) + data(number, prefixed(b"8000000")) for number in range(1, 9, 2))
    async with attacked.connected(BEGIN) as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(wide + calls)
        await until(lambda: len(attacked.server.connections) == 2)
        await until(lambda: len(attacked.server.connections) == 1)


async def test_who_asks_and_never_reads_the_answers_is_hung_up_on(attacked: Attacked) -> None:
    bad = asking(content="text/plain")
    async with attacked.connected(BEGIN) as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError):
            for number in range(1, 2_000_000, 2):
                writer.write(headers(number, bad))
                if number % 1_000 == 1:
                    await writer.drain()
                    await asyncio.sleep(0)
                if len(attacked.server.connections) == 1 and number > 2_000:
                    break
        await until(lambda: len(attacked.server.connections) == 1)


@pytest.mark.parametrize("attacked", [{"bounds": Bounds(max_unsent_bytes=5_000_000)}], indirect=True)
async def test_answers_that_are_not_taken_are_bounded(attacked: Attacked) -> None:
    calls = b"".join(headers(number, asking("/s/large")) + data(number, prefixed(b"1000000")) for number in range(1, 21, 2))
    await attacked.ending(calls)


@pytest.mark.parametrize("attacked", [{"bounds": Bounds()}], indirect=True)
async def test_a_deadline_ends_a_call_whose_answer_is_not_taken(attacked: Attacked) -> None:
    call = headers(1, asking("/s/each", ("grpc-timeout", "50m"))) + data(1, prefixed(bytes(900_000)), 0)
    found = await attacked.answers(call, until=lambda found: 1 in resets(found))
    assert resets(found) == {1: h2.CANCEL}
    assert attacked.server.num_open == 0


@pytest.mark.parametrize("more", [(), (("grpc-timeout", "50m"),)], ids=["at length", "by its deadline"])
async def test_an_answer_that_nobody_takes_ends(attacked: Attacked, more: tuple[tuple[str, str], ...]) -> None:
    call = headers(1, asking("/s/large", *more)) + data(1, prefixed(b"1000000"))
    assert {1: h2.CANCEL} == resets(await attacked.answers(call, until=lambda found: 1 in resets(found)))


WIDE = h2.settings([(h2.INITIAL_WINDOW_SIZE, h2.MAX_WINDOW)]) + h2.window_update(0, 2**30)


@contextlib.asynccontextmanager
async def asking_by_tls(
    tmp_path: Path, patience: Patience, *sizes: int
) -> AsyncIterator[tuple[AsyncServer, asyncio.StreamReader]]:
    """A caller of a server who has asked for answers of *sizes*, gives all the credit for them, and has a small buffer."""
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    server, service = AsyncServer(patience=patience), Service()
    server.add_generic_rpc_handlers((service.handler(),))
    context = server_context(pair.certificate.read_bytes(), pair.key.read_bytes(), None, is_asked=False)
    port = server.add_secure_port("127.0.0.1:0", context)
    await server.start()
    trusting = client_context(authority.path.read_bytes(), None, None)
    calls = (headers(2 * n + 1, asking("/s/large")) + data(2 * n + 1, prefixed(b"%d" % size)) for n, size in enumerate(sizes))
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.setblocking(False)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        reader, writer = await asyncio.open_connection(sock=peer, ssl=trusting, server_hostname="localhost")
        try:
            async with asyncio.timeout(30):
                writer.write(h2.PREFACE + WIDE + b"".join(calls))
                await reader.readexactly(h2.HEAD_BYTES)
                yield server, reader
        finally:
            writer.transport.abort()
            await server.stop(None)
    assert 0 == server.num_open


@pytest.mark.parametrize("sizes", [4 * [8_000_000], [4_000_000]], ids=["very much", "what the kernel has room for"])
async def test_who_reads_nothing_by_tls_is_hung_up_on(tmp_path: Path, sizes: list[int]) -> None:
    async with asking_by_tls(tmp_path, QUICK, *sizes) as (server, reader):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: not server.connections)


async def test_who_reads_slowly_by_tls_is_let_go_on(tmp_path: Path) -> None:
    """By far not as much in the time that is allowed as the transport below TLS takes before it has room again."""
    async with asking_by_tls(tmp_path, QUICK, 8_000_000, 8_000_000) as (server, reader):
        for _ in range(12):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(QUICK.send / 3)
            reader._transport.resume_reading()  # type: ignore[attr-defined]
            await reader.readexactly(200_000)
        assert server.connections


@pytest.mark.parametrize("attacked", [{"bounds": Bounds(max_control_frames=50)}], indirect=True)
async def test_who_measures_with_a_ping_after_each_answer_is_no_flood(attacked: Attacked) -> None:
    credit = h2.window_update(0, 1_000) + h2.window_update(1, 1_000) + h2.frame(h2.PING, 0, 0, b"12345678")
    call = headers(1, asking("/s/large")) + data(1, prefixed(b"1000000"))
    async with attacked.connected(BEGIN + call) as (reader, writer):
        await reader.readexactly(60_000)
        for _ in range(200):
            writer.write(credit)
            await reader.readuntil(b"12345678")


async def test_calls_on_their_way_when_the_server_stops_are_answered_and_later_ones_refused(attacked: Attacked) -> None:
    """The caller learns of the stop in two steps: what it sends between them still counts (RFC 9113, 6.8)."""

    def call(number: int) -> bytes:
        return headers(number) + data(number, prefixed(b"x"))

    service = Service()
    server = AsyncServer(patience=Patience(goodbye=10))
    server.add_generic_rpc_handlers((service.handler(),))
    stopped = Attacked(server, service, server.add_insecure_port("127.0.0.1:0"), attacked.caplog)
    await server.start()
    found: list[h2.Frame] = []
    frames = h2.FrameReader(2**24)
    async with stopped.connected(BEGIN + headers(1, asking("/s/wait")) + data(1, prefixed(b"x"))) as (reader, writer):

        async def read(is_enough: Callable[[], bool]) -> None:
            while not is_enough():
                found.extend(frames.feed(await reader.read(65_536)))

        await until(lambda: service.num_running == 1)
        stopping = asyncio.create_task(server.stop(0.5))
        await read(lambda: any(one.kind == h2.PING for one in found))
        (ping,) = [one for one in found if one.kind == h2.PING]
        writer.write(call(3) + h2.frame(h2.PING, h2.ACK, 0, ping.payload) + call(5))
        await read(lambda: 5 in resets(found))
        await stopping
        with contextlib.suppress(ConnectionError):
            found.extend(frames.feed(await reader.read()))
    last = [h2.read_goaway(one.payload)[:2] for one in found if one.kind == h2.GOAWAY]
    assert last == [(h2.MAX_STREAM_ID, h2.NO_ERROR), (3, h2.NO_ERROR)]
    assert resets(found)[5] == h2.REFUSED_STREAM
    statuses = {one.stream_id: one.payload for one in found if one.kind == h2.HEADERS}
    assert b"grpc-status\x010" in statuses[3]
    assert b"grpc-status\x0214" in statuses[1]
    assert not server.connections


# Anything


def noise(rng: random.Random) -> bytes:
    """Frames that are nearly right."""
    parts: list[bytes] = []
    paths = ["/s/echo", "/s/each", "/s/wait", "/s/deaf", "/s/none", ""]
    next_id = 1
    for _ in range(rng.randrange(1, 40)):
        stream_id = rng.choice([next_id, max(1, next_id - 2), max(1, next_id - 2), rng.randrange(12)])
        kind = rng.randrange(12)
        if kind <= 3:
            more = rng.choice([(), (("grpc-timeout", rng.choice(["1n", "5m", "x", "99999999H"])),), (("x-bin", "!"),)])
            flags = rng.choice([4, 4, 4, 5, 0, 12, 36])
            parts.append(headers(next_id if rng.random() < 0.8 else stream_id, asking(rng.choice(paths), *more), flags))
            next_id += 2
        elif kind <= 6:
            content = rng.choice([prefixed(b"x"), prefixed(bytes(3_000)), b"", b"\0\0", rng.randbytes(9)])
            parts.append(data(stream_id, content, rng.choice([0, 0, 1, 1, 8])))
        elif kind == 7:
            parts.append(h2.rst_stream(stream_id, rng.randrange(14)))
        elif kind == 8:
            parts.append(h2.window_update(rng.choice([0, stream_id]), rng.choice([1, 9_999, 2**20])))
        elif kind == 9:
            setting = rng.choice([(4, 0), (4, 65_535), (4, 2**20), (5, 16_384), (3, 1), (99, 5)])
            parts.append(h2.settings([setting]))
        else:
            payload = rng.choice([b"", rng.randbytes(8), rng.randbytes(5), rng.randbytes(40)])
            parts.append(h2.frame(rng.randrange(14), rng.choice([0, 1, 4, 255]), rng.choice([0, stream_id]), payload))
    return b"".join(parts)


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_that_comes_is_an_error_of_ours_or_leaves_a_task(attacked: Attacked, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(10):
        content = noise(rng)
        cuts = sorted(rng.randrange(len(content) + 1) for _ in range(rng.randrange(5)))
        async with attacked.connected(BEGIN) as (_, writer):
            with contextlib.suppress(ConnectionError):
                for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
                    writer.write(content[start:stop])
                    await writer.drain()
                    for _ in range(3):
                        await asyncio.sleep(0)
    await until(lambda: len(attacked.server.connections) == 1)
    await until(lambda: not attacked.server.running)
    assert attacked.server.num_open == 0
