import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from clients._embedding_wire import EmbedOptions, build_embed
from clients.wire import embedding_pb2 as pb
from clients.wire.metadata import EMBEDDING_SERVICE
from clients.wire.rpc.server import AsyncServer
from embedding_service.backend.fake import FakeBackend
from embedding_service.service import running
from embedding_service.settings import Settings
from perf.grpc_client import LOST, OK, RESET, Call, Connection, closed_loop
from tests.embedding_service.conftest import tokenizer_json

__all__ = ["tokenizer_json"]


class Service:
    """Answers what it is sent, but a number with so many bytes, "fail" by failing and "wait" not at all."""

    def __init__(self) -> None:
        self.seen: Counter[bytes] = Counter()

    async def answer(self, request: bytes, context: Any) -> bytes:
        self.seen[request] += 1
        if request == b"fail":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        if request == b"wait":
            await asyncio.Event().wait()
        return bytes(int(request)) if len(request) < 10 and request.isdigit() else request


@contextlib.asynccontextmanager
async def serving(server: Any) -> AsyncIterator[tuple[str, Service]]:
    service = Service()
    method = {"answer": grpc.unary_unary_rpc_method_handler(service.answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", method),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", service
    finally:
        await server.stop(0)


async def asked(connection: Connection, *calls: Call) -> list[str]:
    """How each ended, in the order of *calls*."""
    loop = asyncio.get_running_loop()
    ends: list[asyncio.Future[str]] = [loop.create_future() for _ in calls]
    for call, end in zip(calls, ends, strict=True):
        connection.ask(call, end.set_result)
    async with asyncio.timeout(20):
        return await asyncio.gather(*ends)


async def opened(address: str) -> Connection:
    return await Connection.open("127.0.0.1", int(address.rpartition(":")[2]))


@pytest.mark.parametrize("make", [AsyncServer, grpc.aio.server], ids=["our server", "grpcio's"])
async def test_every_call_is_told_how_it_ended(make: Any) -> None:
    large = bytes(40_000)
    async with serving(make()) as (address, service):
        connection = await opened(address)
        said = await asked(
            connection, *(Call(address, "/s/answer", message) for message in (b"a", b"fail", large, b"3000000", b"", b"b"))
        )
        unknown = await asked(connection, Call(address, "/s/nothing", b"a"))
        connection.close()

    # An answer without a message in it counts as none.
    assert [OK, "8", OK, OK, RESET, OK] == said
    assert ["12"] == unknown
    assert 1 == service.seen[large]


async def test_more_than_the_server_has_room_for_waits_for_its_credit() -> None:
    async with serving(AsyncServer()) as (address, service):
        connection = await opened(address)
        said = await asked(connection, *(Call(address, "/s/answer", bytes([number]) * 60_000) for number in range(100)))
        connection.close()

    assert [OK] * 100 == said
    assert 100 == len(service.seen)


async def test_a_message_beyond_a_streams_window_is_refused_by_the_generator() -> None:
    async with serving(AsyncServer()) as (address, _):
        connection = await opened(address)
        with pytest.raises(ValueError, match="larger than a stream's window"):
            connection.ask(Call(address, "/s/answer", bytes(2**28)), lambda _: None)
        connection.close()


async def test_what_is_under_way_when_the_server_ends_is_lost_and_so_is_what_is_asked_later() -> None:
    async with serving(AsyncServer()) as (address, service):
        connection = await opened(address)
        waiting = asyncio.create_task(asked(connection, Call(address, "/s/answer", b"wait")))
        while not service.seen:
            await asyncio.sleep(0)
        connection.close()
        assert [LOST] == await waiting
        while connection.is_open:
            await asyncio.sleep(0)
        assert [LOST] == await asked(connection, Call(address, "/s/answer", b"a"))


async def test_a_loop_keeps_as_many_under_way_and_counts_texts_and_failures() -> None:
    async with serving(AsyncServer()) as (address, service):
        connection = await opened(address)
        calls = [Call(address, "/s/answer", message) for message in (b"a", b"b", b"fail")]
        result = await closed_loop(connection, calls, texts=2, in_flight=5, seconds=0.3, pids={})
        connection.close()

    assert result.outcomes["200"] == 2 * len(result.latencies) == 2 * (service.seen[b"a"] + service.seen[b"b"])
    assert {"200": result.outcomes["200"], "8": 2 * service.seen[b"fail"]} == dict(result.outcomes)
    assert abs(service.seen[b"a"] - service.seen[b"fail"]) <= 1
    assert result.seconds >= 0.3


async def test_a_loop_ends_when_its_server_does() -> None:
    async with serving(AsyncServer()) as (address, service):
        connection = await opened(address)
        looping = asyncio.create_task(
            closed_loop(connection, [Call(address, "/s/answer", b"wait")], texts=1, in_flight=3, seconds=60)
        )
        while service.seen[b"wait"] < 3:
            await asyncio.sleep(0)
        connection.close()
        result = await looping

    assert {LOST: 3} == dict(result.outcomes)


async def test_the_embedding_service_answers_it_as_it_does_our_client(tokenizer_json: bytes) -> None:
    """What the generator does not read is what the client would have."""
    backend = FakeBackend(tokenizer_json)
    async with running([backend], Settings(grpc_port=0, http_port=0)) as addresses:
        message = build_embed(["w1 w2", "w3"], EmbedOptions())
        connection = await opened(addresses.grpc)
        said = await asked(connection, Call(addresses.grpc, f"/{EMBEDDING_SERVICE}/Embed", message))
        connection.close()
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            answer = pb.EmbedResponse.FromString(await channel.unary_unary(f"/{EMBEDDING_SERVICE}/Embed")(message))

    assert [OK] == said
    assert 2 == len(answer.inputs)
    assert np.isfinite(np.frombuffer(answer.views[0].tensor.data, np.float32)).all()
