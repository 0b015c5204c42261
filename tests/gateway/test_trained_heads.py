"""Heads as they are trained, and as the gateway then reads texts for them: the real code of both, on vectors that count words."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from clients import AsyncEmbeddingClient, Deadline, EmbeddingClient
from clients.wire.catalogue import Catalogue, Manifest
from embedding_service.backend import Batch, BatchResult
from embedding_service.backend.fake import FakeBackend
from embedding_service.service import running
from embedding_service.settings import Settings
from gateway.backends.embedding import ClientEmbedder, ClientTrunks
from gateway.classification import Classification, HeadAnswer
from gateway.fanout import FanOut
from gateway.outputs import NoOutputs
from gateway.pipeline import Pipeline
from gateway.plan import Planner
from gateway.ports import FloatArray, Rows
from head_service.catalogue import read_catalogue
from head_service.errors import DataError
from head_service.head_server import scorer_at
from head_service.lifecycle import Lifecycle
from head_service.release import release
from head_service.repository import Repository
from head_service.serving.servable import Servable
from head_service.training.dataset import Dataset, Example
from head_service.training.embeddings import EmbeddingCache
from head_service.training.run import TrainingRequest, TrainingResult, train

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "meh", "url", "0", "see"]
MAX_TOKENS = 10


class CountingBackend(FakeBackend):
    """A text's vector is the share of each of the last eight of WORDS; a special token counts for nothing."""

    def embed(self, batch: Batch) -> BatchResult:
        super().embed(batch)
        vectors = [np.bincount(ids, minlength=len(WORDS) + 2)[4:12].astype(np.float32) / len(ids) for ids in batch.token_ids]
        return [[vector] * len(views) for vector, views in zip(vectors, batch.views, strict=True)]

    @property
    def seen(self) -> set[tuple[int, ...]]:
        """The token ids of every row."""
        return {ids for batch in self.batches for ids in batch.token_ids}


def tokenizer_json() -> bytes:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer.to_str().encode()


class ServablePredictor:
    """The head server's arithmetic without its port."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        servable = Servable(manifest.name, manifest.version, self._repository.path(manifest.name, manifest.version))
        try:
            return servable.run("", {manifest.input: np.stack(list(rows))}, (manifest.output,))[manifest.output]
        finally:
            servable.close()


@dataclass
class World:
    """An embedding service, a repository, and a gateway over them."""

    backend: CountingBackend
    address: str
    repository: Repository
    client: AsyncEmbeddingClient

    @property
    def catalogue(self) -> Catalogue:
        return read_catalogue(self.repository.root)

    async def train(self, name: str, data: Dataset, **wanted: Any) -> TrainingResult:
        """Train on *data*, measured on all of it, and through the gate."""
        return await asyncio.to_thread(self._train, TrainingRequest(name, data, data, **wanted))

    def _train(self, request: TrainingRequest) -> TrainingResult:
        lifecycle = Lifecycle(self.repository, lambda _, __: None)
        with EmbeddingClient(self.address) as embedder, scorer_at("", embedder, self.repository) as scorer:
            return train(
                request,
                embedder=embedder,
                cache=EmbeddingCache(self.repository.root.parent / "embeddings.sqlite"),
                repository=self.repository,
                go_live=lambda head, version, remeasure: release(lifecycle, head, version, scorer=scorer, remeasure=remeasure),
                scorer=scorer,
                say=lambda _: None,
                embedding_progress=lambda _, __: None,
            )

    async def classify(self, head: str, texts: Sequence[str], **asked: Any) -> list[HeadAnswer]:
        """What a gateway that has just started answers."""
        embedder = ClientEmbedder([self.client], max_open=64)
        fan_out = FanOut(ServablePredictor(self.repository), head_timeout=30.0)
        pipeline = Pipeline(ClientTrunks([self.client]), embedder, fan_out, self, NoOutputs(), Planner())
        answer = await pipeline.classify(Classification(texts, heads=[head], **asked), Deadline.after(30))
        await embedder.close()
        outcome = answer.outcomes[head]
        assert isinstance(outcome, list), outcome
        return outcome


@asynccontextmanager
async def world(folder: Path, **settings: Any) -> AsyncIterator[World]:
    backend = CountingBackend(tokenizer_json(), max_tokens=MAX_TOKENS)
    given = Settings(grpc_port=0, http_port=0, cache_bytes=0, **settings)
    async with running([backend], given) as addresses, AsyncEmbeddingClient(addresses.grpc) as client:
        yield World(backend, addresses.grpc, Repository(folder / "heads"), client)


def examples(*rows: tuple[str, str]) -> Dataset:
    return Dataset(tuple(Example(text, label, line) for line, (text, label) in enumerate(rows, 2)))


MASKS = ("lower/1", "mask-urls/1", "mask-numbers/1")
OFFERS = examples(*((f"{word} {n} see http://{word}.{n}", word.lower()) for n in range(12) for word in ("GOOD", "Bad")))
FILLER = "meh " * 20


async def test_a_head_that_masks_answers_masked_variants_alike(tmp_path: Path) -> None:
    variants = ["GOOD 9,999 see https://elsewhere.example/x?y", "good 1 see www.z.org", "Good 0 See HTTP://A"]
    async with world(tmp_path) as here:
        await here.train("offers", OFFERS, preprocess=MASKS)
        here.backend.batches.clear()
        answers = await here.classify("offers", variants)

        assert {"good"} == {answer.label for answer in answers}
        assert 1 == len({answer.score for answer in answers})
        assert {(2, 4, 8, 9, 7, 3)} == here.backend.seen
        assert MASKS == here.catalogue.heads["offers"].versions[1].preprocess


LONG = examples(
    *((f"{word} see {n}", word) for n in range(8) for word in ("good", "bad")),
    *((f"{FILLER}see {n} {word}", word) for n in range(8) for word in ("good", "bad")),
)


async def test_what_tells_at_the_end_of_a_long_text_is_read_by_a_head_that_takes_the_highest_window(tmp_path: Path) -> None:
    texts = [f"{FILLER} see 9 {word}" for word in ("good", "bad")]
    async with world(tmp_path) as here:
        await here.train("cut", LONG)
        result = await here.train("highest", LONG, long_text="max")
        cut, highest = await here.classify("cut", texts), await here.classify("highest", texts)
        asked = await here.classify("cut", texts, truncation="window")

    assert result.is_live
    assert 1.0 == result.metrics.accuracy
    assert ["good", "bad"] == [answer.label for answer in highest]
    # Of both it has seen the same words.
    assert cut[0] == cut[1]
    assert cut[0] != asked[0]


@pytest.mark.parametrize("long_text", ["cut", "mean"])
async def test_training_and_serving_see_the_same_token_ids(tmp_path: Path, long_text: str) -> None:
    data = examples(
        *((f"{'Meh' * (n % 2)} {'meh ' * n} <b>{word}</b> \uff11\uff12", word) for n in range(14) for word in ("good", "bad"))
    )
    async with world(tmp_path, preprocess="nfkc,mask-numbers") as here:
        result = await here.train("shared", data, preprocess=("html-strip/1", "lower/1"), long_text=long_text)
        trained = here.backend.seen
        here.backend.batches.clear()
        answers = await here.classify("shared", data.texts)

        assert result.is_live
        assert trained == here.backend.seen
        assert any(8 in ids and 6 in ids for ids in trained)
        assert not any(1 in ids for ids in trained)
        golden = here.repository.manifest("shared", 1).golden
        for example, answer in zip(golden, answers, strict=False):
            np.testing.assert_allclose(max(example.scores), answer.score, atol=1e-5)


async def test_a_trunk_with_steps_of_its_own_is_another_trunk(tmp_path: Path) -> None:
    async with world(tmp_path) as plain, world(tmp_path, preprocess="lower") as lower:
        without, own = await plain.client.trunk(), await lower.client.trunk()

        assert plain.backend.trunk.fingerprint == without.fingerprint != own.fingerprint
        assert ("trunkline-text/1", "lower/1 trunkline-text/1") == (without.normalizer, own.normalizer)
        vectors = (await lower.client.embed(["GOOD", "good"])).vectors
        np.testing.assert_array_equal(vectors[0], vectors[1])


async def test_training_refuses_texts_that_its_steps_leave_nothing_of(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        with pytest.raises(DataError, match=r"html-strip/1 leaves nothing of the text in line 4"):
            await here.train(
                "tags", examples(("good", "a"), ("bad", "b"), ("<br>", "a"), ("meh", "b")), preprocess=("html-strip/1",)
            )
        with pytest.raises(DataError, match="no text step 'shout/1'"):
            await here.train("tags", OFFERS, preprocess=("shout/1",))
        assert {} == here.catalogue.heads
