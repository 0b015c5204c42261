from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from clients import Embeddings, View
from head_service.catalogue import MODELS_CONFIG, read_catalogue
from head_service.errors import RepositoryError, TrunkMismatchError
from head_service.manifest import verify
from head_service.repository import Repository
from head_service.training.dataset import Dataset, Example
from head_service.training.embeddings import EmbeddingCache
from head_service.training.run import TrainingRequest, TrainingResult, train
from tests.head_service.training.test_embeddings import FakeEmbedder

DATA = Dataset(tuple(Example(f"text {n}", "even" if n % 2 == 0 else "odd", n + 2) for n in range(30)))


@dataclass
class Training:
    """One repository and one cache; *waited* holds what the head server was asked for, and what the catalogue then said."""

    folder: Path
    embedder: FakeEmbedder = field(default_factory=FakeEmbedder)
    waited: list[tuple[str, int, int | None]] = field(default_factory=list)
    refusal: str = ""

    @property
    def repository(self) -> Repository:
        return Repository(self.folder / "heads")

    def stable(self, name: str) -> int | None:
        head = read_catalogue(self.repository.root).heads.get(name)
        return head.stable if head else None

    def wait(self, name: str, version: int) -> None:
        self.waited.append((name, version, self.stable(name)))
        if self.refusal:
            raise RepositoryError(self.refusal)

    def train(self, name: str = "parity", data: Dataset = DATA, held_out: Dataset | None = None) -> TrainingResult:
        return train(
            TrainingRequest(name, data, held_out),
            embedder=self.embedder,
            cache=EmbeddingCache(self.folder / "embeddings.sqlite"),
            repository=self.repository,
            wait_until_available=self.wait,
            say=lambda _: None,
            embedding_progress=lambda _, __: None,
        )


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def test_a_csvs_head_ends_up_live_with_a_manifest_that_holds(training: Training) -> None:
    result = training.train(held_out=DATA)

    manifest = verify(result.path)
    assert (1, 1) == (result.version, training.stable("parity"))
    assert ("even", "odd") == manifest.labels
    assert (32, training.embedder.fingerprint) == (manifest.width, manifest.trunk.fingerprint)
    assert result.metrics == manifest.metrics
    assert (30, 30, DATA.digest()) == (result.metrics.num_train, result.metrics.num_test, result.metrics.data)


def test_without_held_out_data_a_fifth_is_held_out(training: Training) -> None:
    metrics = training.train().metrics

    assert (24, 6) == (metrics.num_train, metrics.num_test)


def test_a_version_is_promoted_only_once_the_head_server_has_it(training: Training) -> None:
    training.train()
    training.train()

    assert [("parity", 1, None), ("parity", 2, 1)] == training.waited
    assert 2 == training.stable("parity")


def test_the_head_server_is_told_of_a_head_before_it_is_waited_for(training: Training) -> None:
    training.refusal = "no"

    with pytest.raises(RepositoryError):
        training.train()

    assert 'name: "parity"' in (training.repository.root / MODELS_CONFIG).read_text()


def test_a_version_the_head_server_refuses_replaces_nothing(training: Training) -> None:
    training.train()
    training.refusal = "the graph is broken"

    with pytest.raises(RepositoryError, match="the graph is broken"):
        training.train()

    assert 1 == training.stable("parity")


def test_a_second_head_on_the_same_texts_makes_no_forward_pass(training: Training) -> None:
    training.train("parity")
    other = Dataset(tuple(replace(example, label=str(int(example.line > 16))) for example in DATA.examples))

    training.train("half", other)

    assert 1 == len(training.embedder.asked)
    assert {"parity", "half"} == read_catalogue(training.repository.root).heads.keys()


def test_the_same_data_gives_the_same_scores(training: Training, tmp_path: Path) -> None:
    first = verify(training.train().path).golden
    second = verify(Training(tmp_path / "again").train().path).golden

    np.testing.assert_array_equal([example.scores for example in first], [example.scores for example in second])


class ExchangedEmbedder(FakeEmbedder):
    """Another trunk has taken its place when the texts arrive."""

    def embed_all(
        self, texts: Sequence[str], *, views: Sequence[View] = (), progress: Callable[[int], None] | None = None
    ) -> Embeddings:
        return replace(super().embed_all(texts, views=views, progress=progress), trunk_fingerprint="sha256:another")


def test_a_trunk_exchanged_half_way_publishes_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path, embedder=ExchangedEmbedder())

    with pytest.raises(TrunkMismatchError, match="train again"):
        training.train()

    assert [] == training.repository.versions("parity")
