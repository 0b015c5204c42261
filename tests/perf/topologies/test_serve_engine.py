from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from embedding_service.backend.fake import FakeBackend, checksum_vector
from perf.topologies.serve_engine import Passes, WholeModel, app_of
from perf.topologies.weights import label_of
from tests.perf.topologies.weighted import head
from tests.tiny_trunk import make_tiny_trunk

TONE = head("tone", "good", "bad", "neither", width=8)
TOPIC = head("topic", "x", "y", width=8)


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    trunk: Path = make_tiny_trunk(tmp_path_factory.mktemp("trunks") / "tiny")
    return (trunk / "tokenizer.json").read_bytes()


@asynccontextmanager
async def asking(*models: WholeModel) -> AsyncIterator[httpx.AsyncClient]:
    with ThreadPoolExecutor(2) as pool:
        transport = httpx.ASGITransport(app_of(models, pool))
        async with httpx.AsyncClient(transport=transport, base_url="http://it") as http:
            yield http


async def test_each_head_is_a_whole_model_with_a_pass_of_its_own(tokenizer_json: bytes) -> None:
    backends = [FakeBackend(tokenizer_json), FakeBackend(tokenizer_json)]
    passes = Passes()
    models = [WholeModel.of(backend, one, passes) for backend, one in zip(backends, (TONE, TOPIC), strict=True)]
    async with asking(*models) as http:
        answer = await http.post("/classify", json={"text": "a b"})

    [ids] = backends[0].batches[0].token_ids
    vector = checksum_vector(ids)
    assert {"labels": {"tone": label_of(TONE, vector), "topic": label_of(TOPIC, vector)}} == answer.json()
    assert [1, 1] == [len(backend.batches) for backend in backends]
    assert backends[0].batches[0].token_ids == backends[1].batches[0].token_ids


def test_a_pass_is_alone_while_no_other_is_under_way() -> None:
    passes = Passes()

    with passes.one() as first, passes.one() as beside:
        pass
    with passes.one() as after:
        pass

    assert (True, False, True) == (first, beside, after)


async def test_a_long_text_is_cut_as_the_trunk_takes_it(tokenizer_json: bytes) -> None:
    backend = FakeBackend(tokenizer_json, max_tokens=5)
    async with asking(WholeModel.of(backend, TONE, Passes())) as http:
        await http.post("/classify", json={"text": "a b c d e f g"})

    assert [5] == [batch.num_tokens for batch in backend.batches]


async def test_a_body_without_a_text_is_refused(tokenizer_json: bytes) -> None:
    async with asking(WholeModel.of(FakeBackend(tokenizer_json), TONE, Passes())) as http:
        assert 422 == (await http.post("/classify", json={"texts": ["a"]})).status_code
