"""Every route and RPC of the embedded server asks for a key, when there are keys."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clients.wire.keys import SCOPES, add_key
from head_service.serving.flags import METRICS_PATH, FlagError, parse_flags
from head_service.serving.guarding import RPCS
from head_service.serving.rest import METHODS
from head_service.serving.rpc import RpcEdge
from head_service.serving.settings import read_settings
from tests.head_service.serving.serving import Client, server

BAD = ("late", "foreign", "wrong", "none")
PATHS = [
    *(f"/v1/models/m{which}" for which in ("", "/versions/1", "/labels/stable", "/metadata", "/versions/1/metadata")),
    *(f"/v1/models/m{which}:{verb}" for which in ("", "/versions/1") for verb in ("predict", "classify", "regress")),
    "/V1/models/m",
]


def rpcs() -> set[str]:
    """The full names of all RPCs, as the server registers them."""
    edge: Any = RpcEdge.__new__(RpcEdge)
    return {name for handler in edge.handlers() for name in handler._method_handlers}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def keys(keys_file: Path) -> dict[str, str]:
    made: dict[str, str] = {scope: add_key(keys_file, scope, (scope,)) for scope in sorted(SCOPES)}
    good = made["admin"]
    return {
        **made,
        "late": add_key(keys_file, "late", ("admin",), datetime.now(UTC) - timedelta(seconds=1)),
        "foreign": add_key(keys_file.with_name("other"), "ann", ("admin",)),
        "wrong": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "none": "",
    }


@pytest.fixture
def flags(tmp_path: Path, keys_file: Path, keys: dict[str, str]) -> list[str]:
    assert keys
    (tmp_path / "base").mkdir()
    monitoring = tmp_path / "monitoring"
    monitoring.write_text("prometheus_config { enable: true }")
    return [f"--keys_file={keys_file}", f"--monitoring_config_file={monitoring}", "--enable_grpc_healthcheck_service"]


async def code_of(client: Client, rpc: str, key: str) -> grpc.StatusCode:
    call: Any = client.channel.unary_unary(rpc)
    try:
        await call(b"", metadata=(("authorization", f"Bearer {key}"),) if key else (), timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_every_rpc_is_in_the_table_and_the_table_has_no_other() -> None:
    assert rpcs() == RPCS.keys()


async def test_every_route_and_rpc_refuses_all_keys_but_its_own_and_admin(
    tmp_path: Path, flags: list[str], keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.wire.guard.Guard.failed", lambda _self, refusal, _address: refusal)
    async with server(tmp_path / "base", *flags, "--drain_delay_seconds=0") as client:
        for rpc, needed in RPCS.items():
            assert {grpc.StatusCode.UNAUTHENTICATED} == {await code_of(client, rpc, keys[name]) for name in BAD}
            others = {await code_of(client, rpc, keys[scope]) for scope in SCOPES - {needed, "admin"}}
            assert {grpc.StatusCode.PERMISSION_DENIED} == others
            let_in = {await code_of(client, rpc, keys[name]) for name in (needed, "admin")}
            assert not let_in & {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}

        async with httpx.AsyncClient(base_url=f"http://{client.rest}") as http:

            async def status(method: str, path: str, name: str) -> int:
                headers = {"authorization": f"Bearer {keys[name]}"} if keys[name] else {}
                return (await http.request(method, path, headers=headers)).status_code

            for path in PATHS:
                for method in METHODS:
                    assert {401} == {await status(method, path, name) for name in BAD}, (method, path)
                assert {403} == {await status("GET", path, scope) for scope in SCOPES - {"classify", "admin"}}
                assert not {await status("GET", path, name) for name in ("classify", "admin")} & {401, 403}
            assert [401, 403, 200] == [await status("GET", METRICS_PATH, name) for name in ("none", "classify", "admin")]
            assert [401, 404] == [await status("GET", "/elsewhere", name) for name in ("none", "classify")]

        health = health_pb2_grpc.HealthStub(client.channel)
        assert health_pb2.HealthCheckResponse.SERVING == (await health.Check(health_pb2.HealthCheckRequest())).status


def test_listening_beyond_loopback_takes_keys_or_a_word(
    tmp_path: Path, keys_file: Path, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keys
    model = [f"--model_base_path={tmp_path}", "--host=0.0.0.0"]
    with pytest.raises(FlagError, match="give --keys_file FILE, or --insecure"):
        read_settings(parse_flags(model))
    assert read_settings(parse_flags([*model, "--insecure"])).guard is None
    assert read_settings(parse_flags([*model, f"--keys_file={keys_file}"])).guard is not None

    monkeypatch.setenv("TRUNKLINE_HEADS_INSECURE", "true")
    assert read_settings(parse_flags(model)).guard is None
    monkeypatch.setenv("TRUNKLINE_HEADS_KEYS_FILE", str(keys_file))
    assert read_settings(parse_flags(model)).guard is not None


def test_a_file_that_is_none_of_keys_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match="cannot be read"):
        read_settings(parse_flags([f"--model_base_path={tmp_path}", f"--keys_file={tmp_path / 'none'}"]))
