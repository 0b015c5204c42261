"""The trainer by default, in this process, its embeddings made up."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from head_service.catalogue import promote, read_catalogue
from head_service.control.publishing import RunRepository, published_by
from head_service.control.trainer import train_head
from head_service.control.words import Outcome, RunContext, TrainingOrder
from head_service.errors import DataError
from tests.head_service.training.test_embeddings import FakeEmbedder
from tests.head_service.versions_on_disk import FINGERPRINT, exporter

RUN = "a" * 32


class Client(FakeEmbedder):
    def __init__(self, address: str, *, timeout: float) -> None:
        super().__init__()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass
class Training:
    folder: Path
    said: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    def repository(self, run_id: str = RUN) -> RunRepository:
        return RunRepository(self.folder / "heads", run_id, lambda: True, lambda _: None)

    def train(self, published: int | None = None, **order) -> Outcome:
        context = RunContext(
            run_id=RUN,
            data=self.folder / "rows.csv",
            text_column=None,
            label_column=None,
            folder=self.folder,
            repository=self.repository(),
            published=published,
            embedding_address="",
            heads_address="",
            cache_dir=self.folder,
            say=self.said.append,
            progress=lambda *now: self.progress.append(now),
        )
        return train_head(TrainingOrder(head="parity", **order), context)

    @property
    def stable(self) -> int | None:
        head = read_catalogue(self.folder / "heads").heads.get("parity")
        return head.stable if head else None


@pytest.fixture
def training(tmp_path: Path, monkeypatch) -> Training:
    monkeypatch.setattr("head_service.control.trainer.EmbeddingClient", Client)
    rows = "".join(f"text {n},{'odd' if n % 2 else 'even'}\n" for n in range(30))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    return Training(tmp_path)


def test_an_order_becomes_a_live_version_that_says_which_run_made_it(training: Training):
    outcome = training.train()

    assert ("succeeded", 1, True) == (outcome.kind, outcome.result.version, outcome.result.is_live)
    assert {"accuracy", "macro_f1", "num_test"} <= outcome.result.metrics.keys()
    assert 1 == published_by(training.repository(), "parity", RUN) == training.stable
    assert ("embedding", 30, 30) == training.progress[-1]
    assert any("30 texts, 2 labels" in line for line in training.said)
    assert not any("text 1" in line for line in training.said)


def test_an_order_for_a_version_only_leaves_the_live_one_as_it_is(training: Training):
    outcome = training.train(publish="version")

    assert ("succeeded", 1, False) == (outcome.kind, outcome.result.version, outcome.result.is_live)
    assert training.stable is None


@pytest.mark.parametrize(
    ("live", "publish", "stable", "is_live"), [(None, "live", 1, True), (None, "version", None, False), (2, "live", 2, False)]
)
def test_what_an_attempt_before_published_is_seen_through_and_never_backwards(
    training: Training, live, publish: str, stable, is_live
):
    def named(export: Callable[[Path, int], None]) -> int:
        return training.repository().publish("parity", export, fingerprint=FINGERPRINT)

    version = named(exporter())
    if live:
        other = training.repository("b" * 32)
        promote(other, "parity", other.publish("parity", exporter(), fingerprint=FINGERPRINT))

    outcome = training.train(published=version, publish=publish)

    assert (version, is_live, stable) == (outcome.result.version, outcome.result.is_live, training.stable)
    assert [] == training.progress


@pytest.mark.parametrize("order", [{"head_type": "nosuch"}, {"task": "regression"}, {"seed": 3}])
def test_what_it_cannot_do_is_refused_in_place_of_doing_something_else(training: Training, order):
    with pytest.raises(DataError, match="leave it out"):
        training.train(**order)
    assert [] == training.repository().versions("parity")
