import asyncio

import httpx
import numpy as np
import pytest
from grpc.aio import insecure_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from clients import AsyncEmbeddingClient, NotFound, Overloaded, Unavailable
from embedding_service.__main__ import _check_names
from embedding_service.backend import Batch
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.models.errors import PreparationError
from embedding_service.settings import Settings
from tests.embedding_service.conftest import Start
from tests.embedding_service.test_batching import Gate, until


async def test_each_trunk_answers_by_its_name_and_the_first_is_the_default(start: Start, tokenizer_json: bytes) -> None:
    first, second = FakeBackend(tokenizer_json, name="one"), FakeBackend(tokenizer_json, name="two", max_tokens=4)
    addresses = await start(first, second)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        default = await client.embed(["w1 w2 w3"])
        named = await client.embed(["w1 w2 w3"], trunk="two")
        trunks = [await client.trunk(name) for name in ("", "two")]
        with pytest.raises(NotFound, match="this service has: one, two"):
            await client.embed(["w1"], trunk="three")

    assert ("one", "two") == (default.trunk, named.trunk)
    assert default.trunk_fingerprint != named.trunk_fingerprint
    assert ["one", "two"] == [trunk.name for trunk in trunks]
    np.testing.assert_array_equal(checksum_vector((2, 5, 6, 3)), named.vectors[0])
    assert 1 == len(first.batches)


async def test_every_http_protocol_reaches_every_trunk(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json, name="one"), FakeBackend(tokenizer_json, name="two", max_tokens=4))
    async with httpx.AsyncClient(base_url=addresses.http) as client:
        models = (await client.get("/v1/models")).json()
        openai = (await client.post("/v1/embeddings", json={"input": "w1 w2 w3", "model": "two"})).json()
        tei = [await client.post(f"/trunks/two{path}", json={"inputs": "w1 w2 w3"}) for path in ("", "/embed", "/embed_all")]
        unknown = await client.post("/trunks/three/embed", json={"inputs": "w1"})
        tokens = (await client.post("/trunks/two/tokenize", json={"inputs": "w1"})).json()
        info = (await client.get("/info")).json()
        metrics = (await client.get("/metrics")).text

    assert ["one", "two"] == [row["id"] for row in models["data"]]
    assert 4 == openai["usage"]["total_tokens"]
    assert [200, 200, 200] == [answer.status_code for answer in tei]
    assert 4 == len(tei[2].json()[0])
    assert (404, "Validation") == (unknown.status_code, unknown.json()["error_type"])
    assert [2, 5, 3] == [token["id"] for token in tokens[0]]
    assert ["one", "two"] == [trunk["name"] for trunk in info["trunks"]]
    assert 'trunkline_embedding_batches_total{outcome="ok",trunk="two"}' in metrics
    assert 'trunkline_embedding_queue_age_seconds{trunk="one"} 0.0' in metrics


async def test_a_trunk_that_fails_says_so_in_its_own_health_until_a_pass_goes_well(start: Start, tokenizer_json: bytes) -> None:
    def fail(_: Batch) -> None:
        raise RuntimeError("broken")

    first, second = FakeBackend(tokenizer_json, name="one"), FakeBackend(tokenizer_json, name="two", fault=fail)
    addresses = await start(first, second, cache_bytes=0)
    async with AsyncEmbeddingClient(addresses.grpc) as client, insecure_channel(addresses.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def statuses() -> list[int]:
            names = ("trunk/one", "trunk/two")
            return [(await health.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names]

        before = await statuses()
        with pytest.raises(Unavailable, match="forward pass failed"):
            await client.embed(["w1"], trunk="two")
        broken = await statuses()
        await client.embed(["w1"])
        second.fault = None
        await client.embed(["w1"], trunk="two")
        after = await statuses()

    assert ([1, 1], [1, 2], [1, 1]) == (before, broken, after)


def test_two_trunks_of_one_name_are_refused() -> None:
    with pytest.raises(PreparationError, match="call one otherwise with NAME=SOURCE"):
        _check_names(["a", "b", "a"])


@pytest.mark.parametrize(("given", "expected"), [("a", ("a",)), ("x=a, b", ("x=a", "b")), ("", ())])
def test_the_environment_names_several_trunks_with_commas_between(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TRUNKLINE_EMBEDDING_MODEL", given)
    assert expected == Settings().model


def test_steps_of_a_trunk_are_named_with_commas_between_and_get_their_versions() -> None:
    assert ("nfkc/1", "lower/1") == Settings(preprocess="nfkc, lower/1").preprocess  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="there is no text step 'shout/1'"):
        Settings(preprocess="lower,shout")  # type: ignore[arg-type]


@pytest.mark.parametrize("cache_bytes", [0, 1_000_000])
async def test_a_full_queue_refuses_before_tokenising_but_not_what_the_cache_knows(
    start: Start, tokenizer_json: bytes, cache_bytes: int
) -> None:
    gate = Gate()
    gate.open()
    backend = FakeBackend(tokenizer_json, fault=gate)
    addresses = await start(backend, cache_bytes=cache_bytes, max_queued_tokens=8, max_batch_tokens=8)
    async with AsyncEmbeddingClient(addresses.grpc, timeout=10.0) as client:
        await client.embed(["w1 w2"])
        gate.close()
        running = asyncio.create_task(client.embed(["w3"]))
        await until(lambda: len(backend.batches) == 2)
        # An empty queue takes any list, and is full with this one, which no thread takes ahead.
        waiting = asyncio.create_task(client.embed(["w4 w5 w6 w7 w8 w9"], priority="bulk"))
        async with httpx.AsyncClient(base_url=addresses.http) as http:
            while 'queue_entries{trunk="fake"} 1.0' not in (await http.get("/metrics")).text:
                await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await client.embed(["w10"])
        if cache_bytes:
            assert (1, 8) == (await client.embed(["w1 w2"])).vectors.shape
        else:
            with pytest.raises(Overloaded):
                await client.embed(["w1 w2"])
        gate.open()
        await asyncio.gather(running, waiting)


async def test_a_queue_that_moved_too_slowly_takes_calls_again_once_it_moves(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate()
    addresses = await start(FakeBackend(tokenizer_json, fault=gate), cache_bytes=0, max_queue_seconds=0.05)
    async with AsyncEmbeddingClient(addresses.grpc, timeout=10.0) as client:
        asked = [asyncio.create_task(client.embed(["w1"]))]
        assert await asyncio.to_thread(gate.is_reached.wait, 10)
        asked.append(asyncio.create_task(client.embed(["w2 w3"])))
        await asyncio.sleep(0.2)
        with pytest.raises(Overloaded, match="too slowly"):
            await client.embed(["w4"])
        gate.open()
        await asyncio.gather(*asked)
        await client.embed(["w5"])
