"""The trainer by default, in this process, its embeddings made up."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clients.wire.credentials import Credentials
from head_service.catalogue import read_catalogue
from head_service.control.publishing import RunRepository, published_by
from head_service.control.trainer import keep_bundles, train_head, with_bundles
from head_service.control.words import Outcome, RunContext, RunResult, TrainingOrder
from head_service.errors import DataError, RefusedError, RepositoryError
from head_service.exporting import Export, export_here
from head_service.gate import Comparison
from head_service.head_server import scorer_at
from head_service.lifecycle import Lifecycle, already_available
from head_service.release import release
from tests.head_service.training.test_embeddings import FakeEmbedder

RUN = "a" * 32


class Client(FakeEmbedder):
    def __init__(self, address: str, *, timeout: float, api_key: str | None, tls: object) -> None:
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
    num_beside: int = 0

    def repository(self, run_id: str = RUN) -> RunRepository:
        return RunRepository(self.folder / "heads", run_id, lambda _: True, lambda _: None)

    def context(self, published: int | None = None, run_id: str = RUN, heads_address: str = "", **more) -> RunContext:
        return RunContext(
            run_id=run_id,
            data=self.folder / "rows.csv",
            text_column=None,
            label_column=None,
            folder=self.folder,
            repository=self.repository(run_id),
            published=published,
            embedding_address="",
            heads_address=heads_address,
            cache_dir=self.folder,
            say=self.said.append,
            progress=lambda *now: self.progress.append(now),
            **more,
        )

    def train(self, published: int | None = None, run_id: str = RUN, **order) -> Outcome:
        return train_head(TrainingOrder(head="parity", **order), self.context(published, run_id))

    def publish_alone(self, run_id: str = RUN) -> int:
        """Train and end right before the gate, as an attempt does that is killed there; the version."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("head_service.control.trainer._release", lambda *_: None)
            return self.train(run_id=run_id).result.version

    def promote(self, version: int) -> Comparison:
        """By hand, later: without the rows."""
        with scorer_at("", Client("", timeout=1.0, api_key=None, tls=None), self.repository()) as scorer:
            return release(Lifecycle(self.repository(), already_available), "parity", version, scorer=scorer)

    def write(self, number: int) -> None:
        rows = "".join(f"text {n},{'odd' if n % 2 else 'even'}\n" for n in range(number))
        (self.folder / "rows.csv").write_text("text,label\n" + rows)

    @property
    def stable(self) -> int | None:
        head = read_catalogue(self.folder / "heads").heads.get("parity")
        return head.stable if head else None


@pytest.fixture
def training(tmp_path: Path, monkeypatch) -> Training:
    monkeypatch.setattr("head_service.control.trainer.EmbeddingClient", Client)
    training = Training(tmp_path)

    @contextlib.contextmanager
    def beside() -> Iterator[Export]:
        # Here, where TensorFlow is loaded once for all of these tests.
        training.num_beside += 1
        yield export_here

    monkeypatch.setattr("head_service.control.trainer.exporting_beside", beside)
    training.write(30)
    return training


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


def test_a_version_on_other_rows_passes_the_gate_and_waits_to_be_promoted(training: Training):
    rows = "".join(f"text {n},{'even' if n % 2 else 'odd'}\n" for n in range(30))
    (training.folder / "rows.csv").write_text("text,label\n" + rows)
    training.train()
    training.write(30)

    outcome = training.train(publish="version", run_id="b" * 32)

    assert ("succeeded", False, 1) == (outcome.kind, outcome.result.is_live, training.stable)
    assert ("passed", 1) == (outcome.result.comparison["verdict"], outcome.result.comparison["live_version"])
    assert {} == training.repository().marks("parity")
    assert "passed" == training.promote(2).verdict
    assert 2 == training.stable


def test_a_worse_version_is_refused_though_it_was_to_wait(training: Training):
    training.train()
    training.write(60)

    outcome = training.train(publish="version", run_id="b" * 32)

    assert ("refused", 2, False) == (outcome.kind, outcome.result.version, outcome.result.is_live)
    assert ("refused", 1) == (outcome.result.comparison["verdict"], outcome.result.comparison["live_version"])
    with pytest.raises(RefusedError):
        training.promote(2)
    assert 1 == training.stable


def test_a_second_attempt_for_a_version_only_is_told_what_the_first_one_found(training: Training):
    training.train()
    first = training.train(publish="version", run_id="b" * 32)
    Lifecycle(training.repository(), already_available).start_canary("parity", 2, 0.5)

    second = training.train(published=2, publish="version", run_id="b" * 32)

    assert first.result.comparison == second.result.comparison != {}
    assert 1 == training.stable


@pytest.mark.parametrize(
    ("live", "publish", "stable", "is_live"), [(None, "live", 1, True), (None, "version", None, False), (2, "live", 2, False)]
)
def test_what_an_attempt_before_published_is_seen_through_and_never_backwards(
    training: Training, live, publish: str, stable, is_live
):
    version = training.publish_alone()
    if live:
        assert live == training.train(run_id="b" * 32).result.version == training.stable
    training.progress.clear()

    outcome = training.train(published=version, publish=publish)

    assert (version, is_live, stable) == (outcome.result.version, outcome.result.is_live, training.stable)
    assert [] == training.progress


def test_a_version_only_is_weighed_though_a_newer_one_went_live_before_it_was(training: Training):
    version = training.publish_alone()
    training.train(run_id="b" * 32)

    found = training.train(published=version, publish="version").result.comparison

    assert ("passed", 2) == (found["verdict"], found["live_version"])
    assert 2 == training.stable


def test_a_version_only_that_a_person_has_put_to_use_meanwhile_is_left_alone(training: Training):
    training.train()
    training.write(60)
    version = training.publish_alone("b" * 32)
    Lifecycle(training.repository(), already_available).start_canary("parity", version, 0.5)

    outcome = training.train(published=version, publish="version", run_id="b" * 32)

    assert ("succeeded", {}) == (outcome.kind, outcome.result.comparison)
    assert version == read_catalogue(training.folder / "heads").heads["parity"].canary


def test_a_second_attempt_is_weighed_as_the_first_would_have_been(training: Training):
    training.train()
    training.write(60)
    first = training.train(run_id="b" * 32).result.comparison
    version = training.publish_alone("c" * 32)

    second = training.train(published=version, run_id="c" * 32).result.comparison

    assert ("refused", 1) == (first["verdict"], first["live_version"])
    assert first == second


def test_a_second_attempt_whose_rows_have_changed_is_left_to_a_person(training: Training):
    training.train()
    training.write(60)
    version = training.publish_alone("b" * 32)
    for change in (lambda: training.write(40), lambda: (training.folder / "rows.csv").write_text("text,label\n")):
        change()

        outcome = training.train(published=version, run_id="b" * 32)

        assert ("refused", "incomparable") == (outcome.kind, outcome.result.comparison["verdict"])


@pytest.mark.parametrize(
    ("order", "problem"), [({"head_type": "nosuch"}, "head_type is one of linear"), ({"task": "regression"}, "number")]
)
def test_an_order_that_cannot_be_carried_out_publishes_nothing(training: Training, order, problem: str):
    with pytest.raises(DataError, match=problem):
        training.train(**order)
    assert [] == training.repository().versions("parity")


def test_a_version_that_does_not_pass_the_gate_is_a_refused_run(training: Training):
    training.train()
    rows = "".join(f"text {n},{'new odd' if n % 2 else 'new even'}\n" for n in range(30))
    (training.folder / "rows.csv").write_text("text,label\n" + rows)

    outcome = training.train(run_id="b" * 32)

    assert ("refused", 2, False, 1) == (outcome.kind, outcome.result.version, outcome.result.is_live, training.stable)
    assert "incomparable" == outcome.result.comparison["verdict"]
    assert (training.folder / outcome.result.report).is_file()


def test_an_order_names_its_head_type_and_seed(training: Training):
    outcome = training.train(head_type="mlp", seed=3)

    assert "mlp" == training.repository().manifest("parity", outcome.result.version).head_type


def test_only_what_is_fitted_without_tensorflow_is_exported_beside(training: Training):
    training.train()
    assert 1 == training.num_beside

    training.train(head_type="mlp", publish="version", run_id="b" * 32)
    assert 1 == training.num_beside


def test_bundles_are_kept_current_with_what_the_head_server_is_shown(training: Training, monkeypatch):
    asked: list[tuple[str, str, Credentials]] = []

    def bundle(location: str, address: str, say: Callable[[str], None], credentials: Credentials) -> None:
        asked.append((location, address, credentials))
        raise RepositoryError("no room")

    monkeypatch.setattr("head_service.control.trainer.bundle_once", bundle)
    keep_bundles(training.context(heads_address="h:1", to_heads=Credentials("tlk_heads")))

    assert [(str(training.folder / "heads"), "h:1", Credentials("tlk_heads"))] == asked
    # The run is none the worse for it.
    assert ["bundles stay as they are: no room"] == training.said


def test_bundles_are_made_once_a_head_is_live_and_a_head_server_could_ask_for_them(training: Training, monkeypatch):
    made: list[str] = []
    monkeypatch.setattr("head_service.control.trainer.keep_bundles", lambda run: made.append(run.heads_address))
    live, waiting = Outcome(kind="succeeded", result=RunResult(version=1, is_live=True)), Outcome(kind="succeeded")

    for address, bundles, outcome in (("h:1", False, live), ("", True, live), ("h:1", True, waiting), ("h:1", True, live)):
        assert outcome is with_bundles(training.context(heads_address=address, bundles=bundles), outcome)
    assert ["h:1"] == made
