"""Nonsense against every route: a short 4xx that gives nothing back, and the gateway goes on."""

import pytest

from gateway.app import create_api
from tests.gateway.fakes import FakeGateway, FakeTrunks
from tests.gateway.fuzz import HOSTILE, Got, Operation, Page, Sent, check, exchange, fuzz, fuzzed_gateway

PAGE = Page()
POSTS = [operation for operation in PAGE.operations if operation.method == "POST"]


@pytest.fixture
def gateway(trunks: FakeTrunks) -> FakeGateway:
    return fuzzed_gateway(trunks)


def to(operation: Operation, body: bytes, **headers: str) -> Sent:
    path = operation.path.replace("{name}", "spam").replace("{version}", "7")
    return Sent(operation, path, headers={name.replace("_", "-"): value for name, value in headers.items()}, body=body)


@pytest.mark.parametrize("operation", POSTS, ids=lambda operation: operation.path)
async def test_a_hostile_body_gets_a_short_refusal_that_does_not_echo_it(gateway: FakeGateway, operation: Operation) -> None:
    for name, body in HOSTILE.items():
        sent = to(operation, body)
        got = await exchange(gateway, sent)
        check(PAGE, sent, got)
        assert b"SECRET" not in got.body, name
        if operation.path != "/v1/classify/stream":
            assert 400 <= got.status < 500, name


@pytest.mark.parametrize("operation", POSTS, ids=lambda operation: operation.path)
async def test_a_body_that_is_compressed_or_too_long_is_refused(gateway: FakeGateway, operation: Operation) -> None:
    packed = to(operation, b"\x1f\x8b" * 1_000, content_encoding="gzip")
    long = to(operation, b'{"text": "' + b"a" * 9_000_000 + b'"}')
    for sent, status in ((packed, 415), (long, 413)):
        got = await exchange(gateway, sent)
        check(PAGE, sent, got)
        # A stream has no length; a line of it has.
        assert status == got.status or (operation.path.endswith("/stream") and sent is long), sent.operation


async def test_what_is_said_twice_is_taken_as_it_was_said_last(gateway: FakeGateway) -> None:
    [operation] = [one for one in POSTS if one.path == "/v1/classify"]
    got: Got = await exchange(gateway, to(operation, b'{"text": 3, "text": "a"}'))
    assert 400 == got.status
    got = await exchange(gateway, to(operation, b'{"text": "", "text": "a"}'))
    assert 200 == got.status


def test_requests_made_of_the_openapi_get_answers_that_it_tells(trunks: FakeTrunks) -> None:
    app = fuzzed_gateway(trunks)
    seen = fuzz(app, 1_000, derandomize=True)

    assert {name.rpartition(" ")[0] for name in seen} >= {f"POST {operation.path}" for operation in POSTS}
    assert any(name.startswith("POST /v1/classify 200") for name in seen)
    assert (0, 0) == (app.state.admission.num_texts, app.state.streams.num_open)


def test_the_fuzzed_page_is_the_one_that_is_served() -> None:
    assert create_api().openapi()["paths"].keys() == {operation.path for operation in PAGE.operations}
