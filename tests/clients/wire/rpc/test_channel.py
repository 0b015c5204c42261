"""The calling end against grpc.aio's server, and against servers written by hand that do what servers should not."""

import asyncio
import gc
import socket
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from clients import InvalidRequest, Tls
from clients._channel import open_async_channel
from clients.wire.rpc import frames as h2
from clients.wire.rpc.channel import AsyncChannel
from clients.wire.rpc.client_call import rpc_error
from clients.wire.rpc.client_connection import Patience
from clients.wire.rpc.connection import Bounds
from clients.wire.rpc.headers import block
from clients.wire.rpc.messages import prefixed
from clients.wire.rpc.sockets import parse_address
from clients.wire.rpc.tls import client_context
from tests.certificates import Authority, Pair
from tests.clients.wire.rpc.peers import HEADERS, OK, Peer, free_port, grpc_server, scripted
from tests.clients.wire.rpc.waiting import refused, until

Code = grpc.StatusCode
SHORT = Patience(connect=2.0, backoff=0.01, max_backoff=0.02, keepalive=0.05, keepalive_timeout=0.05)
BIG = 5 * 1_048_576


@asynccontextmanager
async def opened(address: str, **options: Any) -> AsyncIterator[AsyncChannel]:
    """A channel that leaves no task, timer, transport or stream."""
    channel = AsyncChannel(address, **options)
    known: set[Any] = set()
    remember = channel.remember

    def noted(connection: Any) -> None:
        known.add(connection)
        remember(connection)

    channel.remember = noted  # type: ignore[method-assign]
    try:
        yield channel
    finally:
        await channel.close()
        assert not channel._connections
        assert channel._live is None
        for connection in known:
            assert not connection.streams
            assert not connection._waiting
            assert 0 == connection.num_kept
            assert connection.transport.is_closing()
            assert all(timer is None or timer.cancelled() for timer in (connection._watch, connection._linger))
        assert [] == own_tasks()


def own_tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if "wire/rpc/channel.py" in task.get_coro().cr_code.co_filename]  # type: ignore[union-attr]


def streams(channel: AsyncChannel) -> int:
    return sum(len(connection.streams) for connection in channel._connections)


# grpc.aio's server


async def test_a_call_brings_message_and_metadata_and_its_answer_back() -> None:
    async with grpc_server() as (service, address, _), opened(address) as channel:
        metadata = (("x-request-id", "r1"), ("raw-bin", b"\x00\xff\x80"))
        assert b"abc" == await channel.unary_unary("/s/echo")(b"abc", timeout=5, metadata=metadata)
        assert b"" == await channel.unary_unary("/s/echo")(b"", timeout=float("inf"))
        assert 0 == streams(channel)
        assert "user-agent" in dict(service.metadata)
        assert b"abc" == await channel.unary_unary("/s/echo")(b"abc", metadata=metadata)
        assert set(metadata) <= {(key, value) for key, value in service.metadata}


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_an_error_brings_its_code_message_and_trailing_metadata(code: grpc.StatusCode) -> None:
    message = "100 % schräg:\n☃"
    async with grpc_server() as (_, address, _), opened(address) as channel:
        error = await refused(channel.unary_unary("/s/refuse")(f"{code.value[0]} {message}".encode(), timeout=5))
        assert (code, message) == (error.code(), error.details())
        assert {"retry-after-ms": "7", "raw-bin": b"\x00\xff"} == dict(error.trailing_metadata())  # type: ignore[call-overload]


async def test_a_method_that_is_not_there_is_unimplemented() -> None:
    async with grpc_server() as (_, address, _), opened(address) as channel:
        assert Code.UNIMPLEMENTED is (await refused(channel.unary_unary("/s/other")(b"", timeout=5))).code()
        stream = channel.stream_stream("/s/other")(timeout=5)
        assert Code.UNIMPLEMENTED is (await refused(anext(stream))).code()
        with pytest.raises(asyncio.InvalidStateError):
            await stream.write(b"late")


async def test_what_cannot_travel_fails_its_call_alone() -> None:
    async with grpc_server() as (_, address, _), opened(address) as channel:
        echo = channel.unary_unary("/s/echo")
        for _ in range(2):
            assert Code.INTERNAL is (await refused(echo(b"a", metadata=(("a b", "c"),)))).code()
            with pytest.raises(TypeError):
                await echo("text")
            assert b"a" == await echo(b"a")


async def test_many_answers_come_in_order_to_a_slow_reader() -> None:
    async with grpc_server() as (_, address, _), opened(address) as channel:
        found = []
        async for answer in channel.unary_stream("/s/count")(b"2000", timeout=10):
            found.append(int(answer))
            if not len(found) % 500:
                await asyncio.sleep(0.01)
        assert list(range(2000)) == found


async def test_large_and_many_messages_go_both_ways_at_once_and_wait_for_their_reader() -> None:
    sizes = [BIG, 0, 1, 70_000, BIG, *([100] * 2_000)]
    async with grpc_server() as (_, address, _), opened(address) as channel:
        call = channel.stream_stream("/s/many")(timeout=20)

        async def write() -> None:
            for size in sizes:
                await call.write(bytes(size))
            await call.done_writing()

        writing = asyncio.create_task(write())
        first = await anext(call)
        await asyncio.sleep(0.05)
        assert sizes == [len(first), *[len(message) async for message in call]]
        await writing
        await call.done_writing()
        assert not call.cancel()
        assert 0 == streams(channel)
        assert BIG == len(await channel.unary_unary("/s/echo")(bytes(BIG), timeout=10))


async def test_a_deadline_holds_while_the_server_never_answers_and_reaches_its_handler() -> None:
    async with grpc_server() as (service, address, _), opened(address) as channel:
        assert Code.DEADLINE_EXCEEDED is (await refused(channel.unary_unary("/s/never")(b"", timeout=0.2))).code()
        async with asyncio.timeout(5):
            await service.cancelled.wait()
        assert Code.DEADLINE_EXCEEDED is (await refused(anext(channel.stream_stream("/s/many")(timeout=0.05)))).code()
        assert Code.DEADLINE_EXCEEDED is (await refused(channel.unary_unary("/s/echo")(b"", timeout=0))).code()
        assert 0 == streams(channel)


@pytest.mark.parametrize("name", ["never", "many"])
async def test_who_is_cancelled_has_cancelled_the_handler(name: str) -> None:
    async with grpc_server() as (service, address, _), opened(address) as channel:
        stream = channel.stream_stream("/s/many")()
        waiting: Awaitable[bytes] = channel.unary_unary("/s/never")(b"") if name == "never" else anext(stream)
        task = asyncio.ensure_future(waiting)
        async with asyncio.timeout(5):
            await service.began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await service.cancelled.wait()
        assert 0 == streams(channel)


async def test_a_stream_that_nobody_holds_is_cancelled() -> None:
    async with grpc_server() as (service, address, _), opened(address) as channel:
        await channel.stream_stream("/s/many")().write(b"a")
        async with asyncio.timeout(5):
            await service.cancelled.wait()
        assert 0 == streams(channel)


async def test_five_hundred_calls_at_once_share_a_connection() -> None:
    async with grpc_server() as (_, address, _), opened(address) as channel:
        echo = channel.unary_unary("/s/echo")
        messages = [str(number).encode() for number in range(500)]
        assert messages == await asyncio.gather(*(echo(message, timeout=20) for message in messages))
        assert 1 == len(channel._connections)


def taking(num_calls: int) -> Callable[[Peer], Awaitable[None]]:
    """A server that echoes, and takes so many calls at once and no more. (grpc.aio's refuses those that come as others end.)"""

    async def script(peer: Peer) -> None:
        await peer.greet(max_concurrent_streams=num_calls)
        taken: dict[int, bool] = {}
        while (frame := await peer.read()) is not None:
            if frame.kind == h2.HEADERS:
                taken[frame.stream_id] = b"/s/echo" in frame.payload
                assert len(taken) <= num_calls
            elif frame.kind == h2.RST_STREAM:
                del taken[frame.stream_id]
            elif frame.kind == h2.DATA and taken[frame.stream_id]:
                del taken[frame.stream_id]
                peer.answer(frame.stream_id, frame.payload[5:])

    return script


async def test_calls_wait_where_grpcs_server_takes_two() -> None:
    async with grpc_server(max_concurrent_streams=2) as (_, address, _), opened(address) as channel:
        never = [asyncio.create_task(channel.unary_unary("/s/never")(b"", timeout=0.2)) for _ in range(5)]
        assert {Code.DEADLINE_EXCEEDED} == {(await refused(call)).code() for call in never}


async def test_a_server_gets_no_more_calls_at_once_than_it_takes() -> None:
    async with scripted(taking(2)) as address, opened(address) as channel:
        echo, never = channel.unary_unary("/s/echo"), channel.unary_unary("/s/never")
        messages = [str(number).encode() for number in range(50)]
        assert messages == await asyncio.gather(*(echo(message, timeout=20) for message in messages))
        both = [asyncio.create_task(never(b"")) for _ in range(2)]
        await until(lambda: streams(channel) == 2)
        assert Code.DEADLINE_EXCEEDED is (await refused(echo(b"", timeout=0.05))).code()
        (connection,) = channel._connections
        assert not connection._waiting
        waiting = [asyncio.create_task(echo(b"a")) for _ in range(3)]
        await until(lambda: len(connection._waiting) == 3)
        both[0].cancel()
        assert [b"a"] * 3 == await asyncio.gather(*waiting)
        both[1].cancel()
        await asyncio.wait(both)


async def test_a_place_that_its_waiter_does_not_take_goes_to_the_next() -> None:
    async with scripted(taking(1)) as address, opened(address) as channel:
        echo, never = channel.unary_unary("/s/echo"), channel.unary_unary("/s/never")
        first = asyncio.create_task(never(b""))
        await until(lambda: streams(channel) == 1)
        (connection,) = channel._connections
        second, third = asyncio.create_task(echo(b"b")), asyncio.create_task(echo(b"c"))
        await until(lambda: len(connection._waiting) == 2)
        first.cancel()
        await until(lambda: len(connection._waiting) == 1 or third.done())
        second.cancel()
        assert b"c" == await third
        await asyncio.wait((first, second))
        assert 0 == connection._num_called


async def test_a_waiter_called_and_cancelled_in_one_turn_hands_its_place_on() -> None:
    async with scripted(taking(1)) as address, opened(address) as channel:
        first = asyncio.create_task(channel.unary_unary("/s/never")(b""))
        await until(lambda: streams(channel) == 1)
        (connection,) = channel._connections
        (stream,) = connection.streams.values()
        second, third = (asyncio.create_task(channel.unary_unary("/s/echo")(b"a")) for _ in range(2))
        await until(lambda: len(connection._waiting) == 2)
        stream.cancel()  # type: ignore[attr-defined]
        assert 1 == connection._num_called
        second.cancel()
        assert b"a" == await third
        assert Code.CANCELLED is (await refused(first)).code()
        await asyncio.wait((second,))


async def test_a_server_that_stops_finishes_calls_and_one_that_comes_back_gets_the_next() -> None:
    port = free_port()
    async with opened(f"127.0.0.1:{port}", patience=SHORT) as channel:
        async with grpc_server(f"127.0.0.1:{port}") as (service, _, server):
            held = asyncio.create_task(channel.unary_unary("/s/hold")(b"a", timeout=10))
            async with asyncio.timeout(5):
                await service.began.wait()
            stopping = asyncio.create_task(server.stop(5))
            await until(lambda: channel._live is None)
            assert Code.UNAVAILABLE is (await refused(channel.unary_unary("/s/echo")(b"", timeout=5))).code()
            assert b"a" == await held
            await stopping
        assert Code.UNAVAILABLE is (await refused(channel.unary_unary("/s/echo")(b"", timeout=5))).code()
        async with grpc_server(f"127.0.0.1:{port}"):
            await until(lambda: time.monotonic() > channel._due)
            assert b"b" == await channel.unary_unary("/s/echo")(b"b", timeout=5)


async def test_a_server_that_is_not_there_is_unavailable_at_once_until_the_next_attempt_is_due() -> None:
    async with opened(f"127.0.0.1:{free_port()}", patience=Patience(backoff=30, max_backoff=30)) as channel:
        errors = await asyncio.gather(*(refused(channel.unary_unary("/s/echo")(b"")) for _ in range(3)))
        assert {Code.UNAVAILABLE} == {error.code() for error in errors}
        assert 3 == len({id(error) for error in errors})
        assert 1 == channel._num_failures
        assert "cannot be reached" in str((await refused(anext(channel.unary_stream("/s/count")(b"1")))).details())
        assert 1 == channel._num_failures


async def test_pauses_between_attempts_double_up_to_a_bound() -> None:
    channel = AsyncChannel("127.0.0.1:1", patience=Patience(backoff=1, max_backoff=5))
    pauses = []
    for _ in range(40):
        channel._fail("it is gone")
        pauses.append(channel._due - time.monotonic())
    for expected, pause in zip([1, 2, 4, *[5] * 37], pauses, strict=True):
        assert 0.7 * expected < pause <= 1.2 * expected


async def test_messages_larger_than_they_may_be_are_refused_both_ways() -> None:
    bounds = Bounds(max_message_bytes=1_000)
    async with grpc_server() as (_, address, _), opened(address, bounds=bounds) as channel:
        assert Code.RESOURCE_EXHAUSTED is (await refused(channel.unary_unary("/s/echo")(bytes(1_001)))).code()
        assert 1_000 == len(await channel.unary_unary("/s/echo")(bytes(1_000)))
        call = channel.stream_stream("/s/many")(timeout=5)
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(bytes(1_001))
        assert Code.RESOURCE_EXHAUSTED is (await refused(anext(call))).code()
    async with scripted(answering(bytes(1_001))) as address, opened(address, bounds=bounds) as channel:
        assert Code.RESOURCE_EXHAUSTED is (await refused(channel.unary_unary("/s/echo")(b"", timeout=5))).code()
        assert 0 == streams(channel)


async def test_a_server_is_found_by_its_path(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'socket'}"
    async with grpc_server(address), opened(address) as channel:
        assert b"a" == await channel.unary_unary("/s/echo")(b"a", timeout=5)


async def test_a_server_is_found_by_ip_version_six() -> None:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with grpc_server("[::1]:0") as (_, address, _), opened(address) as channel:
        assert b"a" == await channel.unary_unary("/s/echo")(b"a", timeout=5)


@pytest.mark.parametrize("prefix", ["dns:///", "dns:", "ipv4:"])
async def test_the_authority_is_host_and_port_whatever_stands_before(prefix: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        frame = await peer.until(h2.HEADERS)
        authority.append(frame.payload)
        await peer.until(h2.DATA, flags=h2.END_STREAM)
        peer.answer(frame.stream_id)
        await peer.ended()

    authority: list[bytes] = []
    async with scripted(script) as address, opened(prefix + address) as channel:
        assert b"ok" == await channel.unary_unary("/s/echo")(b"", timeout=5)
        assert block(((":authority", address),)) in authority[0]


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:99999", "host:http", "unix:", "unix://"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_address(address)
    with pytest.raises(InvalidRequest, match="is not"):
        open_async_channel(address, (), None)


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 70])
async def test_a_host_that_cannot_be_a_name_is_unavailable(host: str) -> None:
    async with opened(f"{host}:80") as channel:
        assert Code.UNAVAILABLE is (await refused(channel.unary_unary("/s/echo")(b"", timeout=5))).code()


async def test_closing_cancels_calls_and_what_comes_after() -> None:
    async with grpc_server() as (service, address, _), opened(address) as channel:
        waiting = asyncio.create_task(channel.unary_unary("/s/never")(b""))
        stream = channel.stream_stream("/s/many")()
        await stream.write(b"a")
        assert b"a" == await anext(stream)
        reading = asyncio.create_task(stream.__anext__())
        async with asyncio.timeout(5):
            await service.began.wait()
        await asyncio.sleep(0)
        await channel.close()
        for call in (waiting, reading, channel.unary_unary("/s/echo")(b""), anext(channel.unary_stream("/s/count")(b"1"))):
            assert Code.CANCELLED is (await refused(call)).code()
        with pytest.raises(asyncio.InvalidStateError):
            await stream.write(b"late")
        await channel.close()


# TLS


def server_credentials(pair: Pair, clients: Authority | None = None) -> grpc.ServerCredentials:
    roots = None if clients is None else clients.path.read_bytes()
    pairs = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    return grpc.ssl_server_credentials(pairs, roots, require_client_auth=clients is not None)


async def test_tls_is_for_the_right_authority_and_name(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    async with grpc_server(credentials=server_credentials(authority.issue("service"))) as (_, address, _):
        roots = authority.path.read_bytes()
        async with opened(address, tls=client_context(roots, None, None)) as channel:
            assert BIG == len(await channel.unary_unary("/s/echo")(bytes(BIG), timeout=10))
        async with opened(address, tls=client_context(roots, None, None), server_name="localhost") as channel:
            assert b"a" == await channel.unary_unary("/s/echo")(b"a", timeout=5)
        for root, name in ((other.path.read_bytes(), ""), (roots, "no")):
            async with opened(address, tls=client_context(root, None, None), server_name=name) as channel:
                error = await refused(channel.unary_unary("/s/echo")(b"", timeout=5))
                assert Code.UNAVAILABLE is error.code()
                assert "its certificate is not accepted" in str(error.details())
        async with opened(address) as channel:
            assert Code.UNAVAILABLE is (await refused(channel.unary_unary("/s/echo")(b"", timeout=5))).code()


async def test_mutual_tls_is_for_those_with_a_certificate(tmp_path: Path) -> None:
    authority, ours = Authority(tmp_path), Authority(tmp_path, "ours")
    async with grpc_server(credentials=server_credentials(authority.issue("service"), ours)) as (_, address, _):
        one, stranger, roots = ours.issue("one"), authority.issue("stranger"), authority.path.read_bytes()
        tls = Tls(roots, one.certificate.read_bytes(), one.key.read_bytes())
        channel = open_async_channel(address, (), tls)
        assert b"a" == await channel.unary_unary("/s/echo")(b"a", timeout=5)
        await channel.close()
        for pair in (None, stranger):
            files = (None, None) if pair is None else (pair.certificate.read_bytes(), pair.key.read_bytes())
            async with opened(address, tls=client_context(roots, *files)) as refusing:
                assert Code.UNAVAILABLE is (await refused(refusing.unary_unary("/s/echo")(b"", timeout=5))).code()
        with pytest.raises(InvalidRequest, match="of one another"):
            open_async_channel(address, (), Tls(roots, one.certificate.read_bytes(), stranger.key.read_bytes()))


@pytest.mark.parametrize("roots", [b"", b"\n", b"no PEM", b"\xff"])
def test_roots_that_are_none_are_refused_and_not_the_systems_instead(roots: bytes) -> None:
    with pytest.raises(InvalidRequest):
        open_async_channel("127.0.0.1:1", (), Tls(roots))


# Servers written by hand


def answering(message: bytes = b"ok", num_calls: int = 1) -> Callable[[Peer], Awaitable[None]]:
    """A server that answers so many calls with *message*."""

    async def script(peer: Peer) -> None:
        await peer.greet()
        for _ in range(num_calls):
            peer.answer(await peer.call(), message)
        await peer.ended()

    return script


@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        b"\x00" * 100,
        b"\xff" * 100,
        b"",
        h2.goaway(0, h2.NO_ERROR),
        h2.settings(()) + h2.goaway(0, h2.NO_ERROR),
        h2.settings([(h2.INITIAL_WINDOW_SIZE, 2**31)]),
    ],
)
async def test_what_does_not_speak_http2_is_unavailable_and_not_asked_again_at_once(content: bytes) -> None:
    async def script(peer: Peer) -> None:
        peer.send(content)
        if not content:
            return
        await peer.ended()

    async with scripted(script) as address, opened(address, patience=Patience(backoff=30, max_backoff=30)) as channel:
        for _ in range(3):
            error = await refused(channel.unary_unary("/s/echo")(b"", timeout=5))
            assert Code.UNAVAILABLE is error.code()
            assert "cannot be reached" in str(error.details())
        assert 1 == channel._num_failures


TEXT = block(((":status", "200"), ("content-type", "text/html")))
WEB = block(((":status", "200"), ("content-type", "application/grpc-web")))
DATA = h2.frame(h2.DATA, 0, 1, prefixed(b"ok"))


def heads(content: bytes, flags: int = 0) -> bytes:
    return h2.frame(h2.HEADERS, h2.END_HEADERS | flags, 1, content)


def status(code: int) -> bytes:
    return block(((":status", str(code)),))


LAST = h2.END_STREAM


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (heads(status(404)), Code.UNIMPLEMENTED),
        (heads(status(503)), Code.UNAVAILABLE),
        (heads(status(503), LAST), Code.UNAVAILABLE),
        (heads(status(401), LAST), Code.UNAUTHENTICATED),
        (heads(status(500), LAST), Code.UNKNOWN),
        (heads(block(())), Code.UNKNOWN),
        (heads(TEXT), Code.UNKNOWN),
        (heads(TEXT, LAST), Code.UNKNOWN),
        (heads(WEB), Code.UNKNOWN),
        (heads(HEADERS, LAST), Code.UNKNOWN),
        (heads(HEADERS + block((("grpc-status", "5"), ("grpc-message", "no%20such")))), None),
        (heads(HEADERS + block((("grpc-status", "5"), ("grpc-message", "no")))[:], LAST), Code.NOT_FOUND),
        (heads(HEADERS) + heads(block((("grpc-status", "17"),)), LAST), Code.UNKNOWN),
        (heads(HEADERS) + heads(block((("grpc-status", "9" * 5_000),)), LAST), Code.UNKNOWN),
        (heads(HEADERS) + heads(block((("grpc-status", "x"),)), LAST), Code.UNKNOWN),
        (heads(HEADERS) + heads(OK, LAST), Code.INTERNAL),
        (heads(HEADERS) + DATA + DATA, Code.INTERNAL),
        (heads(HEADERS) + heads(block((("a", "b"),)), LAST), Code.UNKNOWN),
        (heads(HEADERS) + h2.frame(h2.DATA, LAST, 1, prefixed(b"ok")), Code.INTERNAL),
        (heads(HEADERS) + heads(HEADERS), Code.INTERNAL),
        (heads(HEADERS + block([("x", "v" * 100)] * 300)), Code.RESOURCE_EXHAUSTED),
        (heads(HEADERS) + DATA + heads(OK + block([("x", "v" * 100)] * 300), LAST), Code.RESOURCE_EXHAUSTED),
        (DATA, Code.INTERNAL),
        (heads(HEADERS) + h2.frame(h2.DATA, 0, 1, b"\x01\x00\x00\x00\x01a"), Code.INTERNAL),
        (heads(HEADERS) + h2.frame(h2.DATA, 0, 1, b"\x02\x00\x00\x00\x01a"), Code.INTERNAL),
        (h2.rst_stream(1, h2.NO_ERROR), Code.INTERNAL),
        (h2.rst_stream(1, h2.PROTOCOL_ERROR), Code.INTERNAL),
        (h2.rst_stream(1, h2.REFUSED_STREAM), Code.UNAVAILABLE),
        (h2.rst_stream(1, h2.CANCEL), Code.CANCELLED),
        (h2.rst_stream(1, h2.ENHANCE_YOUR_CALM), Code.RESOURCE_EXHAUSTED),
        (h2.rst_stream(1, h2.INADEQUATE_SECURITY), Code.PERMISSION_DENIED),
        (h2.rst_stream(1, 0xFFFFFFFF), Code.INTERNAL),
        (heads(HEADERS) + DATA[:-1], None),
        (heads(status(100)) + heads(HEADERS) + DATA + heads(OK, LAST), Code.OK),
        (heads(HEADERS) + h2.frame(h2.DATA, h2.PADDED, 1, b"\x03" + prefixed(b"ok") + bytes(3)) + heads(OK, LAST), Code.OK),
    ],
)
async def test_an_answer_that_is_wrong_fails_its_call_and_no_other(content: bytes, code: grpc.StatusCode | None) -> None:
    """None: it is not whole, and the server waits or hangs up."""

    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.call()
        peer.send(content)
        if code is None:
            return
        peer.answer(await peer.call())
        await peer.ended()

    async with scripted(script) as address, opened(address) as channel:
        echo = channel.unary_unary("/s/echo")
        if code is Code.OK:
            assert b"ok" == await echo(b"", timeout=5)
        else:
            assert (code or Code.UNAVAILABLE) is (await refused(echo(b"", timeout=5))).code()
        assert 0 == streams(channel)
        if code is not None:
            assert b"ok" == await echo(b"", timeout=5)


@pytest.mark.parametrize(
    "content",
    [
        h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, b"\0\0\0\2" + OK),
        h2.frame(h2.HEADERS, h2.END_HEADERS, 2, HEADERS),
        h2.frame(h2.HEADERS, h2.END_HEADERS, 5, HEADERS),
        h2.frame(h2.HEADERS, h2.END_HEADERS, 0, HEADERS),
        h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff\xff\xff\xff"),
        h2.frame(h2.DATA, 0, 0, b"a"),
        h2.window_update(1, 0),
        h2.window_update(0, 2**31 - 1),
        h2.head(h2.DATA, 0, 1, 2_000_000),
    ],
)
async def test_a_server_that_breaks_the_protocol_loses_the_connection_and_is_told(content: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.call()
        peer.send(content)
        told.append(await peer.until(h2.GOAWAY))
        await peer.ended()

    told: list[h2.Frame] = []
    async with scripted(script) as address, opened(address) as channel:
        assert Code.UNAVAILABLE is (await refused(channel.unary_unary("/s/echo")(b"", timeout=5))).code()
    assert h2.NO_ERROR != h2.read_goaway(told[0].payload)[1]


async def test_who_breaks_the_protocol_and_reads_nothing_lets_no_call_wait() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(initial_window_size=2**31 - 1)
        peer.send(h2.window_update(0, 2**31 - 1 - h2.DEFAULT_WINDOW))
        await peer.until(h2.HEADERS)
        peer.send(h2.window_update(1, 0))
        await over.wait()

    over = asyncio.Event()
    async with scripted(script) as address, opened(address) as channel:
        call = channel.unary_unary("/s/echo")(bytes(20_000_000), timeout=4)
        assert Code.UNAVAILABLE is (await refused(call)).code()
        over.set()


async def test_of_a_server_that_goes_the_calls_it_took_finish_and_the_next_are_another_connections() -> None:
    async def script(peer: Peer) -> None:
        peers.append(peer)
        await peer.greet()
        if len(peers) == 1:
            for _ in range(3):
                await peer.call()
            peer.send(h2.goaway(3, h2.NO_ERROR, b"bye"))
            await again.wait()
            peer.answer(1)
            peer.answer(3)
        else:
            peer.answer(await peer.call(), b"second")
        await peer.ended()

    peers: list[Peer] = []
    again = asyncio.Event()
    async with scripted(script) as address, opened(address) as channel:
        echo = channel.unary_unary("/s/echo")
        calls = [asyncio.create_task(echo(b"", timeout=5)) for _ in range(3)]
        assert Code.UNAVAILABLE is (await refused(calls[2])).code()
        assert b"second" == await echo(b"", timeout=5)
        again.set()
        assert [b"ok", b"ok"] == await asyncio.gather(*calls[:2])
        await until(lambda: 1 == len(channel._connections))


async def test_those_that_wait_for_a_place_leave_a_server_that_goes() -> None:
    async def script(peer: Peer) -> None:
        peers.append(peer)
        await peer.greet(max_concurrent_streams=1)
        await peer.call()
        if len(peers) == 1:
            await leave.wait()
            peer.send(h2.goaway(1, h2.NO_ERROR))
        else:
            peer.answer(1, b"second")
        await peer.ended()

    peers: list[Peer] = []
    leave = asyncio.Event()
    async with scripted(script) as address, opened(address) as channel:
        first = asyncio.create_task(channel.unary_unary("/s/echo")(b""))
        await until(lambda: streams(channel) == 1)
        second = asyncio.create_task(channel.unary_unary("/s/echo")(b"", timeout=5))
        (connection,) = channel._connections
        await until(lambda: connection._waiting)
        leave.set()
        assert b"second" == await second
        first.cancel()
        await asyncio.wait((first,))


async def test_more_places_in_new_settings_call_in_those_that_wait() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(max_concurrent_streams=1)
        await peer.call()
        peer.send(h2.settings([(h2.MAX_CONCURRENT_STREAMS, 3)]))
        for _ in range(2):
            peer.answer(await peer.call())
        peer.answer(1)
        await peer.ended()

    async with scripted(script) as address, opened(address) as channel:
        echo = channel.unary_unary("/s/echo")
        assert [b"ok"] * 3 == await asyncio.gather(*(echo(b"", timeout=5) for _ in range(3)))


async def test_a_deadline_holds_where_a_server_accepts_and_says_nothing() -> None:
    async with scripted(Peer.ended) as address:
        async with opened(address) as channel:
            assert Code.DEADLINE_EXCEEDED is (await refused(channel.unary_unary("/s/echo")(b"", timeout=0.05))).code()
        async with opened(address, patience=Patience(connect=0.05)) as channel:
            assert Code.UNAVAILABLE is (await refused(channel.unary_unary("/s/echo")(b""))).code()
            assert not channel._connections or all(one.is_lost for one in channel._connections)


async def test_a_server_that_falls_silent_is_asked_and_given_up() -> None:
    async def script(peer: Peer) -> None:
        peers.append(peer)
        await peer.greet()
        await peer.ended()

    peers: list[Peer] = []
    async with scripted(script) as address, opened(address, patience=SHORT) as channel:
        error = await refused(channel.unary_unary("/s/echo")(b"", timeout=5))
        assert (Code.UNAVAILABLE, "the server does not answer any more") == (error.code(), error.details())
    assert 1 == [frame.kind for frame in peers[0].frames].count(h2.PING)


async def test_a_server_that_answers_is_asked_twice_and_no_more_until_there_is_something_to_send() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        first = await peer.call()
        for number in (1, 2):
            ping = await peer.until(h2.PING)
            peer.send(h2.frame(h2.PING, h2.ACK, 0, ping.payload))
            assert number == [frame.kind for frame in peer.frames].count(h2.PING)
        assert h2.DATA == (await peer.until(h2.DATA)).kind
        assert 2 == [frame.kind for frame in peer.frames].count(h2.PING)
        peer.answer(first)
        peer.answer(3)
        await peer.ended()

    async with scripted(script) as address, opened(address, patience=SHORT) as channel:
        call = asyncio.create_task(channel.unary_unary("/s/echo")(b"", timeout=5))
        await until(lambda: any(one._pings == 2 and one.heard_at > one._pinged_at for one in channel._connections))
        await asyncio.sleep(4 * SHORT.keepalive)
        assert b"ok" == await channel.unary_unary("/s/echo")(b"", timeout=5)
        assert b"ok" == await call


async def test_a_server_that_is_asked_too_often_is_asked_half_as_often_from_then_on() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.call()
        await leave.wait()
        leave.clear()
        peer.send(h2.goaway(0, h2.ENHANCE_YOUR_CALM, b"too_many_pings"))
        await peer.ended()

    leave = asyncio.Event()
    async with scripted(script) as address, opened(address) as channel:
        for factor in (1, 2):
            call = asyncio.create_task(channel.unary_unary("/s/echo")(b"", timeout=5))
            await until(lambda: channel._live is not None)
            assert channel._live is not None
            assert factor * Patience().keepalive == channel._live.keepalive
            leave.set()
            assert Code.UNAVAILABLE is (await refused(call)).code()


async def test_windows_of_a_byte_let_out_a_byte_at_a_time() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(initial_window_size=1)
        content = b""
        while True:
            frame = await peer.until(h2.DATA)
            content += frame.payload
            assert 1 >= len(frame.payload)
            if frame.flags & h2.END_STREAM:
                break
            peer.send(h2.window_update(frame.stream_id, 1))
        peer.answer(frame.stream_id, content)
        await peer.ended()

    async with scripted(script) as address, opened(address) as channel:
        assert prefixed(b"0123456789") == await channel.unary_unary("/s/echo")(b"0123456789", timeout=5)


async def test_windows_that_change_under_way_hold_for_what_is_still_to_send() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(initial_window_size=1_000, max_frame_size=20_000)
        content = (await peer.until(h2.DATA)).payload
        assert 1_000 == len(content)
        # Below nothing, and up again: what was sent is owed.
        peer.send(h2.settings([(h2.INITIAL_WINDOW_SIZE, 100)]), h2.window_update(1, 900))
        peer.send(h2.settings([(h2.INITIAL_WINDOW_SIZE, 1_000_000)]), h2.window_update(0, 1_000_000))
        while True:
            frame = await peer.until(h2.DATA)
            content += frame.payload
            if frame.flags & h2.END_STREAM:
                break
        assert prefixed(bytes(500_000)) == content
        assert {1_000, 20_000} <= {len(frame.payload) for frame in peer.frames if frame.kind == h2.DATA}
        peer.answer(1)
        await peer.ended()

    async with scripted(script) as address, opened(address) as channel:
        assert b"ok" == await channel.unary_unary("/s/echo")(bytes(500_000), timeout=5)


@pytest.mark.parametrize("trailers", [OK, block((("grpc-status", "8"),))])
async def test_an_answer_before_the_request_is_whole_has_the_rest_reset(trailers: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.until(h2.DATA)
        peer.head(1)
        peer.send(h2.frame(h2.DATA, 0, 1, prefixed(b"early")))
        peer.end(1, trailers)
        await peer.until(h2.RST_STREAM, 1)
        await peer.ended()

    async with scripted(script) as address, opened(address) as channel:
        call = channel.unary_unary("/s/echo")(bytes(200_000), timeout=5)
        if trailers == OK:
            assert b"early" == await call
        else:
            assert Code.RESOURCE_EXHAUSTED is (await refused(call)).code()
        assert 0 == streams(channel)


@pytest.mark.parametrize("ends", [h2.rst_stream(1, h2.CANCEL), h2.goaway(0, h2.NO_ERROR), b"", b"\xff" * 20])
async def test_writers_that_wait_for_room_learn_that_the_call_is_over(ends: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.until(h2.DATA)
        await leave.wait()
        peer.send(ends)
        if ends:
            await peer.ended()

    leave = asyncio.Event()
    async with scripted(script) as address, opened(address) as channel:
        call = channel.stream_stream("/s/many")()
        writers = [asyncio.create_task(call.write(bytes(1_000_000))) for _ in range(2)]
        reading = asyncio.create_task(call.__anext__())
        await until(lambda: streams(channel) == 1)
        leave.set()
        async with asyncio.timeout(5):
            for writer in writers:
                with pytest.raises(asyncio.InvalidStateError):
                    await writer
            code = (await refused(reading)).code()
        assert (Code.CANCELLED if ends[3:4] == b"\x03" else Code.UNAVAILABLE) is code


# Races


async def test_a_stream_begun_by_two_tasks_is_one_stream_and_has_one_reader() -> None:
    async with grpc_server() as (_, address, _), opened(address) as channel:
        call = channel.stream_stream("/s/many")(timeout=5)
        reading = asyncio.create_task(call.__anext__())
        await call.write(b"a")
        assert b"a" == await reading
        assert 1 == streams(channel)
        reading = asyncio.create_task(call.__anext__())
        await asyncio.sleep(0)
        with pytest.raises(asyncio.InvalidStateError):
            await anext(call)
        await call.done_writing()
        with pytest.raises(StopAsyncIteration):
            await reading


async def test_who_is_cancelled_while_connecting_does_not_end_the_others_attempt() -> None:
    async def script(peer: Peer) -> None:
        await greet.wait()
        await answering()(peer)

    greet = asyncio.Event()
    async with scripted(script) as address, opened(address) as channel:
        first, second = (asyncio.create_task(channel.unary_unary("/s/echo")(b"", timeout=5)) for _ in range(2))
        stream = channel.stream_stream("/s/many")()
        third = asyncio.create_task(stream.write(b"a"))
        await until(lambda: channel._connections)
        first.cancel()
        assert stream.cancel()
        assert not stream.cancel()
        assert Code.CANCELLED is (await refused(third)).code()
        greet.set()
        assert b"ok" == await second
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_an_attempt_that_fails_with_nobody_waiting_is_told_to_the_next() -> None:
    async def script(peer: Peer) -> None:
        await leave.wait()
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.ended()

    leave = asyncio.Event()
    async with scripted(script) as address, opened(address, patience=Patience(backoff=30, max_backoff=30)) as channel:
        first = asyncio.create_task(channel.unary_unary("/s/echo")(b""))
        await until(lambda: channel._connections)
        first.cancel()
        await asyncio.wait((first,))
        leave.set()
        await until(lambda: channel._connecting is None)
        assert "HTTP/2" in str((await refused(channel.unary_unary("/s/echo")(b""))).details())


async def test_after_a_failed_attempt_nobody_waits_for_another_to_time_out() -> None:
    patience = Patience(connect=0.05, again=0.01, backoff=0.001)
    async with scripted(Peer.ended) as address, opened(address, patience=patience) as channel:
        call = channel.unary_unary("/s/echo")
        assert Code.UNAVAILABLE is (await refused(call(b""))).code()
        channel._patience = replace(patience, connect=30.0)
        await until(lambda: time.monotonic() > channel._due)
        assert "no connection in time" in str((await refused(call(b""))).details())
        assert channel._connecting is not None


async def test_closing_while_connecting_cancels_those_that_wait() -> None:
    async with scripted(Peer.ended) as address, opened(address) as channel:
        call = asyncio.create_task(channel.unary_unary("/s/echo")(b""))
        reading = asyncio.create_task(channel.unary_stream("/s/count")(b"1").__anext__())
        await until(lambda: channel._connections)
        await channel.close()
        assert {Code.CANCELLED} == {(await refused(one)).code() for one in (call, reading)}


async def test_closing_does_not_wait_for_a_server_that_stopped_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(initial_window_size=2**31 - 1)
        peer.send(h2.window_update(0, 2**31 - 1 - h2.DEFAULT_WINDOW))
        await over.wait()

    monkeypatch.setattr("clients.wire.rpc.channel._CLOSE_SECONDS", 0.05)
    over = asyncio.Event()
    async with scripted(script) as address:
        async with opened(address) as channel:
            call = asyncio.create_task(channel.unary_unary("/s/echo")(bytes(60_000_000)))
            await until(lambda: any(one._is_paused for one in channel._connections))
            await channel.close()
            assert Code.CANCELLED is (await refused(call)).code()
            assert not channel._connections
        over.set()


# What is left


@pytest.mark.parametrize("kind", ["unary", "stream", "deadline", "unreachable", "lost"])
async def test_a_call_that_failed_leaves_nothing_to_the_collector(kind: str) -> None:
    async def fail(channel: AsyncChannel) -> "weakref.ref[BaseException]":
        call: Awaitable[Any]
        if kind == "stream":
            call = channel.unary_stream("/s/refuse")(b"5 no").__anext__()
        elif kind == "deadline":
            call = channel.unary_unary("/s/never")(b"", timeout=0.01)
        else:
            call = channel.unary_unary("/s/refuse")(b"5 no")
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return weakref.ref(error)
        raise AssertionError("it did not fail")

    async with grpc_server() as (_, address, server):
        target = f"127.0.0.1:{free_port()}" if kind == "unreachable" else address
        async with opened(target) as channel:
            if kind not in {"unreachable", "lost"}:
                await channel.unary_unary("/s/echo")(b"")
            if kind == "lost":
                await server.stop(None)
            gc.disable()
            try:
                found = await fail(channel)
                await asyncio.sleep(0)
                assert found() is None
            finally:
                gc.enable()


def test_an_error_is_one_of_grpcs() -> None:
    error = rpc_error(Code.NOT_FOUND, "no", (("a", "b"), (":status", "200"), ("grpc-status", "5")))
    assert isinstance(error, grpc.RpcError)
    assert (Code.NOT_FOUND, "no", [("a", "b")]) == (error.code(), error.details(), list(error.trailing_metadata()))
