"""Every route of the gateway asks for a key, and the right one; nothing of what is sent is ever told to anybody else."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from clients.wire.guard import Refusal
from clients.wire.guarded_http import OPEN, RouteTable, Unguarded
from clients.wire.http_server import Shortcuts
from clients.wire.keys import SCOPES, Scope, add_key
from gateway import guarding
from gateway.app import create_app
from gateway.door import Door
from gateway.exchange import WithExchanges
from gateway.guarding import ROUTES
from gateway.settings import Settings
from tests.routes import routes_of

NOWHERE = {"embedding_address": "127.0.0.1:1", "heads_address": "127.0.0.1:1"}
OPEN_PATHS = {"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/ui/page.css", "/ui/page.js", "/ui/icon.svg"}


def settings_of(tmp_path: Path, **more: object) -> Settings:
    return Settings(**{**NOWHERE, "catalogue": str(tmp_path / "none.json"), **more})  # type: ignore[arg-type]


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def keys(keys_file: Path) -> dict[Scope, str]:
    return {scope: add_key(keys_file, scope, (scope,)) for scope in sorted(SCOPES)}


@pytest.fixture
def app(tmp_path: Path, keys_file: Path, keys: dict[Scope, str]) -> Starlette:
    return create_app(settings_of(tmp_path, keys_file=keys_file, auth_failures_per_minute=1e6))


@pytest.fixture
def api(app: Starlette) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def sent(api: TestClient, method: str, path: str, key: str = "", **headers: str) -> tuple[int, str]:
    """The status and the error's code of a request to a route, its parameters filled in."""
    given = {"authorization": f"Bearer {key}"} if key else {}
    answer = api.request(method, re.sub(r"\{\w+(:path)?\}", "x", path), headers={**given, **headers})
    is_json = answer.headers.get("content-type", "").startswith("application/json") and method != "HEAD"
    error = answer.json().get("error", {}) if is_json else {}
    # In some protocols it is a sentence.
    return answer.status_code, error.get("code", "") if isinstance(error, dict) else ""


def test_every_route_is_in_the_table_and_the_table_has_no_other(app: Starlette) -> None:
    table, found = RouteTable(ROUTES), set(routes_of(app.routes))

    assert not {(method, path) for method, path in found if isinstance(table.needed(method, path), Refusal)}
    assert {path for _, path in found} == ROUTES.keys()


def test_a_route_without_a_rule_would_be_found_and_is_refused_to_everybody(
    app: Starlette, keys: dict[Scope, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app.router.routes.insert(0, Route("/new", lambda _: PlainTextResponse("in"), methods=["POST"]))

    assert ("POST", "/new") in set(routes_of(app.routes))
    assert isinstance(RouteTable(ROUTES).needed("POST", "/new"), Refusal)
    with TestClient(app) as api:
        assert (401, "unauthenticated") == sent(api, "POST", "/new")
        assert (404, "not_found") == sent(api, "POST", "/new", keys["admin"])


def test_health_and_the_page_alone_are_open(app: Starlette, api: TestClient) -> None:
    assert OPEN_PATHS == {path for path, methods in ROUTES.items() if OPEN in methods.values()}
    for method, path in routes_of(app.routes):
        if path in OPEN_PATHS:
            assert 401 != sent(api, method, path)[0]


def test_every_other_route_refuses_missing_wrong_expired_and_under_scoped_keys(
    app: Starlette, api: TestClient, keys: dict[Scope, str], keys_file: Path
) -> None:
    table, checked = RouteTable(ROUTES), 0
    late = add_key(keys_file, "late", ("admin",), datetime.now(UTC) - timedelta(seconds=1))
    foreign = add_key(keys_file.with_name("other.json"), "ann", ("admin",))
    good = keys["admin"]
    wrong = good[:-1] + ("a" if good[-1] != "a" else "b")
    for method, path in routes_of(app.routes):
        needed = table.needed(method, path)
        if path in OPEN_PATHS:
            continue
        assert not isinstance(needed, Refusal | Unguarded)
        refused = {sent(api, method, path, key)[0] for key in ("", wrong, late, foreign, "x", good + good)}
        refused |= {sent(api, method, path, authorization=f"Basic {good}")[0]}
        others = {sent(api, method, path, keys[scope])[0] for scope in SCOPES - {needed, "admin"}}
        assert ({401}, {403}) == (refused, others), (method, path)
        # It comes in with its own scope and with admin, whatever it is told then.
        assert not {sent(api, method, path, key)[0] for key in (keys[needed], good)} & {401, 403}, (method, path)
        checked += 1
    assert checked > 10


def test_an_expired_key_is_refused_as_an_unknown_one(api: TestClient, keys_file: Path, keys: dict[Scope, str]) -> None:
    late = add_key(keys_file, "late", ("admin",), datetime.now(UTC) - timedelta(seconds=1))

    assert (401, "unauthenticated") == sent(api, "GET", "/info", late) == sent(api, "GET", "/info", "x")


def test_a_key_may_come_as_x_api_key_but_not_twice(api: TestClient, keys: dict[Scope, str]) -> None:
    key = keys["admin"]

    assert 200 == sent(api, "GET", "/info", **{"x-api-key": key})[0]
    assert 401 == sent(api, "GET", "/info", **{"x-api-key": f"Bearer {key}"})[0]
    assert 401 == sent(api, "GET", "/info", key, **{"x-api-key": key})[0]


@pytest.mark.parametrize("path", ["/v1/classify/", "//v1/classify", "/v1/../info", "/info/", "/INFO", "/%69nfo/x", "/v1/heads/x"])
def test_a_path_that_only_looks_like_a_route_is_refused(api: TestClient, keys: dict[Scope, str], path: str) -> None:
    assert 401 == sent(api, "GET", path)[0]
    assert sent(api, "GET", path, keys["classify"])[0] in {403, 404}


def test_methods_that_a_route_does_not_have_are_refused(api: TestClient, keys: dict[Scope, str]) -> None:
    assert (405, "method_not_allowed") == sent(api, "GET", "/v1/classify", keys["classify"])
    assert (401, "unauthenticated") == sent(api, "OPTIONS", "/v1/classify")
    assert (401, "unauthenticated") == sent(api, "TRACE", "/v1/classify")


def test_too_many_bad_keys_from_an_address_are_429_and_good_ones_go_on(
    tmp_path: Path, keys_file: Path, keys: dict[Scope, str]
) -> None:
    with TestClient(create_app(settings_of(tmp_path, keys_file=keys_file, auth_failures_per_minute=2))) as api:
        assert [401, 401, 429] == [sent(api, "GET", "/info", "x")[0] for _ in range(3)]
        refused = api.get("/info")
        assert int(refused.headers["retry-after"]) >= 1
        assert 200 == sent(api, "GET", "/info", keys["admin"])[0]
        # A key that is good for other things is no guess.
        assert 403 == sent(api, "GET", "/info", keys["embed"])[0]


def test_a_quota_is_taken_by_texts_all_or_none(tmp_path: Path, keys_file: Path) -> None:
    key = add_key(keys_file, "ann", ("classify",), texts_per_second=0.001, burst=3)
    with TestClient(create_app(settings_of(tmp_path, keys_file=keys_file))) as api:

        def ask(count: int) -> int:
            body = {"texts": ["a"] * count, "timeout_ms": 1}
            return api.post("/v1/classify", json=body, headers={"x-api-key": key}).status_code

        # The backends are not there: what is let in is 503 or 504.
        assert ask(2) >= 500
        refused = api.post("/v1/classify", json={"texts": ["a", "b"]}, headers={"x-api-key": key})
        assert (429, "overloaded") == (refused.status_code, refused.json()["error"]["code"])
        assert float(refused.headers["retry-after-ms"]) > 1_000
        assert ask(1) >= 500


def test_what_the_door_and_the_quotas_refuse_is_counted(tmp_path: Path, keys_file: Path, keys: dict[Scope, str]) -> None:
    poor = add_key(keys_file, "poor", ("classify",), texts_per_second=0.001, burst=3)
    with TestClient(create_app(settings_of(tmp_path, keys_file=keys_file, auth_failures_per_minute=2))) as api:
        for key in ("x", "x", "x", keys["embed"]):
            sent(api, "GET", "/info", key)
        sent(api, "PUT", "/info", keys["admin"])
        for _ in range(2):
            # The backends are not there: the first one is let in, and is 503.
            api.post("/v1/classify", json={"texts": ["a", "b"]}, headers={"x-api-key": poor})
        shown = api.get("/metrics", headers={"x-api-key": keys["admin"]}).text

    refused = {"unauthenticated": 2, "overloaded": 1, "permission_denied": 1, "method_not_allowed": 1, "quota": 1}
    for reason, count in refused.items():
        assert f'trunkline_gateway_refusals_total{{reason="{reason}"}} {count:.1f}\n' in shown
    for status, count in {401: 2, 403: 1, 405: 1, 429: 2}.items():
        assert f'trunkline_gateway_requests_total{{status="{status}"}} {count:.1f}\n' in shown


def test_without_keys_nothing_is_in_the_way(tmp_path: Path) -> None:
    app = create_app(settings_of(tmp_path))

    assert [WithExchanges, guarding.Outermost, Door, Shortcuts] == [layer.cls for layer in app.user_middleware]
    with TestClient(app) as api:
        assert 200 == api.get("/info").status_code


def test_refusals_and_answers_have_the_headers_a_browser_needs(api: TestClient, keys: dict[Scope, str]) -> None:
    for answer in (api.get("/info"), api.get("/info", headers={"x-api-key": keys["admin"]}), api.get("/nowhere")):
        assert "nosniff" == answer.headers["x-content-type-options"]
        assert "no-referrer" == answer.headers["referrer-policy"]
        assert "default-src 'none'; frame-ancestors 'none'" == answer.headers["content-security-policy"]
    assert "Bearer" == api.get("/info").headers["www-authenticate"]
    assert api.get("/info", headers={"x-request-id": "r1"}).headers["x-request-id"] == "r1"


def test_the_policy_of_pages_lets_the_documentation_work(api: TestClient, keys: dict[Scope, str]) -> None:
    page = api.get("/docs", headers={"x-api-key": keys["admin"]})
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))

    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sources
    assert all(source.startswith("/") for source in sources)
    for source in sources:
        assert 200 == api.get(source, headers={"x-api-key": keys["admin"]}).status_code
    assert "'self' 'unsafe-inline'" == policy["script-src"] == policy["style-src"]
    assert "'none'" == policy["frame-ancestors"] == policy["default-src"]


def test_an_answer_s_own_policy_stays() -> None:
    own = [(b"content-type", b"text/html"), (b"content-security-policy", b"default-src 'self'")]

    assert [b"default-src 'self'"] == [value for name, value in guarding.secured(own) if name == b"content-security-policy"]


def test_the_documentation_can_be_switched_off(tmp_path: Path) -> None:
    app = create_app(settings_of(tmp_path, docs=False))
    assert not {path for _, path in routes_of(app.routes)} & {"/docs", "/redoc", "/openapi.json"}
    with TestClient(app) as api:
        assert {404} == {api.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/x")}


def test_scripts_of_other_sites_may_not_ask_unless_named(tmp_path: Path, keys_file: Path, keys: dict[Scope, str]) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with TestClient(create_app(settings_of(tmp_path, keys_file=keys_file))) as api:
        assert "access-control-allow-origin" not in api.options("/v1/classify", headers=asked).headers
    named = settings_of(tmp_path, keys_file=keys_file, cors_origins="https://a.example,https://b.example:8443")
    with TestClient(create_app(named)) as api:
        answer = api.options("/v1/classify", headers={**asked, "access-control-request-headers": "authorization"})
        assert (200, "https://a.example") == (answer.status_code, answer.headers["access-control-allow-origin"])
        assert "access-control-allow-credentials" not in answer.headers
        assert 400 == api.options("/v1/classify", headers={**asked, "origin": "https://c.example"}).status_code
        refused = api.post("/v1/classify", headers={"origin": "https://a.example"})
        assert (401, "https://a.example") == (refused.status_code, refused.headers["access-control-allow-origin"])


@pytest.mark.parametrize("origins", ["*", "https://a.example/", "a.example", "https://a.example,*"])
def test_only_whole_origins_can_be_named(tmp_path: Path, origins: str) -> None:
    with pytest.raises(ValueError, match="an origin is"):
        settings_of(tmp_path, cors_origins=origins)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_listening_beyond_loopback_takes_keys_or_a_word(tmp_path: Path, keys_file: Path, host: str) -> None:
    with pytest.raises(ValueError, match="give --keys-file FILE, or --insecure"):
        settings_of(tmp_path, host=host)
    assert settings_of(tmp_path, host=host, insecure=True).insecure
    assert settings_of(tmp_path, host=host, keys_file=keys_file).keys_file == keys_file


def test_the_settings_that_are_shown_name_no_file_and_no_secret(api: TestClient, keys: dict[Scope, str]) -> None:
    shown = api.get("/info", headers={"x-api-key": keys["admin"]}).json()["settings"]

    assert not {name for name in shown if "file" in name or "address" in name or name.endswith("_key")}
