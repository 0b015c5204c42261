import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import numpy as np
import openai
import pytest

from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.errors import GRPC_STATUS, HTTP_STATUS, EmbedError
from tests.embedding_service.conftest import Start
from tests.embedding_service.test_batching import Gate


def unit(*token_ids: int) -> list[float]:
    vector = checksum_vector(token_ids)
    return list(vector)


async def test_the_openai_client_reads_our_vectors_by_its_own_defaults(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with openai.AsyncOpenAI(base_url=f"{addresses.http}/v1", api_key="none", max_retries=0) as client:
        by_default = await client.embeddings.create(model="fake", input=["w1 w2", "w3"])
        as_floats = await client.embeddings.create(model="fake", input="w1 w2", encoding_format="float")
        models = await client.models.list()

    np.testing.assert_allclose(unit(2, 5, 6, 3), by_default.data[0].embedding, rtol=1e-6)
    np.testing.assert_allclose(by_default.data[0].embedding, as_floats.data[0].embedding, rtol=1e-6)
    assert [0, 1] == [row.index for row in by_default.data]
    assert 7 == by_default.usage.prompt_tokens
    assert ["fake"] == [model.id for model in models.data]


async def test_the_openai_client_gets_its_own_errors(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with openai.AsyncOpenAI(base_url=f"{addresses.http}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="input 0 is empty"):
            await client.embeddings.create(model="fake", input="")


async def test_null_stands_for_every_optional_field(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    body = {"input": [[2, 5, 3]], "model": None, "encoding_format": None, "dimensions": None, "user": None}
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        answer = await http.post("/v1/embeddings", json=body)

    assert 200 == answer.status_code
    assert 8 == len(answer.json()["data"][0]["embedding"])


SECRET = "SECRET-CANARY"

HOSTILE = {
    "empty body": b"",
    "not JSON": b"{",
    "invalid UTF-8": b'{"input": "\xff"}',
    "lone surrogate": b'{"input": "\\ud800"}',
    "NaN": b'{"input": [NaN]}',
    "wrong type": b'{"input": {"text": "' + SECRET.encode() + b'"}}',
    "mixed": b'{"input": ["' + SECRET.encode() + b'", 3]}',
    "no input": b'{"model": "' + SECRET.encode() + b'"}',
    "empty list": b'{"input": []}',
    "deep where it is read": b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep where it is skipped": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"input":"w1"}',
    "10 MB": b'{"input": "' + b"a" * 10_000_000 + b'"}',
    "10,000 texts": b'{"input": [' + b",".join([b'"w1"'] * 10_000) + b"]}",
    "huge number": b'{"input": [' + b"9" * 5_000 + b"]}",
    "dimensions of nought": b'{"input": "w1", "dimensions": 0}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_bodies_get_a_short_4xx_that_does_not_echo_them(start: Start, tokenizer_json: bytes, body: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        answer = await http.post("/v1/embeddings", content=body)
        after = await http.post("/v1/embeddings", json={"input": "w1"})

    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 2_048
    assert SECRET not in answer.text
    assert answer.json()["error"]["message"]
    assert 200 == after.status_code


async def test_compressed_bodies_are_refused(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        answer = await http.post("/v1/embeddings", content=b"x", headers={"content-encoding": "gzip"})

    assert 415 == answer.status_code


async def test_an_operator_finds_health_readiness_metrics_and_info(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        await http.post("/v1/embeddings", json={"input": ["w1", "w2 w3"]})
        metrics = (await http.get("/metrics")).text
        info = (await http.get("/info")).json()

        assert 200 == (await http.get("/healthz")).status_code
        assert 200 == (await http.get("/readyz")).status_code
        assert 404 == (await http.get("/nowhere")).status_code

    assert "trunkline_embedding_texts_total 2.0" in metrics
    assert "fake" == info["trunks"][0]["name"]
    assert 512 == info["settings"]["max_batch_tokens"]


def test_every_error_has_its_place_in_both_tables() -> None:
    leaves = set(EmbedError.__subclasses__())

    assert leaves == set(GRPC_STATUS) == set(HTTP_STATUS)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
async def test_what_waits_for_a_caller_that_hung_up_is_never_executed(start: Start, tokenizer_json: bytes, path: str) -> None:
    gate = Gate()
    backend = FakeBackend(tokenizer_json, fault=gate)
    addresses = await start(backend)
    key = "input" if path.startswith("/v1") else "inputs"
    async with httpx.AsyncClient(base_url=addresses.http) as staying, httpx.AsyncClient(base_url=addresses.http) as leaving:
        first = asyncio.create_task(staying.post(path, json={key: "w1"}))
        while not backend.batches:
            await asyncio.sleep(0.001)
        with pytest.raises(httpx.ReadTimeout):
            await leaving.post(path, json={key: "w2"}, timeout=0.3)
        while 'requests_total{outcome="cancelled"} 1.0' not in (await staying.get("/metrics")).text:
            await asyncio.sleep(0.01)
        gate.open()
        assert 200 == (await first).status_code
        assert 200 == (await staying.post(path, json={key: "w3"})).status_code

    assert [(2, 5, 3), (2, 7, 3)] == [ids for batch in backend.batches for ids in batch.token_ids]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/encode"])
async def test_who_sends_while_others_hold_all_there_is_comes_back_later(start: Start, tokenizer_json: bytes, path: str) -> None:
    addresses = await start(FakeBackend(tokenizer_json), max_held_bytes=1_024)
    body = json.dumps({"input": "w1", "inputs": "w1", "texts": ["w1"], "id": 1, "more": "m" * 600}).encode()
    has_come, may_end = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:-1]
        has_come.set()
        await may_end.wait()
        yield body[-1:]

    async with asyncio.timeout(30), httpx.AsyncClient(base_url=addresses.http) as http:
        waiting = asyncio.create_task(http.post(path, content=slowly()))
        await has_come.wait()
        while (refused := await http.post(path, content=body)).status_code == 200:
            await asyncio.sleep(0.01)
        may_end.set()
        served = await waiting
        again = await http.post(path, content=body)

    assert (429, 200, 200) == (refused.status_code, served.status_code, again.status_code)
    assert refused.headers["retry-after"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/embed_all"])
@pytest.mark.parametrize("inputs", [["w1"] * 4, [[5]] * 4, ["w1"] * 3 + [5], [[5]] * 3 + ["w1"]])
async def test_more_inputs_than_a_call_may_have_are_refused(
    start: Start, tokenizer_json: bytes, path: str, inputs: list[object]
) -> None:
    addresses = await start(FakeBackend(tokenizer_json), max_request_inputs=3)
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        said = await http.post(path, json={"input": inputs, "inputs": inputs})
    assert said.status_code in {400, 422}, said.text
    assert "3" in said.text
