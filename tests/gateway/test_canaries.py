"""Secrets sent in every place a request has are in no log, no metric and no answer that is an error."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from clients import Unavailable
from clients.wire.keys import add_key
from gateway.app import create_app
from gateway.pipeline import Pipeline
from gateway.settings import Settings
from tests.routes import routes_of

CANARY = "canary7secret"
OURS = re.compile(r"gateway|clients|uvicorn|starlette|fastapi|asyncio|root")

HEADERS = (
    "authorization",
    "x-api-key",
    "cookie",
    "user-agent",
    "referer",
    "origin",
    "accept",
    "content-type",
    "content-encoding",
    "traceparent",
    "x-request-timeout-ms",
    "x-forwarded-for",
    "host",
)

BODIES = (
    CANARY.encode(),
    b'"' + CANARY.encode(),
    f'{{"text": "{CANARY}"}}'.encode(),
    f'{{"text": "{CANARY}", "heads": ["{CANARY}"]}}'.encode(),
    f'{{"texts": ["{CANARY}", 1]}}'.encode(),
    f'{{"{CANARY}": 1}}'.encode(),
    f'{{"text": "a", "timeout_ms": "{CANARY}"}}'.encode(),
    f'{{"text": "\ud83d{CANARY}"}}'.encode("utf-8", "surrogatepass"),
)


@pytest.fixture
def key(tmp_path: Path) -> str:
    return add_key(tmp_path / "keys.json", "ann", ("admin",))


@pytest.fixture
def app(tmp_path: Path, key: str) -> Starlette:
    assert key
    return create_app(
        Settings(
            embedding_address="127.0.0.1:1",
            heads_address="127.0.0.1:1",
            catalogue=str(tmp_path / "none.json"),
            keys_file=tmp_path / "keys.json",
            auth_failures_per_minute=1e6,
            embedding_key=f"{CANARY}backend",
            heads_key=f"{CANARY}backend",
        )
    )


@pytest.fixture
def api(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    # The backend is not there; it need not be waited for.
    async def gone(*_: Any) -> None:
        raise Unavailable("gone")

    monkeypatch.setattr(Pipeline, "classify", gone)
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def requests_of(app: Starlette, key: str) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Method, path, headers and body of requests to all routes, and to none, with the canary in one place each."""
    known = {"authorization": f"Bearer {key}"}
    for method, path in [*routes_of(app.routes), ("GET", f"/{CANARY}"), (CANARY.upper(), "/v1/classify")]:
        path = re.sub(r"\{\w+(:path)?\}", CANARY, path)  # noqa: PLW2901
        for signed in (known, {}):
            yield method, f"{path}?q={CANARY}&{CANARY}=1", signed, b""
            yield method, path, {**signed, "x-request-id": f"{CANARY} {CANARY}"}, b""
            for body in BODIES:
                yield method, path, signed, body
        for header in HEADERS:
            yield method, path, {**known, header: f"Bearer {CANARY}" if header == "authorization" else CANARY}, b"{}"


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """All that our side logged; the client of the test has a log of its own."""
    kept = [record for record in caplog.records if OURS.match(record.name)]
    return "\n".join(f"{record.getMessage()} {record.exc_text or ''} {record.__dict__}" for record in kept)


def test_no_secret_comes_back_or_is_kept(
    app: Starlette, api: TestClient, key: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    seen = 0
    for method, path, headers, body in requests_of(app, key):
        answer = api.request(method, path, headers=headers, content=body)
        seen += 1
        told = answer.text + str([(name, value) for name, value in answer.headers.items() if name != "location"])
        assert CANARY not in told.lower(), (method, path, headers, body)
        assert key not in told
        if answer.status_code >= 400:
            assert len(answer.content) < 2_048
    assert seen > 300

    for path in ("/metrics", "/info"):
        shown = api.get(path, headers={"x-api-key": key})
        assert 200 == shown.status_code
        assert CANARY not in shown.text
        assert key not in shown.text
    printed = capfd.readouterr()
    everything = logged(caplog) + printed.out + printed.err
    assert CANARY not in everything.lower()
    assert key not in everything


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/heads"])
def test_what_fails_in_an_unforeseen_way_is_logged_by_its_place_and_not_its_words(
    app: Starlette, key: str, path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr(Pipeline, "classify", broken)
    monkeypatch.setattr("gateway.backends.embedding.ClientTrunks.trunk", broken)
    caplog.set_level(logging.DEBUG)
    with TestClient(app) as api:
        method = "POST" if path == "/v1/classify" else "GET"
        content = b'{"text": "a"}' if method == "POST" else b""
        answer = api.request(method, path, content=content, headers={"x-api-key": key, "x-request-id": "r1"})

    assert (500, "internal", "r1") == (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["request_id"])
    assert "nosniff" == answer.headers["x-content-type-options"]
    assert CANARY not in answer.text + logged(caplog)
    assert "request r1 failed unexpectedly: ValueError (test_canaries.py:" in logged(caplog)
