import httpx
import pytest

from clients import AsyncEmbeddingClient, Deadline, InvalidRequest, TextPair
from embedding_service.backend.fake import FakeBackend
from tests.embedding_service.conftest import Start

PROMPTS = {"query": "w100 ", "passage": "w101 w102 "}


async def test_a_prompt_chosen_by_name_stands_before_each_text(start: Start, tokenizer_json: bytes) -> None:
    backend = FakeBackend(tokenizer_json, prompts=PROMPTS)
    addresses = await start(backend, max_batch_requests=1)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        trunk = await client.trunk()
        await client.embed(["w1"], prompt_name="query")
        await client.embed([TextPair("w1", "w2")], prompt_name="passage")
        await client.embed([[2, 5, 3]], prompt_name="query")
        stream = client.stream(prompt_name="query")
        await stream.embed(["w2"], Deadline.after(5))
        await stream.close()
        with pytest.raises(InvalidRequest, match="no prompt of that name; it has: passage, query"):
            await client.embed(["w1"], prompt_name="w1 w2")
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        answer = await http.post("/embed", json={"inputs": "w3", "prompt_name": "query"})

    assert PROMPTS == trunk.prompts
    assert 200 == answer.status_code
    expected = [(2, 104, 5, 3), (2, 105, 106, 5, 3, 6, 3), (2, 5, 3), (2, 104, 6, 3), (2, 104, 7, 3)]
    assert expected == [ids for batch in backend.batches for ids in batch.token_ids]


async def test_every_window_of_a_long_text_has_the_prompt(start: Start, tokenizer_json: bytes) -> None:
    backend = FakeBackend(tokenizer_json, prompts=PROMPTS, max_tokens=7)
    addresses = await start(backend)
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        answer = await client.embed(["w1 w2 w3 w4 w5 w6 w7"], prompt_name="query", truncation="window")

    assert (2,) == answer.num_windows
    rows = [ids for batch in backend.batches for ids in batch.token_ids]
    assert {(2, 104, 5, 6, 7, 8, 3), (2, 104, 8, 9, 10, 11, 3)} == set(rows)


@pytest.mark.parametrize("prompt_name", ["", "query"])
async def test_a_prompt_does_not_make_something_of_nothing(start: Start, tokenizer_json: bytes, prompt_name: str) -> None:
    addresses = await start(FakeBackend(tokenizer_json, prompt="w7 ", prompts=PROMPTS))
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        for nothing in (" \x00 ", TextPair(" ", "w1"), TextPair("w1", "\x00")):
            with pytest.raises(InvalidRequest, match="is empty"):
                await client.embed([nothing], prompt_name=prompt_name)
        with pytest.raises(InvalidRequest, match="is empty"):
            await client.embed([" \x00 "], prompt_name=prompt_name, truncation="window")
        assert 2 == len((await client.embed(["w7", "w100"], prompt_name=prompt_name)).vectors)


async def test_a_trunk_without_prompts_says_so(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with AsyncEmbeddingClient(addresses.grpc) as client:
        with pytest.raises(InvalidRequest, match="it has: none to choose from"):
            await client.embed(["w1"], prompt_name="query")
