from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np
import pytest

from clients import Durations, Embeddings, NotFound, Unavailable, View, ViewArray
from clients._heads_wire import Array, Prediction, VersionStatus
from clients.wire import catalogue
from clients.wire.catalogue import Manifest
from head_service.errors import RepositoryError, TrunkMismatchError
from head_service.scoring import TextScorer, inputs_of, is_available, served, views_of
from tests.head_service.versions_on_disk import FINGERPRINT, OTHER_FINGERPRINT, manifest


def embeddings(*views: ViewArray, fingerprint: str = FINGERPRINT) -> Embeddings:
    return Embeddings("tiny", fingerprint, views, (1, 2), (False, False), (False, False), Durations(0, 0, 0, 0))


@dataclass
class FakeEmbedder:
    answer: Embeddings
    asked: list[tuple[Sequence[str], Sequence[View]]] = field(default_factory=list)

    def embed_all(self, texts: Sequence[str], *, views: Sequence[View] = ()) -> Embeddings:
        self.asked.append((texts, views))
        return self.answer


@dataclass
class FakeHeads:
    """Scores are the inputs' first two numbers."""

    error: Exception | None = None
    state: str = "AVAILABLE"
    flat: bool = False

    def predict(self, head: str, inputs: dict[str, Array], *, version: int, output_filter: Sequence[str]) -> Prediction:
        scores = inputs["embedding"][:, :2]
        return Prediction({"scores": scores[0] if self.flat else scores}, version)

    def status(self, head: str, *, version: int, timeout: float) -> tuple[VersionStatus, ...]:
        if self.error:
            raise self.error
        return (VersionStatus(version, self.state, 0, ""),)


def scored(answer: Embeddings, of: Manifest, *, flat: bool = False) -> list[list[float]]:
    heads = FakeHeads(flat=flat)
    return TextScorer(FakeEmbedder(answer), partial(served, heads))(of, ["a", "b"])  # type: ignore[arg-type]


def test_texts_become_the_scores_of_the_version() -> None:
    vectors = np.array([[0.25, 0.75, 0, 0], [0.5, 0.5, 0, 0]], np.float32)

    assert [[0.25, 0.75], [0.5, 0.5]] == scored(embeddings(ViewArray(vectors)), manifest())


def test_another_trunk_and_answers_that_are_no_scores_are_told() -> None:
    vectors = ViewArray(np.zeros((2, 4), np.float32))
    with pytest.raises(TrunkMismatchError):
        scored(embeddings(vectors, fingerprint=OTHER_FINGERPRINT), manifest())
    with pytest.raises(RepositoryError, match="rows of scores"):
        scored(embeddings(vectors), manifest(), flat=True)


def test_mixed_layers_are_asked_for_one_by_one_and_laid_side_by_side() -> None:
    mixed = msgspec.structs.replace(manifest(), mix_layers=(1, 2), width=4)
    left, right = np.full((2, 2), 1, np.float32), np.full((2, 2), 2, np.float32)

    inputs = inputs_of(mixed, embeddings(ViewArray(left), ViewArray(right)))

    assert [1, 2] == [view.layer for view in views_of(mixed)]
    assert [[1, 1, 2, 2]] * 2 == inputs["embedding"].tolist()


def test_token_vectors_are_padded_and_masked() -> None:
    tokens = msgspec.structs.replace(manifest(), view=catalogue.View(pooling="tokens"), mask_input="mask")
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)

    inputs = inputs_of(tokens, embeddings(ViewArray(rows, (1, 2))))

    assert [[[0, 1], [0, 0]], [[2, 3], [4, 5]]] == inputs["embedding"].tolist()
    assert [[1, 0], [1, 1]] == inputs["mask"].tolist()


@dataclass
class LengthEmbedder:
    """A token's vector is its text's length and its place, twice WIDE; a text is its length in tokens."""

    width: int = 4
    asked: list[int] = field(default_factory=list)

    def embed_all(self, texts: Sequence[str], *, views: Sequence[View] = ()) -> Embeddings:
        self.asked.append(len(texts))
        lengths = tuple(map(len, texts))
        if views[0].pooling != "tokens":
            rows = np.array([[length, 1] + [0] * (self.width - 2) for length in lengths], np.float32)
            return self._answer(ViewArray(rows), lengths)
        rows = np.array([[length, at] + [0] * (self.width - 2) for length in lengths for at in range(length)], np.float32)
        return self._answer(ViewArray(rows, lengths), lengths)

    @staticmethod
    def _answer(view: ViewArray, lengths: tuple[int, ...]) -> Embeddings:
        no = (False,) * len(lengths)
        return Embeddings("tiny", FINGERPRINT, (view,), lengths, no, no, Durations(0, 0, 0, 0))


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_any_number_of_texts_is_scored_in_parts_that_a_head_server_takes(
    pooling: catalogue.PoolingName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("head_service.scoring.MAX_INPUT_BYTES", 40 * 4 * 4)
    of = msgspec.structs.replace(manifest(), view=catalogue.View(pooling=pooling), mask_input="mask")
    texts = ["a" * (1 + place * 7 % 50) for place in range(600)]
    calls: list[tuple[int, ...]] = []

    def predict(_: Manifest, inputs: dict[str, Array]) -> Array:
        vectors = inputs["embedding"]
        calls.append(vectors.shape)
        if pooling == "mean":
            return vectors[:, :2]
        assert inputs["mask"].sum(axis=1).tolist() == vectors[:, 0, 0].tolist()
        return np.stack([vectors[:, 0, 0], inputs["mask"].max(axis=1)], axis=1)

    embedder = LengthEmbedder()
    found = TextScorer(embedder, predict)(of, texts)  # type: ignore[arg-type]

    assert [[float(len(text)), 1.0] for text in texts] == found
    assert 600 == sum(embedder.asked) == sum(shape[0] for shape in calls)
    assert max(embedder.asked) <= 256
    if pooling == "tokens":
        assert all(shape[0] == 1 or shape[0] * shape[1] <= 40 for shape in calls)


def test_nothing_has_no_scores() -> None:
    assert [] == TextScorer(LengthEmbedder(), lambda *_: np.zeros((0, 2)))(manifest(), [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (FakeHeads(), True),
        (FakeHeads(state="LOADING"), False),
        (FakeHeads(NotFound("no such version")), False),
        (FakeHeads(Unavailable("away")), None),
    ],
)
def test_whether_a_version_answers(heads: FakeHeads, expected: bool | None) -> None:
    assert expected is is_available(heads, "spam", 1)  # type: ignore[arg-type]
