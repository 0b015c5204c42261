"""Every route and RPC of the embedding service asks for a key, and the right one."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from clients.wire import embedding_pb2 as pb
from clients.wire.guard import Refusal
from clients.wire.guarded_http import OPEN, RouteTable
from clients.wire.http_server import Shortcuts
from clients.wire.keys import SCOPES, KeysFile, Scope, add_key, revoke_keys
from embedding_service.backend.fake import FakeBackend
from embedding_service.bert_as_service import BertAsService
from embedding_service.bert_http import BertAsServiceEdge
from embedding_service.guarding import ROUTES, RPCS
from embedding_service.http import HttpEdge
from embedding_service.service import Addresses
from embedding_service.settings import Settings
from embedding_service.tei import TeiEdge
from tests.embedding_service.conftest import Start
from tests.routes import routes_of

METHODS = pb.DESCRIPTOR.services_by_name["EmbeddingService"].methods


def all_routes() -> set[tuple[str, str]]:
    """Those of the application that `service.running` puts together; none of them is called."""
    nobody: Any = None
    tei = TeiEdge(nobody, is_ready=bool, max_body_bytes=1, default_timeout=1)
    bert = BertAsServiceEdge(BertAsService.__new__(BertAsService), nobody, max_body_bytes=1)
    more: list[Route] = [*tei.routes(), *bert.routes()]
    edge = HttpEdge(
        nobody,
        registry=CollectorRegistry(),
        is_ready=bool,
        info=dict,
        max_body_bytes=1,
        default_timeout=1,
        more_routes=more,
    )
    app: Any = edge.app()
    assert isinstance(app, Shortcuts)
    return set(routes_of(app._app.routes))


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def keys(keys_file: Path) -> dict[str, str]:
    """A key a scope, and those that are good for nothing."""
    made: dict[str, str] = {scope: add_key(keys_file, scope, (scope,)) for scope in sorted(SCOPES)}
    good = made["admin"]
    return {
        **made,
        "late": add_key(keys_file, "late", ("admin",), datetime.now(UTC) - timedelta(seconds=1)),
        "foreign": add_key(keys_file.with_name("other"), "ann", ("admin",)),
        "wrong": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "none": "",
    }


BAD = ("late", "foreign", "wrong", "none")


@pytest.fixture
async def service(start: Start, tokenizer_json: bytes, keys_file: Path, keys: dict[str, str]) -> Addresses:
    return await start(FakeBackend(tokenizer_json), keys_file=keys_file, auth_failures_per_minute=1e6)


def metadata(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),) if key else ()


def test_every_route_is_in_the_table_and_the_table_has_no_other() -> None:
    table, found = RouteTable(ROUTES), all_routes()

    assert not {(method, path) for method, path in found if isinstance(table.needed(method, path), Refusal)}
    assert {path for _, path in found} == ROUTES.keys()


def test_every_rpc_is_in_the_table_and_the_table_has_no_other() -> None:
    full = pb.DESCRIPTOR.services_by_name["EmbeddingService"].full_name

    assert {f"/{full}/{method.name}" for method in METHODS} == RPCS.keys()


async def test_every_route_but_health_refuses_all_keys_but_its_own_and_admin(service: Addresses, keys: dict[str, str]) -> None:
    table, opened = RouteTable(ROUTES), set()
    async with httpx.AsyncClient(base_url=service.http) as http:

        async def status(method: str, path: str, name: str) -> int:
            headers = {"authorization": f"Bearer {keys[name]}"} if keys[name] else {}
            return (await http.request(method, re.sub(r"\{\w+\}", "fake", path), headers=headers)).status_code

        for method, path in sorted(all_routes()):
            needed = table.needed(method, path)
            if needed is OPEN:
                opened.add(path)
                assert 200 == await status(method, path, "none")
                continue
            assert isinstance(needed, str)
            assert {401} == {await status(method, path, name) for name in BAD}, path
            assert {403} == {await status(method, path, scope) for scope in SCOPES - {needed, "admin"}}, path
            assert not {await status(method, path, name) for name in (needed, "admin")} & {401, 403}, path
    assert {"/healthz", "/readyz", "/health", "/ping", "/"} == opened


Call = Callable[[str], Awaitable[grpc.StatusCode]]


@pytest.fixture
async def channel(service: Addresses) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(service.grpc) as channel:
        yield channel


def calls_of(channel: grpc.aio.Channel, keys: dict[str, str]) -> dict[str, Call]:
    """A function for each RPC of the descriptor: with the key of a name it gives the status."""

    def call(method: Any) -> Call:
        path = f"/{method.containing_service.full_name}/{method.name}"
        if method.server_streaming:
            stub: Any = channel.stream_stream(path)
        else:
            stub = channel.unary_unary(path)

        async def status(name: str) -> grpc.StatusCode:
            call = stub(iter(()), metadata=metadata(keys[name])) if method.client_streaming else None
            try:
                if call is not None:
                    async for _ in call:
                        pass
                else:
                    await stub(b"", metadata=metadata(keys[name]), timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        return status

    return {method.name: call(method) for method in METHODS}


async def test_every_rpc_refuses_all_keys_but_its_own_and_admin(channel: grpc.aio.Channel, keys: dict[str, str]) -> None:
    for name, call in calls_of(channel, keys).items():
        assert {grpc.StatusCode.UNAUTHENTICATED} == {await call(bad) for bad in BAD}, name
        others: set[Scope] = set(SCOPES - {"embed", "admin"})
        assert {grpc.StatusCode.PERMISSION_DENIED} == {await call(scope) for scope in others}, name
        let_in = {await call(good) for good in ("embed", "admin")}
        assert not let_in & {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}, name


async def test_health_is_open_and_two_keys_in_one_call_are_none(channel: grpc.aio.Channel, keys: dict[str, str]) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    assert health_pb2.HealthCheckResponse.SERVING == (await health.Check(health_pb2.HealthCheckRequest())).status

    describe: Any = channel.unary_unary("/trunkline.embedding.v1.EmbeddingService/GetTrunk")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await describe(b"", metadata=metadata(keys["embed"]) * 2)
    assert grpc.StatusCode.UNAUTHENTICATED == failed.value.code()


def text_message(number: int, count: int = 1) -> bytes:
    request = pb.EmbedRequest(inputs=[pb.Input(text="w1")] * count)
    return pb.EmbedStreamRequest(first_number=number, request=request).SerializeToString()


async def test_a_stream_ends_with_the_key_it_came_with(
    start: Start, tokenizer_json: bytes, keys_file: Path, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KeysFile.__init__.__kwdefaults__, "look_seconds", 0.0)
    addresses = await start(FakeBackend(tokenizer_json), keys_file=keys_file)
    async with grpc.aio.insecure_channel(addresses.grpc) as channel:
        stub: Any = channel.stream_stream("/trunkline.embedding.v1.EmbeddingService/EmbedStream")
        call = stub(metadata=metadata(keys["embed"]))
        await call.write(text_message(1))
        assert [1] == list(pb.EmbedStreamResponse.FromString(await call.read()).numbers)

        revoke_keys(keys_file, "embed")
        await call.write(text_message(2))
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert grpc.StatusCode.UNAUTHENTICATED == await call.code()


async def test_a_quota_counts_texts_of_http_and_grpc_together(start: Start, tokenizer_json: bytes, keys_file: Path) -> None:
    key = add_key(keys_file, "ann", ("embed",), texts_per_second=0.001, burst=4)
    addresses = await start(FakeBackend(tokenizer_json), keys_file=keys_file)
    async with grpc.aio.insecure_channel(addresses.grpc) as channel, httpx.AsyncClient(base_url=addresses.http) as http:
        embed: Any = channel.unary_unary("/trunkline.embedding.v1.EmbeddingService/Embed")
        three = pb.EmbedRequest(inputs=[pb.Input(text="w1")] * 3).SerializeToString()
        await embed(three, metadata=metadata(key))

        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await embed(three, metadata=metadata(key))
        assert grpc.StatusCode.RESOURCE_EXHAUSTED == failed.value.code()
        assert float(dict(failed.value.trailing_metadata())["retry-after-ms"]) > 1_000

        headers = {"authorization": f"Bearer {key}"}
        refused = await http.post("/embed", json={"inputs": ["w1", "w2"]}, headers=headers)
        assert 429 == refused.status_code
        assert int(refused.headers["retry-after"]) > 1
        assert 200 == (await http.post("/embed", json={"inputs": "w1"}, headers=headers)).status_code


async def test_a_stream_beyond_its_quota_is_slowed_down_and_not_refused(
    start: Start, tokenizer_json: bytes, keys_file: Path
) -> None:
    key = add_key(keys_file, "ann", ("embed",), texts_per_second=20, burst=2)
    addresses = await start(FakeBackend(tokenizer_json), keys_file=keys_file)
    async with grpc.aio.insecure_channel(addresses.grpc) as channel:
        stub: Any = channel.stream_stream("/trunkline.embedding.v1.EmbeddingService/EmbedStream")
        call = stub(iter([text_message(1 + 2 * part, 2) for part in range(3)]), metadata=metadata(key))
        answered = [number async for data in call for number in pb.EmbedStreamResponse.FromString(data).numbers]

    assert [1, 2, 3, 4, 5, 6] == sorted(answered)


async def test_too_many_bad_keys_are_told_to_stay_away(start: Start, tokenizer_json: bytes, keys_file: Path) -> None:
    key = add_key(keys_file, "ann", ("embed",))
    addresses = await start(FakeBackend(tokenizer_json), keys_file=keys_file, auth_failures_per_minute=2)
    async with grpc.aio.insecure_channel(addresses.grpc) as channel:
        describe: Any = channel.unary_unary("/trunkline.embedding.v1.EmbeddingService/GetTrunk")
        codes = []
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await describe(b"")
            codes.append(failed.value.code())
        await describe(b"", metadata=metadata(key))

    assert [*[grpc.StatusCode.UNAUTHENTICATED] * 2, grpc.StatusCode.RESOURCE_EXHAUSTED] == codes


def test_bert_as_service_has_no_keys_and_says_so(keys_file: Path) -> None:
    with pytest.raises(ValueError, match="no room for a key; leave bert_port out, or give --insecure"):
        Settings(keys_file=keys_file, bert_port=0, bert_port_out=0)
    assert Settings(keys_file=keys_file, bert_port=0, bert_port_out=0, insecure=True).bert_port == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_listening_beyond_loopback_takes_keys_or_a_word(keys_file: Path, host: str) -> None:
    with pytest.raises(ValueError, match="give --keys-file FILE, or --insecure"):
        Settings(host=host)
    assert Settings(host=host, insecure=True).insecure
    assert Settings(host=host, keys_file=keys_file).keys_file == keys_file
