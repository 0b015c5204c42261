import asyncio
import contextlib
import itertools
import logging
import os
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from clients.wire.rpc.connection import Bounds
from clients.wire.rpc.server import AsyncServer, Patience
from clients.wire.rpc.tls import server_context
from tests.certificates import Authority
from tests.clients.wire.rpc.waiting import refused, until

LARGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
OWN: Any = [("grpc.use_local_subchannel_pool", 1), *LARGE]
MIB = 1_048_576


class Service:
    """Handlers of every kind, and what they saw."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.num_running = 0
        self.num_written = 0
        self.num_read = 0
        self.seen: dict[str, Any] = {}
        self.noted: set[bytes] = set()

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def note(self, request: bytes, context: Any) -> bytes:
        self.noted.add(request)
        await asyncio.sleep(0)
        return request

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.num_running += 1
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.num_running -= 1
        return request

    async def told(self, request: bytes, context: Any) -> bytes:
        self.seen = {
            "metadata": [tuple(pair) for pair in context.invocation_metadata()],
            "remaining": context.time_remaining(),
            "peer": context.peer(),
        }
        await context.send_initial_metadata((("first", "1"), ("first-bin", b"\0\xff")))
        context.set_trailing_metadata((("last", "2"), ("last-bin", b"\xfe")))
        return request

    async def abort(self, request: bytes, context: Any) -> bytes:
        number = int(request)
        code = next(code for code in grpc.StatusCode if code.value[0] == number)
        return await context.abort(code, f"über {number}%", (("why", "so"),))  # type: ignore[no-any-return]

    async def set_code(self, request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("not here")
        return request

    async def fail(self, request: bytes, context: Any) -> bytes:
        raise KeyError("the secret")

    async def bad_trailers(self, request: bytes, context: Any) -> bytes:
        return await context.abort(grpc.StatusCode.INTERNAL, "x", (("bad key", "x"),))  # type: ignore[no-any-return]

    async def bad_head(self, request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("ok", "\n"),))
        return request

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def count_by_writing(self, request: bytes, context: Any) -> None:
        for number in range(int(request)):
            await context.write(b"%d" % number)

    async def sum(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"%d" % sum([int(request) async for request in requests])

    async def sum_by_reading(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        total = 0
        while (request := await context.read()) is not grpc.aio.EOF:
            total += int(request)
        return b"%d" % total

    async def each(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            self.num_read += 1
            yield request

    async def each_by_hand(self, requests: AsyncIterator[bytes], context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    async def flood(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.began.set()
        try:
            while True:
                self.num_written += 1
                yield bytes(int(request))
        finally:
            self.cancelled.set()

    async def read_none(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self.began.set()
        await self.go.wait()
        total = 0
        async for request in requests:
            total += len(request)
        return b"%d" % total

    async def bad_answer(self, request: bytes, context: Any) -> Any:
        return 7

    def handler(self) -> grpc.GenericRpcHandler:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        names = ("echo", "wait", "told", "abort", "set_code", "fail", "bad_trailers", "bad_head")
        methods: dict[str, Any] = {name: unary(getattr(self, name)) for name in names}
        methods |= {name: stream(getattr(self, name)) for name in ("count", "count_by_writing", "flood")}
        methods["noted"] = unary(self.note)
        methods["parsed"] = unary(self.echo, request_deserializer=bytes.decode, response_serializer=str.encode)
        methods["bad_answer"] = unary(self.bad_answer, response_serializer=str.encode)
        methods |= {n: grpc.stream_unary_rpc_method_handler(getattr(self, n)) for n in ("sum", "sum_by_reading", "read_none")}
        methods |= {name: grpc.stream_stream_rpc_method_handler(getattr(self, name)) for name in ("each", "each_by_hand")}
        return grpc.method_handlers_generic_handler("s", methods)


@contextlib.asynccontextmanager
async def serving(service: Service, interceptors: Any = (), **more: Any) -> AsyncIterator[int]:
    server = AsyncServer(interceptors, **more)
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)
        assert not server.running
        assert not server.connections
        assert server.num_open == 0


@contextlib.asynccontextmanager
async def serving_one(name: str, handler: Any) -> AsyncIterator[tuple[AsyncServer, Any]]:
    """A server of the one method, /s/*name*, and a channel of grpcio's to it."""
    server = AsyncServer()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel:
        yield server, channel
    await server.stop(None)


@contextlib.asynccontextmanager
async def calling(interceptors: Any = (), **more: Any) -> AsyncIterator[tuple[Service, grpc.aio.Channel]]:
    """A served service, and a channel of grpcio's to it."""
    service = Service()
    async with (
        serving(service, interceptors, **more) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel,
    ):
        yield service, channel


async def settled(number: Callable[[], int]) -> int:
    """*number* once it has stayed the same for a while."""
    async with asyncio.timeout(20):
        while True:
            before = number()
            await asyncio.sleep(0.1)
            if number() == before:
                return before


# Answers


async def test_all_four_kinds_of_handlers_are_called() -> None:
    async with calling() as (_, channel):
        assert await channel.unary_unary("/s/echo")(b"x") == b"x"
        assert await channel.unary_unary("/s/parsed")(b"x") == b"x"
        for name in ("count", "count_by_writing"):
            assert [answer async for answer in channel.unary_stream(f"/s/{name}")(b"3")] == [b"0", b"1", b"2"]
        for name in ("sum", "sum_by_reading"):
            assert await channel.stream_unary(f"/s/{name}")(iter([b"1", b"2"])) == b"3"
            assert await channel.stream_unary(f"/s/{name}")(iter([])) == b"0"
        for name in ("each", "each_by_hand"):
            call = channel.stream_stream(f"/s/{name}")()
            for request in (b"a", b"", b"c"):
                await call.write(request)
                assert await call.read() == request
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK


async def test_a_blocking_client_is_answered_too() -> None:
    def ask(port: int) -> tuple[bytes, list[bytes], bytes, list[bytes]]:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel:
            return (
                channel.unary_unary("/s/echo")(b"x"),
                list(channel.unary_stream("/s/count")(b"2")),
                channel.stream_unary("/s/sum")(iter([b"1", b"2"])),
                list(channel.stream_stream("/s/each")(iter([b"a", b"b"]))),
            )

    async with serving(Service()) as port:
        assert await asyncio.to_thread(ask, port) == (b"x", [b"0", b"1"], b"3", [b"a", b"b"])


async def test_metadata_travel_both_ways() -> None:
    async with calling() as (service, channel):
        call = channel.unary_unary("/s/told")(b"x", metadata=(("key", "v"), ("key-bin", b"\0\x80")), timeout=50)
        assert await call == b"x"
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
    assert (initial["first"], initial["first-bin"]) == ("1", b"\0\xff")
    assert (trailing["last"], trailing["last-bin"]) == ("2", b"\xfe")
    assert ("key", "v") in service.seen["metadata"]
    assert ("key-bin", b"\0\x80") in service.seen["metadata"]
    # gRPC's own client rounds a timeout up to three digits.
    assert 0 < service.seen["remaining"] <= 50.1
    assert service.seen["peer"].startswith("ipv4:127.0.0.1:")


async def test_a_call_without_a_deadline_has_no_time_remaining() -> None:
    async with calling() as (service, channel):
        await channel.unary_unary("/s/told")(b"x")
    assert service.seen["remaining"] is None


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=lambda code: code.name)
async def test_a_handler_aborts_with_any_code(code: grpc.StatusCode) -> None:
    async with calling() as (_, channel):
        number = int(code.value[0])
        error = await refused(channel.unary_unary("/s/abort")(b"%d" % number))
    assert (error.code(), error.details()) == (code, f"über {number}%")
    assert ("why", "so") in tuple(error.trailing_metadata())


async def test_aborting_with_ok_is_unknown() -> None:
    async with calling() as (_, channel):
        assert (await refused(channel.unary_unary("/s/abort")(b"0"))).code() is grpc.StatusCode.UNKNOWN


async def test_a_status_that_is_set_ends_the_call() -> None:
    async with calling() as (_, channel):
        error = await refused(channel.unary_unary("/s/set_code")(b"x"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "not here")


@pytest.mark.parametrize("name", ["fail", "bad_trailers", "bad_head", "bad_answer"])
async def test_what_a_handler_raises_is_logged_and_told_to_nobody(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with calling() as (_, channel):
        error = await refused(channel.unary_unary(f"/s/{name}")(b"x"))
        assert await channel.unary_unary("/s/echo")(b"x") == b"x"
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert "secret" not in str(error.details())
    assert "Traceback" in caplog.text


async def test_a_request_that_cannot_be_parsed_is_internal() -> None:
    async with calling() as (_, channel):
        assert (await refused(channel.unary_unary("/s/parsed")(b"\xff"))).code() is grpc.StatusCode.INTERNAL


async def test_an_unknown_method_is_unimplemented() -> None:
    async with calling() as (_, channel):
        for path in ("/s/none", "/t/echo", "/"):
            assert (await refused(channel.unary_unary(path)(b"x"))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_service_that_raises_when_asked_for_a_handler_fails_its_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> None:
            if handler_call_details.method == "/broken":
                raise KeyError("broken")

    server = AsyncServer()
    service = Service()
    server.add_generic_rpc_handlers((Broken(), service.handler()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel:
        waiting = asyncio.ensure_future(channel.unary_unary("/s/wait")(b"x"))
        await service.began.wait()
        assert (await refused(channel.unary_unary("/broken")(b"x"))).code() is grpc.StatusCode.UNKNOWN
        service.go.set()
        assert await waiting == b"x"
    await server.stop(None)
    assert "could not say who handles" in caplog.text


# Time, and giving up


async def test_a_deadline_cancels_the_handler() -> None:
    async with calling() as (service, channel):
        error = await refused(channel.unary_unary("/s/wait")(b"x", timeout=0.1))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await service.cancelled.wait()
        assert service.num_running == 0


async def test_a_caller_that_gives_up_cancels_the_handler() -> None:
    async with calling() as (service, channel):
        for begin in (channel.unary_unary("/s/wait"), channel.unary_stream("/s/flood")):
            call = begin(b"9")
            await service.began.wait()
            call.cancel()
            await service.cancelled.wait()
            service.began.clear()
            service.cancelled.clear()


async def test_what_a_handler_does_at_its_end_is_not_cancelled_a_second_time() -> None:
    done = asyncio.Event()
    cleaned = asyncio.Event()

    async def careful(request: bytes, context: Any) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            await done.wait()
            cleaned.set()
        return b""

    async with serving_one("careful", grpc.unary_unary_rpc_method_handler(careful)) as (server, channel):
        await refused(channel.unary_unary("/s/careful")(b"x", timeout=0.05))
        for connection in list(server.connections):
            connection.abort("it breaks while the handler cleans up")
        await until(lambda: not server.connections)
        done.set()
        async with asyncio.timeout(10):
            await cleaned.wait()


async def test_a_callback_that_fails_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[bool] = []

    async def handle(request: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda _: 1 // 0)
        context.add_done_callback(lambda context: seen.append(context.done()))
        return request

    async with serving_one("handle", grpc.unary_unary_rpc_method_handler(handle)) as (_, channel):
        assert await channel.unary_unary("/s/handle")(b"x") == b"x"
    assert seen == [True]
    assert "a callback of a gRPC call failed" in caplog.text


# Many, large, compressed


async def test_a_thousand_calls_at_a_time() -> None:
    async with calling() as (service, channel):
        calls = [asyncio.ensure_future(channel.unary_unary("/s/wait")(b"%d" % number)) for number in range(1_000)]
        await until(lambda: service.num_running == 1_000)
        service.go.set()
        assert await asyncio.gather(*calls) == [b"%d" % number for number in range(1_000)]


async def test_large_messages_travel_both_ways() -> None:
    large = os.urandom(MIB) * 20
    async with calling() as (_, channel):
        assert await channel.unary_unary("/s/echo")(large) == large
        call = channel.stream_stream("/s/each")(iter([large, b"x"]))
        assert [answer async for answer in call] == [large, b"x"]


async def test_a_message_above_the_bound_is_refused_and_the_connection_lives() -> None:
    async with calling(bounds=Bounds(max_message_bytes=1_000)) as (_, channel):
        for packing in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            error = await refused(channel.unary_unary("/s/echo")(bytes(1_001), compression=packing))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            error = await refused(channel.stream_unary("/s/sum")(iter([bytes(1_001)]), compression=packing))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(await channel.unary_unary("/s/echo")(bytes(1_000))) == 1_000


@pytest.mark.parametrize("packing", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_read(packing: grpc.Compression) -> None:
    async with calling() as (_, channel):
        assert await channel.unary_unary("/s/echo")(b"x" * 9_999, compression=packing) == b"x" * 9_999
        answers = channel.stream_stream("/s/each")(iter([b"a" * 999, b"b" * 999]), compression=packing)
        assert [answer async for answer in answers] == [b"a" * 999, b"b" * 999]


async def test_a_caller_that_does_not_read_stops_the_handler() -> None:
    async with calling() as (service, channel):
        call = channel.unary_stream("/s/flood")(b"100000")
        assert await call.read() == bytes(100_000)
        stopped_at = await settled(lambda: service.num_written)
        for _ in range(stopped_at):
            await call.read()
        await until(lambda: service.num_written > stopped_at)
        call.cancel()
        await service.cancelled.wait()


async def test_a_handler_that_does_not_read_stops_its_caller() -> None:
    async with calling(bounds=Bounds(stream_window=262_144)) as (service, channel):
        call = channel.stream_unary("/s/read_none")()
        num_sent = 0

        async def send() -> None:
            nonlocal num_sent
            for _ in range(400):
                await call.write(bytes(100_000))
                num_sent += 1
            await call.done_writing()

        sending = asyncio.create_task(send())
        await service.began.wait()
        assert await settled(lambda: num_sent) < 400
        service.go.set()
        await sending
        assert await call == b"40000000"


async def test_two_writers_of_one_handler_both_go_on_when_there_is_room() -> None:
    async def both(request: bytes, context: Any) -> None:
        async def write(content: bytes) -> None:
            for _ in range(40):
                await context.write(content * 100_000)

        await asyncio.gather(write(b"a"), write(b"b"))

    async with serving_one("both", grpc.unary_stream_rpc_method_handler(both)) as (_, channel), asyncio.timeout(20):
        assert len([answer async for answer in channel.unary_stream("/s/both")(b"")]) == 80


async def test_more_calls_than_are_worked_on_are_refused() -> None:
    async with calling(max_running=3) as (service, channel):
        calls = [asyncio.ensure_future(channel.unary_unary("/s/wait")(b"x")) for _ in range(3)]
        await until(lambda: service.num_running == 3)
        error = await refused(channel.unary_unary("/s/echo")(b"x", timeout=5))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        service.go.set()
        assert await asyncio.gather(*calls) == [b"x"] * 3


# Interceptors


class Noting(grpc.aio.ServerInterceptor):
    def __init__(self, name: str, seen: list[str]) -> None:
        self._name, self._seen = name, seen

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self._seen.append(f"{self._name} {handler_call_details.method}")
        return await continuation(handler_call_details)


class Replacing(grpc.aio.ServerInterceptor):
    def __init__(self, handler: Any) -> None:
        self._handler = handler

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return self._handler


async def test_interceptors_are_asked_in_their_order() -> None:
    seen: list[str] = []
    async with calling([Noting("a", seen), Noting("b", seen)]) as (_, channel):
        assert await channel.unary_unary("/s/echo")(b"x") == b"x"
    assert seen == ["a /s/echo", "b /s/echo"]


async def test_an_interceptor_replaces_the_handler_also_by_one_of_another_kind() -> None:
    async def deny(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")

    async with calling([Replacing(grpc.unary_unary_rpc_method_handler(deny))]) as (_, channel):
        call = channel.stream_stream("/s/each")()
        await call.write(b"x")
        for one in (channel.unary_unary("/s/echo")(b"x"), channel.stream_unary("/s/sum")(iter([b"1"])), call.read()):
            assert (await refused(one)).code() is grpc.StatusCode.PERMISSION_DENIED
    many = grpc.stream_stream_rpc_method_handler(Service().each)
    async with calling([Replacing(many)]) as (_, channel):
        assert await channel.unary_unary("/s/echo")(b"x") == b"x"


async def test_an_interceptor_that_fails_or_finds_no_handler_ends_the_call(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            raise KeyError("the secret")

    async with calling([Broken()]) as (_, channel):
        error = await refused(channel.unary_unary("/s/echo")(b"x"))
        assert (error.code(), "secret" in str(error.details())) == (grpc.StatusCode.UNKNOWN, False)
    assert "the secret" in caplog.text
    async with calling([Replacing(None)]) as (_, channel):
        assert (await refused(channel.unary_unary("/s/echo")(b"x"))).code() is grpc.StatusCode.UNIMPLEMENTED


# Health, and ports


async def test_grpcios_health_servicer_is_served() -> None:
    server, health = AsyncServer(), health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)  # type: ignore[arg-type]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    serving_, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await health.set("x", serving_)
        assert (await stub.Check(health_pb2.HealthCheckRequest(service="x"))).status == serving_
        assert (await refused(stub.Check(health_pb2.HealthCheckRequest(service="y")))).code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="x"))
        assert (await watch.read()).status == serving_
        await health.set("x", not_serving)
        assert (await watch.read()).status == not_serving
        watch.cancel()
    await server.stop(None)


async def test_several_ports_and_a_path_are_listened_on_at_once(tmp_path: Path) -> None:
    server, path = AsyncServer(), tmp_path / "s"
    service = Service()
    server.add_generic_rpc_handlers((service.handler(),))
    ports = [server.add_insecure_port(f"{host}:0") for host in ("127.0.0.1", "0.0.0.0", "localhost")]
    assert server.add_insecure_port(f"unix:{path}") == 0
    await server.start()
    for address in (*(f"127.0.0.1:{port}" for port in ports[:2]), f"localhost:{ports[2]}", f"unix:{path}"):
        async with grpc.aio.insecure_channel(address, options=OWN) as channel:
            assert await channel.unary_unary("/s/told")(b"x") == b"x"
    assert service.seen["peer"].startswith("unix:")
    await server.stop(None)
    assert not path.exists()


async def test_all_addresses_of_both_kinds_are_listened_on() -> None:
    server = AsyncServer()
    server.add_generic_rpc_handlers((Service().handler(),))
    try:
        port = server.add_insecure_port("[::]:0")
    except RuntimeError:
        pytest.skip("this machine has no IPv6")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel:
        assert await channel.unary_unary("/s/echo")(b"x") == b"x"
    await server.stop(None)


async def test_a_port_that_is_taken_is_told_at_once_also_where_its_owner_did_not_start() -> None:
    first, second = AsyncServer(), AsyncServer()
    port = first.add_insecure_port("127.0.0.1:0")
    for address in (f"127.0.0.1:{port}", "nonsense", "127.0.0.1:99999", "unix:/no/such/folder/s"):
        with pytest.raises(RuntimeError) as caught:
            second.add_insecure_port(address)
        assert isinstance(caught.value.__cause__, OSError | ValueError)
    await first.stop(None)
    await second.stop(None)


async def test_a_path_that_another_server_took_over_is_left_to_it(tmp_path: Path) -> None:
    first, second, path = AsyncServer(), AsyncServer(), tmp_path / "s"
    first.add_insecure_port(f"unix:{path}")
    await first.start()
    second.add_insecure_port(f"unix:{path}")
    await first.stop(None)
    assert path.exists()
    await second.stop(None)
    assert not path.exists()


async def test_tls_with_and_without_certificates_of_callers(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = authority.issue("server"), authority.issue("caller")
    roots = authority.path.read_bytes()
    server = AsyncServer()
    server.add_generic_rpc_handlers((Service().handler(),))
    pair = (ours.certificate.read_bytes(), ours.key.read_bytes())
    open_port = server.add_secure_port("127.0.0.1:0", server_context(*pair, None, is_asked=False))
    closed_port = server.add_secure_port("127.0.0.1:0", server_context(*pair, roots, is_asked=True))
    await server.start()
    anybody = grpc.ssl_channel_credentials(roots)
    known = grpc.ssl_channel_credentials(roots, theirs.key.read_bytes(), theirs.certificate.read_bytes())
    large = bytes(5 * MIB)
    for port, who in ((open_port, anybody), (closed_port, known)):
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", who, options=OWN) as channel:
            assert await channel.unary_unary("/s/echo")(large) == large
    async with grpc.aio.secure_channel(f"127.0.0.1:{closed_port}", anybody, options=OWN) as channel:
        assert (await refused(channel.unary_unary("/s/echo")(b"x", timeout=5))).code() is grpc.StatusCode.UNAVAILABLE
    context = ssl.create_default_context(cadata=roots.decode())
    context.set_alpn_protocols(["http/1.1", "h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", open_port, ssl=context)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    await server.stop(None)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_certificates_that_are_none_are_a_value_error(part: int, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    parts = [pair.certificate.read_bytes(), pair.key.read_bytes(), authority.path.read_bytes()]
    parts[part] = b"none"
    with pytest.raises(ValueError, match="must be PEM"):
        server_context(parts[0], parts[1], parts[2], is_asked=True)


# Stopping


@contextlib.asynccontextmanager
async def started() -> AsyncIterator[tuple[AsyncServer, Service, grpc.aio.Channel]]:
    server, service = AsyncServer(patience=Patience(goodbye=0.5, close=0.2)), Service()
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel:
        yield server, service, channel
        await server.stop(None)
        assert not server.connections
        assert not server.running


async def test_calls_under_way_are_finished_and_new_ones_refused() -> None:
    async with started() as (server, service, channel):
        # A connection that ended before is not the end of them all.
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        await until(lambda: len(server.connections) == 1)
        writer.close()
        await until(lambda: not server.connections)
        call = asyncio.ensure_future(channel.unary_unary("/s/wait")(b"x"))
        await service.began.wait()
        stopping = asyncio.create_task(server.stop(30))
        assert await server.wait_for_termination(0) is True
        error = await refused(channel.unary_unary("/s/late")(b"x", timeout=10))
        # Until the caller answers the first goodbye its calls still count.
        assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED}
        assert not stopping.done()
        service.go.set()
        assert await call == b"x"
        await stopping
        assert await server.wait_for_termination(1) is False
        assert (await refused(channel.unary_unary("/s/echo")(b"x", timeout=10))).code() is grpc.StatusCode.UNAVAILABLE


def port_of(server: AsyncServer) -> int:
    return int(server._servers[0].sockets[0].getsockname()[1])


async def test_after_the_grace_handlers_are_cancelled_and_callers_told() -> None:
    async with started() as (server, service, channel):
        calls = [asyncio.ensure_future(channel.unary_unary("/s/wait")(b"x")) for _ in range(3)]
        blocked = channel.unary_stream("/s/flood")(b"1000000")
        await until(lambda: service.num_running == 3)
        await service.began.wait()
        await server.stop(0.1)
        for call in (*calls, drained(blocked)):
            assert (await refused(call)).code() is grpc.StatusCode.UNAVAILABLE
        assert service.num_running == 0
        assert service.cancelled.is_set()


async def drained(call: Any) -> None:
    async for _ in call:
        pass


async def test_calls_that_race_with_the_stop_are_answered_or_were_never_begun() -> None:
    async with started() as (server, service, channel):
        echo, numbers = channel.unary_unary("/s/noted"), itertools.count()
        outcomes: dict[bytes, grpc.StatusCode] = {}

        async def hammer() -> None:
            while True:
                request = b"%d" % next(numbers)
                try:
                    assert await echo(request, timeout=20) == request
                except grpc.aio.AioRpcError as error:
                    outcomes[request] = error.code()
                    return
                outcomes[request] = grpc.StatusCode.OK

        hammering = [asyncio.create_task(hammer()) for _ in range(50)]
        await until(lambda: len(outcomes) > 500)
        await server.stop(20)
        await asyncio.gather(*hammering)
    answered = {request for request, code in outcomes.items() if code is grpc.StatusCode.OK}
    assert answered == service.noted
    assert set(outcomes.values()) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}


async def test_blocking_callers_that_race_with_the_stop_are_answered_or_refused() -> None:
    server = AsyncServer(patience=Patience(close=0.2))
    server.add_generic_rpc_handlers((Service().handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    codes: list[grpc.StatusCode] = []
    count = itertools.count()
    begun = threading.Event()

    def hammer() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel:
            echo = channel.unary_unary("/s/echo")
            while True:
                try:
                    echo(b"x", timeout=20)
                except grpc.RpcError as error:
                    codes.append(error.code())
                    return
                if next(count) > 200:
                    begun.set()

    threads = [asyncio.to_thread(hammer) for _ in range(4)]
    hammering = asyncio.gather(*threads)
    await asyncio.to_thread(begun.wait)
    await server.stop(20)
    await hammering
    assert codes == [grpc.StatusCode.UNAVAILABLE] * 4


async def test_stopping_twice_or_before_the_start_or_at_once_is_fine(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    await AsyncServer().stop(1)
    async with started() as (server, service, channel):
        call = asyncio.ensure_future(channel.unary_unary("/s/wait")(b"x"))
        await service.began.wait()
        patient = asyncio.create_task(server.stop(60))
        await asyncio.sleep(0)
        await server.stop(None)
        await patient
        assert (await refused(call)).code() is grpc.StatusCode.UNAVAILABLE
        await server.stop(5)
    assert not caplog.records


async def test_an_idle_connection_does_not_hold_up_the_stop() -> None:
    async with started() as (server, _, channel):
        assert await channel.unary_unary("/s/echo")(b"x") == b"x"
        async with asyncio.timeout(20):
            await server.stop(1_000)
        assert not server.connections


async def test_nothing_is_left_of_a_server_that_stopped() -> None:
    before = asyncio.all_tasks()
    async with started() as (server, _, channel):
        assert await channel.unary_unary("/s/echo")(b"x") == b"x"
        await server.stop(5)
    await until(lambda: not {task for task in asyncio.all_tasks() - before if "AsyncServer" in repr(task)})


async def test_a_stop_does_not_wait_for_a_handler_that_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    begun, over = asyncio.Event(), asyncio.Event()

    async def stubborn(request: bytes, context: Any) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await over.wait()
        return request

    server = AsyncServer(patience=Patience(close=0.05))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("s", {"stubborn": grpc.unary_unary_rpc_method_handler(stubborn)}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN) as channel:
        call = channel.unary_unary("/s/stubborn")(b"")
        await begun.wait()
        await server.stop(None)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    assert "1 handlers of gRPC calls go on" in caplog.text
    over.set()
    await asyncio.wait(server.running)
