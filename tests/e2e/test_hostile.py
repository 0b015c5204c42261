"""Nonsense against the real gateway over its real port: a short 4xx in the one shape, never a 500, and nothing is lost."""

import httpx
import pytest

from tests.e2e.conftest import RunningStack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CANARY = "CANARY-f3a9"

HOSTILE = {
    "empty body": b"",
    "not JSON": b"{",
    "neither text nor texts": b"{}",
    "both text and texts": b'{"text": "a", "texts": ["a"]}',
    "empty text": b'{"text": ""}',
    "white space": b'{"text": " \\u200b\\n"}',
    "no texts": b'{"texts": []}',
    "one empty of two": b'{"texts": ["a", ""]}',
    "wrong type": b'{"text": {"a": "' + CANARY.encode() + b'"}}',
    "a number": b'{"texts": ["' + CANARY.encode() + b'", 3]}',
    "unknown field": b'{"text": "a", "' + CANARY.encode() + b'": 1}',
    "unknown head": b'{"text": "a", "heads": ["' + CANARY.encode() + b'"]}',
    "no heads": b'{"text": "a", "heads": []}',
    "invalid UTF-8": b'{"text": "\xff' + CANARY.encode() + b'"}',
    "lone surrogate": b'{"text": "\\ud800"}',
    "NaN": b'{"text": NaN}',
    "10 MB": b'{"text": "' + b"a" * 10_000_000 + b'"}',
    "10,000 texts": b'{"texts": [' + b",".join([b'"a"'] * 10_000) + b"]}",
    "deep where it is read": b'{"texts":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep where it is skipped": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"text":"a"}',
    "huge number": b'{"text": "a", "timeout_ms": ' + b"9" * 5_000 + b"}",
    "negative time": b'{"text": "a", "timeout_ms": -1}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bodies_get_a_short_4xx_that_does_not_echo_them(stack: RunningStack, body: bytes) -> None:
    url = f"{stack.addresses['ready']}/v1/classify"
    answer = httpx.post(url, content=body, timeout=20)
    after = httpx.post(url, json={"text": "still there?"}, timeout=20)

    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 2_048
    assert CANARY not in answer.text
    error = answer.json()["error"]
    assert error["code"]
    assert error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert after.status_code == 200


def test_an_unknown_head_is_404_naming_the_known_ones(stack: RunningStack) -> None:
    answer = httpx.post(f"{stack.addresses['ready']}/v1/classify", json={"text": "a", "heads": ["nope"]})

    assert answer.status_code == 404
    assert "sentiment" in answer.json()["error"]["message"]


def test_a_text_longer_than_the_encoder_takes_is_truncated_and_says_so(stack: RunningStack) -> None:
    answer = httpx.post(f"{stack.addresses['ready']}/v1/classify", json={"texts": ["word " * 2_000, "short"]}).json()

    assert [result["truncated"] for result in answer["results"]] == [True, False]
    assert answer["results"][0]["num_tokens"] == 256


def test_unknown_paths_and_methods_are_told_in_the_same_shape(stack: RunningStack) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/classify", 405), ("PUT", "/v1/heads", 405)):
        answer = httpx.request(method, stack.addresses["ready"] + path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


def test_the_api_page_needs_no_other_host(stack: RunningStack) -> None:
    page = httpx.get(f"{stack.addresses['ready']}/docs").text
    schema = httpx.get(f"{stack.addresses['ready']}/openapi.json").json()

    assert "://" not in "".join(part for part in page.split('"') if part.startswith(("http", "//")))
    assert {"/v1/classify", "/v1/heads", "/healthz", "/readyz", "/metrics", "/info"} <= schema["paths"].keys()
    assert "ClassifyBody" in schema["components"]["schemas"]


def test_an_expired_patience_is_504_within_it(stack: RunningStack) -> None:
    answer = httpx.post(f"{stack.addresses['ready']}/v1/classify", json={"texts": ["word " * 300] * 500, "timeout_ms": 50})

    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
