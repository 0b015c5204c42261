from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import Embeddings, View
from clients.wire.catalogue import Manifest
from head_service.catalogue import MODELS_CONFIG, read_catalogue
from head_service.errors import DataError, RepositoryError, TrunkMismatchError
from head_service.exporting import NUM_GOLDEN
from head_service.head_server import loaded
from head_service.lifecycle import Lifecycle
from head_service.release import release
from head_service.repository import Repository
from head_service.scoring import TextScorer
from head_service.training.dataset import Dataset, Example
from head_service.training.embeddings import EmbeddingCache
from head_service.training.fit import FitOptions
from head_service.training.heads import Fitted, HeadType
from head_service.training.linear_head import LinearHead
from head_service.training.report.files import decode_report
from head_service.training.run import Calibrate, Calibration, TrainingRequest, TrainingResult, calibrated, train
from head_service.training.targets import multi_label
from tests.head_service.training.test_embeddings import FakeEmbedder

DATA = Dataset(tuple(Example(f"text {n}", "even" if n % 2 == 0 else "odd", n + 2) for n in range(30)))


@dataclass
class Training:
    """One repository and one cache; *waited* holds what the head server was asked for, and what the catalogue then said."""

    folder: Path
    embedder: FakeEmbedder = field(default_factory=FakeEmbedder)
    waited: list[tuple[str, int, int | None]] = field(default_factory=list)
    refusal: str = ""
    told: list[str] = field(default_factory=list)

    @property
    def repository(self) -> Repository:
        return Repository(self.folder / "heads")

    def stable(self, name: str) -> int | None:
        head = read_catalogue(self.repository.root).heads.get(name)
        return head.stable if head else None

    def wait(self, name: str, version: int) -> None:
        self.waited.append((name, version, self.stable(name)))
        self.told.append((self.repository.root / MODELS_CONFIG).read_text())
        if self.refusal:
            raise RepositoryError(self.refusal)

    def train(
        self,
        name: str = "parity",
        data: Dataset = DATA,
        held_out: Dataset | None = None,
        calibrate: Calibrate = calibrated,
        **wanted: Any,
    ) -> TrainingResult:
        lifecycle = Lifecycle(self.repository, self.wait)
        scorer = TextScorer(self.embedder, partial(loaded, self.repository))
        return train(
            TrainingRequest(name, data, held_out, **wanted),
            embedder=self.embedder,
            cache=EmbeddingCache(self.folder / "embeddings.sqlite"),
            repository=self.repository,
            go_live=lambda head, version, remeasure: release(lifecycle, head, version, scorer=scorer, remeasure=remeasure),
            scorer=scorer,
            say=lambda _: None,
            embedding_progress=lambda _, __: None,
            reports=self.folder / "reports",
            calibrate=calibrate,
        )

    def manifest(self, name: str = "parity", **wanted: Any) -> Manifest:
        """Of the version that a training publishes, its files held to it."""
        return self.repository.verify(name, self.train(name, **wanted).version)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def test_a_csvs_head_ends_up_live_with_a_manifest_that_holds(training: Training) -> None:
    result = training.train(held_out=DATA)

    manifest = training.repository.verify("parity", result.version)
    assert (1, 1) == (result.version, training.stable("parity"))
    assert ("even", "odd") == manifest.labels
    assert (32, training.embedder.fingerprint) == (manifest.width, manifest.trunk.fingerprint)
    assert result.metrics == manifest.metrics
    assert (30, 30, DATA.digest()) == (result.metrics.num_train, result.metrics.num_test, result.metrics.data)


def test_what_separates_the_levels_of_labels_is_in_the_manifest(training: Training) -> None:
    data = Dataset(tuple(replace(example, label=f"number/{example.label}") for example in DATA.examples))
    manifest = training.manifest(data=data, level_separator="/")

    assert ("/", ("number/even", "number/odd")) == (manifest.label_separator, manifest.labels)
    with pytest.raises(DataError, match="a label has an empty level in line"):
        training.train(data=data, level_separator="number")
    assert 1 == training.stable("parity")


def test_without_held_out_data_a_fifth_is_held_out(training: Training) -> None:
    metrics = training.train().metrics

    assert (24, 6) == (metrics.num_train, metrics.num_test)


def test_a_version_is_promoted_only_once_the_head_server_has_it(training: Training) -> None:
    training.train()
    training.train()

    assert {("parity", 1, None), ("parity", 2, 1)} == set(training.waited)
    assert 2 == training.stable("parity")


def test_the_head_server_is_told_of_a_head_before_it_is_waited_for(training: Training) -> None:
    training.train()

    assert 'name: "parity"' in training.told[0]


def test_a_version_the_head_server_refuses_replaces_nothing(training: Training) -> None:
    training.train()
    training.refusal = "the graph is broken"

    with pytest.raises(RepositoryError, match="the graph is broken"):
        training.train()

    assert 1 == training.stable("parity")


def test_a_second_head_on_the_same_texts_asks_for_its_golden_examples_alone(training: Training) -> None:
    training.train("parity")
    other = Dataset(tuple(replace(example, label=str(int(example.line > 16))) for example in DATA.examples))

    training.train("half", other)

    assert [30, NUM_GOLDEN, NUM_GOLDEN] == [len(texts) for texts in training.embedder.asked]
    assert {"parity", "half"} == read_catalogue(training.repository.root).heads.keys()


def test_the_same_data_gives_the_same_scores(training: Training, tmp_path: Path) -> None:
    first = training.manifest().golden
    second = Training(tmp_path / "again").manifest().golden

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


def test_a_head_of_tokens_says_so_in_its_manifest(training: Training) -> None:
    manifest = training.manifest(options=FitOptions("fasttext"))

    assert ("fasttext", "tokens", False) == (manifest.head_type, manifest.view.pooling, manifest.view.normalize)
    assert ("tokens", "mask", 32) == (manifest.input, manifest.mask_input, manifest.width)


@pytest.mark.parametrize(("head_type", "layers"), [("mix", (-1, -2)), ("linear", (-2, -1))])
def test_a_head_of_several_layers_says_which_in_which_order(
    training: Training, head_type: HeadType, layers: tuple[int, ...]
) -> None:
    training.embedder.layers = (-2, -1)
    wanted = layers if head_type == "linear" else ()

    manifest = training.manifest(options=FitOptions(head_type), mix_layers=wanted)

    assert (layers, 64, head_type) == (manifest.mix_layers, manifest.width, manifest.head_type)


def test_what_is_known_of_unseen_texts_calibrates_the_version(training: Training) -> None:
    seen: list[Fitted] = []

    def calibrate(fitted: Fitted) -> Calibration:
        seen.append(fitted)
        return Calibration(temperature=2.0)

    manifest = training.manifest(calibrate=calibrate)

    assert 2.0 == manifest.temperature
    assert (24, 2) == seen[0].validation_logits.shape
    assert 24 == len(seen[0].validation)


def test_several_labels_a_text_make_a_head_with_thresholds(training: Training) -> None:
    labels = (("even",), ("odd", "three"), ("even", "three"), ("odd",))
    examples = tuple(Example(f"text {n}", ", ".join(labels[n % 4]), n + 2, labels=labels[n % 4]) for n in range(40))
    data = Dataset(examples, task="multi_label")

    manifest = training.manifest(data=data, calibrate=lambda _: Calibration(1.0, (0.5, 0.4, 0.6)))

    assert ("even", "odd", "three") == manifest.labels
    assert ("multi_label", (0.5, 0.4, 0.6)) == (manifest.task, manifest.thresholds)


def test_numbers_make_a_regression(training: Training) -> None:
    data = Dataset(tuple(Example(f"text {n}", str(n / 4), n + 2, value=n / 4) for n in range(30)), task="regression")

    manifest = training.manifest(data=data, held_out=data)

    assert ("regression", ("value",)) == (manifest.task, manifest.labels)


def test_a_head_that_is_brought_along_is_measured_and_published_as_it_is(training: Training) -> None:
    kernel = np.zeros((32, 2), np.float32)
    brought = LinearHead(kernel, np.array([0.0, 1.0], np.float32), ("even", "odd"))

    result = training.train(brought=brought)

    assert (0.5, 0, 30) == (result.metrics.accuracy, result.metrics.num_train, result.metrics.num_test)
    np.testing.assert_allclose(
        [0.268941, 0.731059], training.repository.verify("parity", result.version).golden[0].scores, atol=1e-6
    )


def test_a_head_of_another_width_publishes_nothing(training: Training) -> None:
    brought = LinearHead(np.zeros((31, 2), np.float32), np.zeros(2, np.float32), ("even", "odd"))

    with pytest.raises(DataError, match="takes vectors of 31 numbers, trunk 'fake' gives 32"):
        training.train(brought=brought)

    assert [] == training.repository.versions("parity")


def test_a_version_that_is_worse_is_kept_and_answers_nobody(training: Training) -> None:
    all_even = Dataset(tuple(example for example in DATA.examples if example.label == "even"))
    says_even, says_odd = (
        LinearHead(np.zeros((32, 2), np.float32), np.array(bias, np.float32), ("even", "odd"))
        for bias in ((1.0, 0.0), (0.0, 1.0))
    )
    training.train(data=all_even, brought=says_even)

    result = training.train(data=all_even, brought=says_odd)

    assert result.comparison is not None
    assert ("refused", 0.0, 1.0) == (result.comparison.verdict, result.comparison.candidate, result.comparison.live)
    assert not result.is_live
    assert (1, [1, 2]) == (training.stable("parity"), training.repository.versions("parity"))


def test_the_live_version_is_measured_on_the_new_texts(training: Training) -> None:
    training.train()
    other = Dataset(tuple(replace(example, text=f"other {example.text}") for example in DATA.examples))

    comparison = training.train(data=other).comparison

    assert comparison is not None
    assert comparison.live is not None
    assert comparison.verdict in {"passed", "refused"}


def test_a_live_version_of_other_labels_is_for_a_person_to_judge(training: Training) -> None:
    training.train()
    other = Dataset(tuple(replace(example, label=f"new {example.label}") for example in DATA.examples))

    result = training.train(data=other)

    assert result.comparison is not None
    assert ("incomparable", False, 1) == (result.comparison.verdict, result.is_live, training.stable("parity"))


def test_a_run_leaves_a_report_with_texts_or_without(training: Training) -> None:
    shown, hidden = training.train().report, training.train("other", with_texts=False).report

    assert shown is not None
    assert hidden is not None
    assert decode_report((shown.parent / "report.json").read_bytes()).with_texts
    assert "text 1" not in hidden.read_text()


def test_thresholds_are_of_texts_and_not_of_their_windows() -> None:
    """Each text has two windows; one of the two tells that it has the label."""
    texts = multi_label([("a",) if n % 2 else () for n in range(40)], ("a", "b"))
    seen = texts.in_windows([range(2 * n, 2 * n + 2) for n in range(40)])
    logits = np.full((80, 2), -3.0, np.float32)
    logits[2::4, 0] = 3.0
    logits[3::4, 0] = -2.0
    head = LinearHead(np.zeros((1, 2), np.float32), np.zeros(2, np.float32), ("a", "b"), "multi_label")

    highest, mean = (calibrated(Fitted(head, logits, seen), way) for way in ("max", "mean"))

    sure, unsure = (float(1 / (1 + np.exp(-logit / highest.temperature))) for logit in (3.0, -2.0))
    never = float(1 / (1 + np.exp(3.0 / highest.temperature)))
    assert (sure + never) / 2 == pytest.approx(highest.thresholds[0], abs=1e-5)
    assert ((sure + unsure) / 2 + never) / 2 == pytest.approx(mean.thresholds[0], abs=1e-5)
