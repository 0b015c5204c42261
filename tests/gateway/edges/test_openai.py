from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import openai
import pytest

from gateway.edges.openai import EmbeddingsAnswer
from gateway.embedding import cut
from gateway.settings import Settings
from tests.gateway.fakes import WIDTH, FakeEmbedder, FakeGateway, FakeTrunks, head, state_of


@asynccontextmanager
async def client(app: FakeGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own, unmodified."""
    async with app.served() as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as found:
        yield found


@pytest.fixture
def gateway(trunks: FakeTrunks) -> FakeGateway:
    return FakeGateway(state_of(trunks, head("spam"), settings=Settings(_cli_parse_args=[], max_texts=8)))


async def test_the_openai_client_gets_a_vector_for_each_text(gateway: FakeGateway) -> None:
    async with client(gateway) as found:
        coded = await found.embeddings.create(input=["a", "b c", "a"], model="any")
        plain = await found.embeddings.create(input=["a", "b c", "a"], model="any", encoding_format="float")

    # "a" is three tokens with the special ones, and the fake's vector is their number less one.
    assert [[2.0] * WIDTH, [3.0] * WIDTH, [2.0] * WIDTH] == [one.embedding for one in coded.data]
    assert [one.embedding for one in plain.data] == [one.embedding for one in coded.data]
    assert [0, 1, 2] == [one.index for one in coded.data]
    assert (10, 10) == (coded.usage.prompt_tokens, coded.usage.total_tokens)
    assert "tiny" == coded.model


async def test_token_ids_are_taken_as_they_are(gateway: FakeGateway) -> None:
    async with client(gateway) as found:
        one = await found.embeddings.create(input=[2, 5, 6, 7, 3], model="any")
        several = await found.embeddings.create(input=[[2, 3], [2, 5, 3]], model="any")
        with pytest.raises(openai.BadRequestError, match="input 0"):
            await found.embeddings.create(input=[5] * 65, model="any")
    assert [[4.0] * WIDTH] == [vector.embedding for vector in one.data]
    assert [[1.0] * WIDTH, [2.0] * WIDTH] == [vector.embedding for vector in several.data]


async def test_fewer_dimensions_are_the_first_ones_at_length_one_by_the_view_that_heads_read(trunks: FakeTrunks) -> None:
    embedder = FakeEmbedder(trunks)
    async with client(FakeGateway(state_of(trunks, head("spam"), embedder=embedder))) as found:
        cut_down = await found.embeddings.create(input="a", model="any", dimensions=2)
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            await found.embeddings.create(input="a", model="any", dimensions=WIDTH + 1)
    np.testing.assert_allclose(cut_down.data[0].embedding, [2**-0.5] * 2, rtol=1e-6)
    assert 1 == len({views for _, views in embedder.calls})


def test_a_vector_of_nothing_stays_one() -> None:
    np.testing.assert_array_equal(cut(np.array([[0.0, 0.0, 1.0]], np.float32), 2), [[0.0, 0.0]])


async def test_the_openai_client_lists_the_trunk(gateway: FakeGateway) -> None:
    async with client(gateway) as found:
        assert ["tiny"] == [model.id async for model in found.models.list()]


async def test_nulls_are_as_if_left_out(gateway: FakeGateway) -> None:
    body = {"input": "a", "model": None, "encoding_format": None, "dimensions": None, "user": None, "more": 1}
    async with gateway.http() as http:
        said = await http.post("/v1/embeddings", json=body)
    assert 200 == said.status_code
    assert 1 == len(msgspec.json.decode(said.content, type=EmbeddingsAnswer).data)


@pytest.mark.parametrize(
    "body",
    [
        {"input": []},
        {"input": [[]]},
        {"input": [""]},
        {"input": ["a", 3]},
        {"input": [[1], "a"]},
        {"input": [-1]},
        {"input": [2**31]},
        {"input": [True]},
        {"input": "a", "dimensions": 0},
        {"input": "a", "encoding_format": "SECRET"},
        {"input": {"SECRET": 1}},
        {"input": ["a"] * 9},
        {"input": [[1]] * 9},
        {"input": [1] * 65_537},
        {"model": "m"},
    ],
)
async def test_what_cannot_be_embedded_is_refused_in_the_protocols_shape(gateway: FakeGateway, body: object) -> None:
    async with gateway.http() as http:
        said = await http.post("/v1/embeddings", json=body)
    assert 400 == said.status_code
    assert {"message", "type", "param", "code"} == said.json()["error"].keys()
    assert "invalid_request_error" == said.json()["error"]["type"]
    assert "SECRET" not in said.text


async def test_an_exchanged_trunk_is_asked_for_again(trunks: FakeTrunks, gateway: FakeGateway) -> None:
    async with gateway.http() as http:
        await http.post("/v1/embeddings", json={"input": "a"})
        trunks.live = "sha256:two"
        assert 200 == (await http.post("/v1/embeddings", json={"input": "a"})).status_code
