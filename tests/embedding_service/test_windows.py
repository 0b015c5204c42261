import asyncio

import numpy as np
import pytest

from clients import AsyncEmbeddingClient, Deadline, EmbeddingClient, InvalidRequest, TableKey, TextPair, View
from embedding_service import backend, infer
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.backend.pooling import finish
from embedding_service.windows import join_windows, window_views
from tests.embedding_service.conftest import Start

LONG = " ".join(f"w{number}" for number in range(1, 8))
WINDOWS = ((2, 5, 6, 7, 8, 3), (2, 8, 9, 10, 11, 3))
"""LONG for a trunk of six tokens."""


def raw_view(pooling, *, normalize=False, dims=0):
    return backend.View(pooling, -1, normalize, dims)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [2.5, 7.0]), ("cls", [2.5, 7.0]), ("sep", [2.5, 7.0]), ("max", [4.0, 8.0]), ("mean_max", [2.5, 8.0])],
)
def test_vectors_of_windows_are_pooled_by_their_lengths_or_to_their_maximum(pooling, expected):
    rows = [[np.array([1.0, 8.0], dtype=np.float32)], [np.array([4.0, 6.0], dtype=np.float32)]]
    [joined] = join_windows(rows, [6, 6], [raw_view(pooling)])
    np.testing.assert_allclose(joined, expected)
    [weighted] = join_windows(rows, [6, 2], [raw_view("mean")])
    np.testing.assert_allclose(weighted, [1.75, 7.5])


def test_dims_and_length_one_come_after_the_windows_are_pooled():
    view = raw_view("mean", normalize=True, dims=1)
    [asked] = window_views([view])
    assert (asked.normalize, asked.dims) == (False, 0)
    rows = [[np.array([3.0, 4.0], dtype=np.float32)], [np.array([1.0, 0.0], dtype=np.float32)]]
    np.testing.assert_allclose(join_windows(rows, [1, 1], [view])[0], [1.0])


async def test_a_long_text_is_read_whole_and_says_in_how_many_windows(start: Start, tokenizer_json: bytes) -> None:
    trunk = FakeBackend(tokenizer_json, max_tokens=6)
    addresses = await start(trunk)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        answer = await client.embed(["w1", LONG, "w2"], truncation="window", views=[View(normalize=True)])
        stream = client.stream(truncation="window", views=[View(normalize=True)])
        [[streamed]] = await stream.embed([LONG], Deadline.after(5))
        await stream.close()

    expected = finish(np.mean([checksum_vector(ids) for ids in WINDOWS], axis=0)[None], raw_view("mean", normalize=True))[0]
    np.testing.assert_allclose(expected, answer.vectors[1], atol=1e-6)
    np.testing.assert_allclose(expected, streamed, atol=1e-6)
    assert ((1, 2, 1), (3, 12, 3), (False, False, False)) == (answer.num_windows, answer.num_tokens, answer.truncated)


async def test_windows_are_refused_where_they_have_no_meaning_or_are_too_many(start: Start, tokenizer_json: bytes) -> None:
    trunk = FakeBackend(tokenizer_json, max_tokens=6)
    addresses = await start(trunk, max_request_inputs=4)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        with pytest.raises(InvalidRequest, match="has no token view"):
            await client.embed([LONG], truncation="window", views=[View(pooling="tokens")])
        with pytest.raises(InvalidRequest, match="more than the 4 of one call"):
            await client.embed([LONG * 20], truncation="window")
        with pytest.raises(InvalidRequest, match="more than the 6 tokens"):
            await client.embed([TextPair(LONG, LONG)], truncation="window")
        stream = client.stream(truncation="window", views=[View(pooling="tokens")])
        with pytest.raises(InvalidRequest, match="has no token view"):
            await stream.embed([LONG], Deadline.after(5))
        assert 1 == len(await stream.embed(["w1"], Deadline.after(5)))
        await stream.close()

    assert [(2, 5, 3)] == [ids for batch in trunk.batches for ids in batch.token_ids]


async def test_a_pair_goes_through_the_trunk_as_one_row_and_apart_from_a_text_of_its_tokens(
    start: Start, tokenizer_json: bytes
) -> None:
    trunk = FakeBackend(tokenizer_json)
    addresses = await start(trunk)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        pair = await client.embed([TextPair("w1 w2", "w3")])
        alike = await client.embed([[2, 5, 6, 3, 7, 3]])
        cut = await client.embed([TextPair("w1 " * 80, "w3")])
        for bad in (TextPair("w1", "\u200b"), TextPair("", "w1"), TextPair("w1", "")):
            with pytest.raises(InvalidRequest, match="text of input 0 is empty"):
                await client.embed([bad])
        with pytest.raises(InvalidRequest, match="takes texts or token ids"):
            await client.embed([TableKey("w1")])

    assert [(4,), (), (62,)] == [batch.pair_at for batch in trunk.batches]
    assert ((2, 5, 6, 3, 7, 3), (2, 5, 6, 3, 7, 3)) == (trunk.batches[0].token_ids[0], trunk.batches[1].token_ids[0])
    assert ((6,), (6,), (True,)) == (pair.num_tokens, alike.num_tokens, cut.truncated)


async def test_a_list_whose_windows_are_more_than_a_call_takes_goes_in_smaller_parts(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json, max_tokens=6), max_request_inputs=4)

    def ask() -> tuple[int, ...]:
        with EmbeddingClient(addresses.grpc) as client:
            return client.embed_all(["w1", "w2", LONG, "w3", LONG, "w4"], truncation="window").num_windows

    assert (1, 1, 2, 1, 2, 1) == await asyncio.to_thread(ask)


async def test_a_list_whose_tokens_vectors_are_more_than_an_answer_carries_goes_in_smaller_parts(
    start: Start, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 24 numbers a text, three texts are an answer's most.
    monkeypatch.setattr(infer, "_BYTES_OF_NUMBER", infer.MAX_VECTOR_BYTES // 72)
    backend_of_ours = FakeBackend(tokenizer_json)
    addresses = await start(backend_of_ours)

    def ask() -> tuple[int, ...]:
        with EmbeddingClient(addresses.grpc) as client:
            return client.embed_all([f"w{number}" for number in range(1, 9)], views=[View("tokens")]).views[0].row_tokens

    assert (3,) * 8 == await asyncio.to_thread(ask)
    assert 8 == sum(len(batch.token_ids) for batch in backend_of_ours.batches)
