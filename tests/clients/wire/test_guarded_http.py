import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from clients.wire.asgi import CallerLeftError, while_connected
from clients.wire.guard import NO_KEY, NO_METHOD, NO_ROUTE, Guard, Refusal, is_loopback, why_not_listen
from clients.wire.guarded_http import ENTRY, OPEN, AsgiScope, GuardedHttp, RouteTable, credentials_of
from clients.wire.keys import Caller, KeysFile, add_key
from clients.wire.rates import Rate

TABLE = RouteTable(
    {
        "/open": {"GET": OPEN},
        "/ask": {"POST": "classify"},
        "/heads/{name}": {"GET": "classify", "DELETE": "admin"},
        "/files/{path:path}": {"GET": "admin"},
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def key(path: Path) -> str:
    return add_key(path, "ann", ("classify",))


def told(refusal: Refusal, _: AsgiScope) -> tuple[bytes, dict[str, str]]:
    return refusal.code.encode(), {}


async def ask(app: Any, method: str, path: str, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
    answer: list[Any] = []

    async def send(message: Any) -> None:
        answer.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "client": ("::1", 1)}
    await app(scope, _never, send)
    return answer[0]["status"], answer[1]["body"]


async def _never() -> Any:
    await asyncio.Event().wait()


async def welcome(scope: Any, receive: Any, send: Any) -> None:
    del scope, receive
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/open", OPEN),
        ("HEAD", "/open", OPEN),
        ("POST", "/open", NO_METHOD),
        ("POST", "/ask", "classify"),
        ("HEAD", "/ask", NO_METHOD),
        ("post", "/ask", NO_METHOD),
        ("GET", "/heads/spam", "classify"),
        ("DELETE", "/heads/spam", "admin"),
        ("GET", "/heads/", NO_ROUTE),
        ("GET", "/heads/a/b", NO_ROUTE),
        ("GET", "/heads/a\n", "classify"),
        ("GET", "/files/a/b", "admin"),
        ("GET", "/files", NO_ROUTE),
        ("GET", "/ask/", NO_ROUTE),
        ("GET", "/Ask", NO_ROUTE),
        ("GET", "", NO_ROUTE),
    ],
)
def test_a_table_names_what_a_request_takes(method: str, path: str, needed: object) -> None:
    assert needed == TABLE.needed(method, path)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], b""),
        ([(b"authorization", b"Bearer a")], b"Bearer a"),
        ([(b"x-api-key", b"a")], b"Bearer a"),
        ([(b"x-api-key", b"a"), (b"authorization", b"Bearer a")], b""),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], b""),
    ],
)
def test_a_key_comes_once_or_not_at_all(headers: list[tuple[bytes, bytes]], found: bytes) -> None:
    assert found == credentials_of([(b"host", b"a"), *headers, (b"accept", b"*/*")])


async def test_the_routes_that_are_there_are_told_to_those_with_a_key_alone(path: Path, key: str) -> None:
    app, good = GuardedHttp(welcome, Guard(KeysFile(path)), TABLE.needed, told), (b"x-api-key", key.encode())

    assert (200, b"in") == await ask(app, "GET", "/open")
    assert (200, b"in") == await ask(app, "POST", "/ask", good)
    for method, route in (("POST", "/ask"), ("GET", "/ask"), ("GET", "/none")):
        assert (401, b"unauthenticated") == await ask(app, method, route)
    assert (405, b"method_not_allowed") == await ask(app, "GET", "/ask", good)
    assert (404, b"not_found") == await ask(app, "GET", "/none", good)
    assert (403, b"permission_denied") == await ask(app, "GET", "/files/a", good)
    assert (401, b"") == await ask(app, "HEAD", "/files/a")


async def test_a_websocket_is_closed_and_a_lifespan_goes_by(path: Path, key: str) -> None:
    assert key
    seen: list[Any] = []

    async def inner(scope: Any, _: Any, __: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        seen.append(message["type"])

    app = GuardedHttp(inner, Guard(KeysFile(path)), TABLE.needed, told)
    for kind in ("websocket", "lifespan"):
        await app({"type": kind, "path": "/open", "headers": []}, _never, send)

    assert ["websocket.close", "lifespan"] == seen


async def test_a_caller_who_hangs_up_is_noticed_behind_the_guard(path: Path, key: str) -> None:
    gone, outcome = asyncio.Event(), asyncio.Event()

    async def slow(scope: AsgiScope, receive: Callable[[], Awaitable[Any]], _: Any) -> None:
        assert "ann" == scope[ENTRY].caller.name
        try:
            async with while_connected(receive, look_after=0):
                gone.set()
                await asyncio.Event().wait()
        except CallerLeftError:
            outcome.set()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    app = GuardedHttp(slow, Guard(KeysFile(path)), TABLE.needed, told)
    scope = {"type": "http", "method": "POST", "path": "/ask", "headers": [(b"x-api-key", key.encode())]}
    async with asyncio.timeout(5):
        await app(scope, receive, _never)
    assert outcome.is_set()


def test_bad_keys_are_counted_by_address_and_only_bad_keys(path: Path, key: str) -> None:
    assert key
    now = [0.0]
    guard = Guard(KeysFile(path), max_failures_per_minute=2, clock=lambda: now[0])
    denied = Refusal("permission_denied", "no")

    assert [NO_KEY, NO_KEY] == [guard.failed(NO_KEY, "a") for _ in range(2)]
    assert ("overloaded", 30.0) == ((refused := guard.failed(NO_KEY, "a")).code, refused.retry_after)
    assert NO_KEY == guard.failed(NO_KEY, "b")
    assert denied is guard.failed(denied, "a")
    now[0] = 30.0
    assert NO_KEY == guard.failed(NO_KEY, "a")


def test_keys_of_one_name_share_a_quota_and_nothing_is_taken_for_nothing(path: Path, key: str) -> None:
    assert key
    guard = Guard(KeysFile(path), clock=lambda: 0.0)
    ann = Caller("ann", frozenset(), Rate(1.0, 3.0))

    assert guard.charge(ann, 3) is None
    assert guard.charge(ann, 0) is None
    refused = guard.charge(Caller("ann", frozenset({"embed"}), Rate(1.0, 3.0)), 2)
    assert refused is not None
    assert 2.0 == refused.retry_after
    assert guard.charge(Caller("ann", frozenset()), 1_000) is None


@pytest.mark.parametrize(("host", "is_ours"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)])
def test_loopback_needs_no_keys(host: str, is_ours: bool) -> None:
    assert is_ours == is_loopback(host)
    assert not why_not_listen(host, None, "--keys", insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "", "127.0.0.1.example.org"])
def test_beyond_it_keys_or_a_word_are_needed(host: str) -> None:
    assert "give --keys FILE, or --insecure" in why_not_listen(host, None, "--keys", insecure=False)
    assert not why_not_listen(host, None, "--keys", insecure=True)
    assert not why_not_listen(host, "file", "--keys", insecure=False)
