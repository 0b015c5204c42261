import asyncio
import threading

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clients import (
    AsyncEmbeddingClient,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
    View,
)
from embedding_service.backend import Batch
from embedding_service.backend.fake import FakeBackend, checksum_vector
from tests.embedding_service.conftest import Start


async def test_texts_and_their_token_ids_get_the_same_vectors(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        answer = await client.embed(["w1 w2", [2, 5, 6, 3]])

    np.testing.assert_array_equal(answer.vectors[0], answer.vectors[1])
    np.testing.assert_array_equal(checksum_vector((2, 5, 6, 3)), answer.vectors[0])
    assert (4, 4) == answer.num_tokens


async def test_equal_inputs_of_one_call_go_through_the_trunk_once(start: Start, tokenizer_json: bytes) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        answer = await client.embed(["w1", "w2", "w1", "w1"])

    assert 2 == sum(len(batch.token_ids) for batch in backend.batches)
    np.testing.assert_array_equal(answer.vectors[0], answer.vectors[3])


async def test_several_views_come_from_one_forward_pass(start: Start, tokenizer_json: bytes) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        answer = await client.embed(["w1 w2", "w3"], views=[View(), View(pooling="tokens")])

    assert 1 == sum((2, 5, 6, 3) in batch.token_ids for batch in backend.batches)
    assert (4, 3) == answer.views[1].row_tokens
    assert (7, 8) == answer.views[1].array.shape


async def test_a_long_text_is_truncated_and_says_so(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json, max_tokens=6))
    long = "w1 w2 w3 w4 w5 w6"
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        right = await client.embed([long, "w1"])
        left = await client.embed([long], truncation="left")
        with pytest.raises(InvalidRequest, match="more than the 6 tokens"):
            await client.embed([long], truncation="error")

    assert (True, False) == right.truncated
    assert (6, 3) == right.num_tokens
    np.testing.assert_array_equal(checksum_vector((2, 5, 6, 7, 8, 3)), right.vectors[0])
    np.testing.assert_array_equal(checksum_vector((2, 7, 8, 9, 10, 3)), left.vectors[0])


async def test_float16_vectors_travel_as_asked(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        answer = await client.embed(["w1"], dtype="float16")

    assert np.float16 == answer.vectors.dtype


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no inputs"),
        ([""], "input 0 is empty"),
        (["w1", "\u200b \t"], "input 1 is empty once"),
        ([[2, 40_000, 3]], "outside the vocabulary"),
        ([[]], "no token ids"),
        ([[2] * 65], "more than the 64"),
        (["w1"] * 9, "more than the 8 of one call"),
    ],
)
async def test_input_that_can_never_be_served_is_refused_before_the_queue(
    start: Start, tokenizer_json: bytes, inputs: list[str | list[int]], message: str
) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend, max_request_inputs=8)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        with pytest.raises(InvalidRequest, match=message):
            await client.embed(inputs)

    assert [] == backend.batches


async def test_an_unknown_trunk_layer_or_width_is_refused(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        with pytest.raises(NotFound, match="this service has: fake"):
            await client.embed(["w1"], trunk="other")
        with pytest.raises(InvalidRequest, match="layers -1"):
            await client.embed(["w1"], views=[View(layer=0)])
        with pytest.raises(InvalidRequest, match="9 dims"):
            await client.embed(["w1"], views=[View(dims=9)])


async def test_token_ids_made_for_another_trunk_are_refused(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        with pytest.raises(FailedPrecondition, match="another trunk"):
            await client.embed([[2, 3]], trunk_fingerprint="sha256:" + "1" * 64)


async def test_a_trunk_describes_itself_so_that_callers_can_tokenise(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        trunk = await client.trunk(with_tokenizer=True)
        bare = await client.trunk()

    assert ("fake", 8, 64) == (trunk.name, trunk.width, trunk.max_tokens)
    assert tokenizer_json == trunk.tokenizer_json
    assert b"" == bare.tokenizer_json


async def test_a_full_queue_answers_overloaded_with_a_time_to_come_back(start: Start, tokenizer_json: bytes) -> None:
    gate = threading.Event()
    backend = FakeBackend(tokenizer_json, fault=lambda _: _wait(gate))
    addresses = await start(backend, max_queued_tokens=8, max_batch_tokens=8)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        running = asyncio.create_task(client.embed(["w1"]))
        await _until_running(backend)
        queued = asyncio.create_task(client.embed(["w1 w2 w3"]))
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded) as refusal:
            await client.embed(["w4 w5"])
        gate.set()
        await asyncio.gather(running, queued)

    assert refusal.value.retry_after is not None
    assert refusal.value.retry_after > 0


async def test_a_callers_deadline_is_kept_while_the_backend_hangs(start: Start, tokenizer_json: bytes) -> None:
    gate = threading.Event()
    addresses = await start(FakeBackend(tokenizer_json, fault=lambda _: _wait(gate)))
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        with pytest.raises(DeadlineExceeded):
            await client.embed(["w1"], timeout=0.1)
        gate.set()
        assert 1 == len((await client.embed(["w2"])).num_tokens)


async def test_a_fault_in_the_backend_is_unavailable_and_the_next_call_works(start: Start, tokenizer_json: bytes) -> None:
    faults = iter([RuntimeError("out of memory")])

    def fault(_: Batch) -> None:
        for error in faults:
            raise error

    addresses = await start(FakeBackend(tokenizer_json, fault=fault))
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        with pytest.raises(Unavailable, match="forward pass"):
            await client.embed(["w1"])
        assert 1 == len((await client.embed(["w1"])).num_tokens)


@pytest.mark.parametrize("name", ["", "trunk/fake", "trunkline.embedding.v1.EmbeddingService"])
async def test_grpc_health_tells_of_the_server_and_of_each_trunk(start: Start, tokenizer_json: bytes, name: str) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with grpc.aio.insecure_channel(addresses.grpc) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=5)

    assert health_pb2.HealthCheckResponse.SERVING == answer.status


async def _until_running(backend: FakeBackend) -> None:
    async with asyncio.timeout(5):
        while not backend.batches:
            await asyncio.sleep(0.005)


def _wait(gate: threading.Event) -> None:
    assert gate.wait(10)
