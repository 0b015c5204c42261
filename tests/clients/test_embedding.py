import asyncio

import grpc
import numpy as np
import pytest

from clients import (
    AsyncEmbeddingClient,
    Cancelled,
    DeadlineExceeded,
    EmbeddingClient,
    FailedPrecondition,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    Overloaded,
    Unavailable,
    View,
)
from clients.wire import embedding_pb2 as pb
from tests.clients.fakes import EMBED, FINGERPRINT, WIDTH, FakeEmbeddingService, answer, serving


@pytest.fixture
def service():
    return FakeEmbeddingService()


@pytest.fixture
async def address(service):
    async with serving(service.handlers()) as address:
        yield address


@pytest.fixture
async def client(address):
    async with AsyncEmbeddingClient(address) as client:
        yield client


@pytest.fixture
def blocking(address):
    with EmbeddingClient(address) as client:
        yield client


async def test_texts_become_one_row_each_in_their_order(client):
    found = await client.embed(["a", "bbb"])
    assert found.vectors.dtype == np.float32
    assert found.vectors.tolist() == [[1.0] * WIDTH, [3.0] * WIDTH]
    assert found.num_tokens == (1, 3)
    assert found.truncated == (False, False)
    assert found.trunk_fingerprint == FINGERPRINT
    assert found.durations.tokenization == 0.001
    assert found.durations.total == 2.0


async def test_what_is_asked_for_travels_in_the_request(client, service):
    await client.embed(
        ["text", [101, 7, 102]],
        trunk="small",
        views=[View("cls", layer=0, normalize=False, dims=2), View()],
        truncation="left",
        priority="bulk",
        dtype="float16",
        trunk_fingerprint=FINGERPRINT,
        request_id="r-1",
    )
    [request] = service.requests
    assert [one.WhichOneof("value") for one in request.inputs] == ["text", "tokens"]
    assert list(request.inputs[1].tokens.ids) == [101, 7, 102]
    cls, plain = request.views
    assert (cls.pooling, cls.layer, cls.normalize, cls.dims) == (pb.POOLING_CLS, 0, False, 2)
    assert cls.HasField("layer")
    assert cls.HasField("normalize")
    assert not plain.HasField("layer")
    assert not plain.HasField("normalize")
    assert request.truncation == pb.TRUNCATION_LEFT
    assert request.priority == pb.PRIORITY_BULK
    assert request.trunk_fingerprint == FINGERPRINT
    assert service.metadata[0]["x-request-id"] == "r-1"


async def test_a_tokens_view_says_which_rows_are_whose(client):
    found = await client.embed(["a", "bb"], views=[View(), View("tokens")], dtype="float16")
    pooled, tokens = found.views
    assert pooled.row_tokens == ()
    assert tokens.row_tokens == (2, 2)
    assert tokens.array.shape == (4, WIDTH)
    assert tokens.array.dtype == np.float16


async def test_vectors_lie_in_the_answers_own_bytes(client):
    found = await client.embed(["a"])
    assert not found.vectors.flags.writeable
    assert not found.vectors.flags.owndata


async def test_a_trunk_describes_itself(client):
    trunk = await client.trunk(with_tokenizer=True)
    assert trunk.max_request_inputs == 8
    assert trunk.default_view == View("mean", layer=-1, normalize=True)
    assert trunk.layers == (-1, -2)
    assert trunk.tokenizer_json == b"{}"
    assert (await client.trunk("small")).tokenizer_json == b""


async def test_an_unknown_trunk_is_not_found(client):
    with pytest.raises(NotFound, match="no such trunk"):
        await client.trunk("large")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ("one text", "give one text as"),
        (["fine", "lone \ud800 surrogate"], "input 1 is neither"),
        ([[1, -1]], "input 0 is neither"),
        ([[2**32]], "input 0 is neither"),
        ([[1.5]], "input 0 is neither"),
        ([None], "input 0 is neither"),
    ],
)
async def test_inputs_that_cannot_travel_are_refused_here(client, service, inputs, words):
    with pytest.raises(InvalidRequest, match=words):
        await client.embed(inputs)
    assert service.requests == []


async def test_an_unknown_pooling_is_refused_here(client):
    with pytest.raises(InvalidRequest, match="median"):
        await client.embed(["a"], views=[View("median")])


async def test_a_request_id_that_cannot_be_a_header_is_refused_here(client):
    with pytest.raises(InvalidRequest, match="printable"):
        await client.embed(["a"], request_id="line\nbreak")


async def test_a_full_service_says_when_to_come_back(client, service):
    service.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, (("retry-after-ms", "1500"),))]
    with pytest.raises(Overloaded) as caught:
        await client.embed(["a"], request_id="r-2")
    assert caught.value.retry_after == 1.5
    assert caught.value.request_id == "r-2"
    assert caught.value.message == "refused by the test"


async def test_a_call_ends_with_its_timeout():
    async def never(data, context):
        await asyncio.sleep(60)

    async with serving({EMBED: never}) as address, AsyncEmbeddingClient(address) as client:
        with pytest.raises(DeadlineExceeded):
            await client.embed(["a"], timeout=0.05)


async def test_a_timeout_that_is_spent_already_ends_the_call_at_once(client):
    with pytest.raises(DeadlineExceeded):
        await client.embed(["a"], timeout=-1.0)


async def test_nobody_there_is_unavailable_and_not_a_wait():
    async with AsyncEmbeddingClient("127.0.0.1:1", timeout=30) as client:
        with pytest.raises(Unavailable):
            await asyncio.wait_for(client.embed(["a"]), 10)


async def test_a_cancelled_task_stays_cancelled_and_the_client_goes_on():
    async def never(data, context):
        started.set()
        await asyncio.sleep(60)

    started = asyncio.Event()
    service = FakeEmbeddingService()
    async with (
        serving(service.handlers() | {EMBED: never}) as address,
        AsyncEmbeddingClient(address) as client,
    ):
        task = asyncio.create_task(client.embed(["a"]))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.trunk()).name == "small"


async def test_closing_the_client_ends_its_calls_with_an_error_of_ours():
    async def never(data, context):
        started.set()
        await asyncio.sleep(60)

    started = asyncio.Event()
    async with serving({EMBED: never}) as address:
        client = AsyncEmbeddingClient(address)
        task = asyncio.create_task(client.embed(["a"]))
        await started.wait()
        await client.close()
        with pytest.raises(Cancelled):
            await task


async def test_closing_the_blocking_twin_ends_its_calls_with_an_error_of_ours():
    async def never(data, context):
        started.set()
        await asyncio.sleep(60)

    started = asyncio.Event()
    async with serving({EMBED: never}) as address:
        client = EmbeddingClient(address)
        call = asyncio.create_task(asyncio.to_thread(client.embed, ["a"]))
        await started.wait()
        client.close()
        with pytest.raises(Cancelled):
            await call


async def test_numpy_integers_are_token_ids(client, service):
    await client.embed([np.array([101, 102])])
    assert list(service.requests[0].inputs[0].tokens.ids) == [101, 102]


async def test_a_server_that_returns_is_found_within_the_backoff():
    service = FakeEmbeddingService()
    async with serving(service.handlers()) as address:
        client = AsyncEmbeddingClient(address)
        await client.embed(["a"])
    with pytest.raises(Unavailable):
        await client.embed(["a"])
    async with serving(service.handlers(), address):
        async with asyncio.timeout(10):
            while True:
                try:
                    found = await client.embed(["bb"])
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
        assert found.num_tokens == (2,)
        await client.close()


def _broken(change):
    async def embed(data, context):
        response = answer(pb.EmbedRequest.FromString(data))
        change(response)
        return response.SerializeToString()

    return embed


def _drop_view(response):
    del response.views[0]


def _drop_input(response):
    del response.inputs[0]


def _cut_bytes(response):
    response.views[0].tensor.data = response.views[0].tensor.data[:-1]


def _other_shape(response):
    response.views[0].tensor.shape[:] = [1, 2 * WIDTH]


def _flat(response):
    response.views[0].tensor.shape[:] = [2 * WIDTH]


def _other_dtype(response):
    response.views[0].tensor.dtype = pb.DTYPE_FLOAT16


def _unknown_dtype(response):
    response.views[0].tensor.dtype = 77


def _tokens_unasked(response):
    response.views[0].row_tokens[:] = [1, 1]


@pytest.mark.parametrize(
    "change",
    [_drop_view, _drop_input, _cut_bytes, _other_shape, _flat, _other_dtype, _unknown_dtype, _tokens_unasked],
)
async def test_an_answer_that_is_not_the_contract_is_refused(change):
    async with serving({EMBED: _broken(change)}) as address, AsyncEmbeddingClient(address) as client:
        with pytest.raises(InvalidResponse):
            await client.embed(["a", "bb"], views=[View("mean")])


async def test_rows_of_tokens_that_do_not_add_up_are_refused():
    def change(response):
        response.views[0].row_tokens[:] = [3, 2]

    async with serving({EMBED: _broken(change)}) as address, AsyncEmbeddingClient(address) as client:
        with pytest.raises(InvalidResponse, match="4 rows"):
            await client.embed(["a", "bb"], views=[View("tokens")])


async def test_bytes_that_are_no_message_are_refused():
    async def noise(data, context):
        return b"\xff\xff\xff"

    async with serving({EMBED: noise}) as address, AsyncEmbeddingClient(address) as client:
        with pytest.raises(InvalidResponse):
            await client.embed(["a"])


async def test_the_blocking_twin_answers_the_same(blocking, client):
    found = await asyncio.to_thread(blocking.embed, ["a", "bbb"], views=[View("mean")])
    twin = await client.embed(["a", "bbb"], views=[View("mean")])
    np.testing.assert_array_equal(found.vectors, twin.vectors)
    assert await asyncio.to_thread(blocking.trunk) == await client.trunk()


async def test_the_blocking_twin_raises_the_same(blocking, service):
    service.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, (("retry-after-ms", "20"),))]
    with pytest.raises(Overloaded) as caught:
        await asyncio.to_thread(blocking.embed, ["a"])
    assert caught.value.retry_after == 0.02


async def test_a_long_list_goes_in_parts_and_comes_back_whole(blocking, service):
    done: list[int] = []
    texts = ["x" * n for n in range(1, 21)]
    found = await asyncio.to_thread(blocking.embed_all, texts, views=[View("mean"), View("tokens")], progress=done.append)
    assert found.vectors[:, 0].tolist() == list(range(1, 21))
    assert found.views[1].row_tokens == (2,) * 20
    assert found.num_tokens == tuple(range(1, 21))
    assert found.durations.total == 6.0
    assert done == [8, 16, 20]
    assert [len(request.inputs) for request in service.requests] == [8, 8, 4]
    assert {request.priority for request in service.requests} == {pb.PRIORITY_BULK}
    assert {request.trunk_fingerprint for request in service.requests} == {FINGERPRINT}


async def test_a_part_that_finds_the_service_full_is_sent_again(blocking, service):
    full = (grpc.StatusCode.RESOURCE_EXHAUSTED, (("retry-after-ms", "10"),))
    service.refusals = [full, (grpc.StatusCode.RESOURCE_EXHAUSTED, ()), full]
    found = await asyncio.to_thread(blocking.embed_all, ["a", "bb"])
    assert found.num_tokens == (1, 2)
    assert service.refusals == []


async def test_waiting_for_a_full_service_ends_with_the_timeout(blocking, service):
    service.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, (("retry-after-ms", "60000"),))]
    with pytest.raises(Overloaded):
        await asyncio.to_thread(blocking.embed_all, ["a"], timeout=1.0)


async def test_only_a_full_service_is_asked_again(blocking, service):
    service.refusals = [(grpc.StatusCode.INTERNAL, ()), (grpc.StatusCode.INTERNAL, ())]
    with pytest.raises(Exception, match="refused by the test"):
        await asyncio.to_thread(blocking.embed_all, ["a"])
    assert len(service.refusals) == 1


async def test_a_trunk_exchanged_half_way_ends_a_long_list(blocking, service):
    def exchange(done):
        service.fingerprint = "sha256:" + "1" * 64

    with pytest.raises(FailedPrecondition, match="exchanged"):
        await asyncio.to_thread(blocking.embed_all, ["a"] * 9, progress=exchange)


async def test_what_cannot_be_served_by_itself_is_raised_and_a_list_of_such_is_not_tried_bit_by_bit(blocking, service):
    bad = (grpc.StatusCode.INVALID_ARGUMENT, ())
    service.refusals = [bad] * 9
    with pytest.raises(InvalidRequest):
        await asyncio.to_thread(blocking.embed_all, ["a"] * 8)
    assert 8 == len(service.refusals)
    with pytest.raises(InvalidRequest):
        await asyncio.to_thread(blocking.embed_all, ["a"] * 8, truncation="window")
    # All eight, the first four, the first two, the first.
    assert 4 == len(service.refusals)


async def test_an_empty_list_is_refused(blocking):
    with pytest.raises(InvalidRequest, match="no texts"):
        await asyncio.to_thread(blocking.embed_all, [])
