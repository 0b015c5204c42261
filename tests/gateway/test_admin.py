import socket
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from clients.wire.keys import add_key
from gateway.app import create_app
from gateway.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    add_key(tmp_path / "keys.json", "ann", ("classify",))
    catalogue = str(tmp_path / "none.json")
    addresses = {"embedding_address": "127.0.0.1:1", "heads_address": "127.0.0.1:1"}
    return Settings(**addresses, catalogue=catalogue, keys_file=tmp_path / "keys.json")  # type: ignore[arg-type]


def test_operators_read_on_a_port_of_their_own_and_nobody_asks_there(settings: Settings) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with TestClient(create_app(settings, listener)) as api:
        assert 401 == api.get("/metrics").status_code
        with httpx.Client(base_url=url) as admin:
            for path in ("/metrics", "/info", "/healthz", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
                assert 200 == admin.get(path).status_code, path
            assert "trunkline_gateway" in admin.get("/metrics").text
            for method, path in (("POST", "/v1/classify"), ("GET", "/v1/heads"), ("GET", "/"), ("POST", "/metrics")):
                assert 404 == admin.request(method, path).status_code, path
            # A site whose name was made to mean this machine.
            assert 404 == admin.get("/info", headers={"host": "evil.example"}).status_code
            assert 200 == admin.get("/info", headers={"host": "localhost:1"}).status_code
            assert 200 == admin.get("/info", headers={"host": "[::1]:1"}).status_code
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
