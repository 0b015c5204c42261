from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from clients import Deadline, FailedPrecondition, InvalidRequest, NotFound, TrunklineError, Unavailable
from clients.wire.catalogue import Manifest, TrunkRef, View
from clients.wire.text import Encoded, TextEncoder
from gateway.pipeline import Classification, HeadAnswer, HeadOutcome, Pipeline
from gateway.ports import FloatArray, LiveHead, LiveTrunk
from tests.tiny_trunk import make_tiny_trunk

Scores = Callable[[FloatArray], FloatArray]
WIDTH = 4


def encoder(folder: Path) -> TextEncoder:
    return TextEncoder((make_tiny_trunk(folder / "trunk") / "tokenizer.json").read_bytes(), max_tokens=64)


class FakeTrunks:
    """A trunk that can be exchanged; asked again only after `forget`."""

    def __init__(self, tokens: TextEncoder) -> None:
        self.tokens = tokens
        self.live = "sha256:one"
        self._known = ""

    async def trunk(self, deadline: Deadline) -> LiveTrunk:
        self._known = self._known or self.live
        return LiveTrunk("tiny", self._known, self.tokens, 64)

    def forget(self) -> None:
        self._known = ""


class FakeEmbedder:
    """Counts its calls; each text's vector is its number of tokens, WIDTH times."""

    def __init__(self, trunks: FakeTrunks) -> None:
        self._trunks = trunks
        self.calls: list[tuple[int, tuple[View, ...]]] = []

    async def embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], views: tuple[View, ...], deadline: Deadline
    ) -> list[FloatArray]:
        if trunk.fingerprint != self._trunks.live:
            raise FailedPrecondition("another trunk")
        self.calls.append((len(inputs), views))
        rows = np.array([[len(item.ids)] * WIDTH for item in inputs], dtype=np.float32)
        return [rows for _ in views]


class FakePredictor:
    """Answers by head name with what it was given; the default is that the second label wins."""

    def __init__(self, **heads: Scores) -> None:
        self._heads = heads

    async def predict(self, manifest: Manifest, embeddings: FloatArray, deadline: Deadline) -> FloatArray:
        return self._heads.get(manifest.name, second_wins)(embeddings)


class FakeCatalogue:
    def __init__(self, *heads: LiveHead) -> None:
        self._heads = {head.manifest.name: head for head in heads}

    def heads(self, fingerprint: str) -> dict[str, LiveHead]:
        return self._heads


def second_wins(embeddings: FloatArray) -> FloatArray:
    return np.array([[0.25, 0.75]] * len(embeddings), dtype=np.float32)


def raises(error: Exception) -> Scores:
    def fail(_: FloatArray) -> FloatArray:
        raise error

    return fail


def head(name: str, *, default: bool = True, refused: str = "", view: View | None = None) -> LiveHead:
    trunk = TrunkRef("tiny", "sha256:one", "fake")
    manifest = Manifest(name=name, version=7, labels=("ham", "spam"), width=WIDTH, trunk=trunk, view=view or View())
    return LiveHead(manifest, default, refused)


@pytest.fixture
def trunks(tmp_path: Path) -> FakeTrunks:
    return FakeTrunks(encoder(tmp_path))


async def classify(
    trunks: FakeTrunks, predictor: FakePredictor, heads: Sequence[LiveHead], request: Classification
) -> tuple[dict[str, HeadOutcome], FakeEmbedder]:
    embedder = FakeEmbedder(trunks)
    pipeline = Pipeline(trunks, embedder, predictor, FakeCatalogue(*heads), head_timeout=1.0)
    answer = await pipeline.classify(request, Deadline.after(5))
    return answer.outcomes, embedder


async def test_texts_are_embedded_once_for_all_heads(trunks: FakeTrunks) -> None:
    heads = [head("one"), head("two"), head("cls", view=View(pooling="cls"))]
    outcomes, embedder = await classify(trunks, FakePredictor(), heads, Classification(["a b", "c"]))

    assert [(2, (View(), View(pooling="cls")))] == embedder.calls
    assert [HeadAnswer("spam", 0.75, 7)] * 2 == outcomes["one"] == outcomes["two"] == outcomes["cls"]


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (raises(Unavailable("at 10.0.0.7:8500")), "unavailable"),
        (raises(RuntimeError("nobody thought of this")), "internal"),
        (lambda embeddings: second_wins(embeddings)[:-1], "invalid_response"),
        (lambda embeddings: second_wins(embeddings) * np.float32("nan"), "invalid_response"),
        (lambda embeddings: second_wins(embeddings).astype(np.float64), "invalid_response"),
    ],
)
async def test_a_head_that_fails_has_an_error_of_its_own_and_the_others_answer(
    trunks: FakeTrunks, broken: Scores, code: str
) -> None:
    outcomes, _ = await classify(trunks, FakePredictor(bad=broken), [head("bad"), head("good")], Classification(["a"]))
    bad = outcomes["bad"]

    assert isinstance(bad, TrunklineError)
    assert code == bad.code
    assert "'bad'" in bad.message
    assert "10.0.0.7" not in bad.message
    assert [HeadAnswer("spam", 0.75, 7)] == outcomes["good"]


async def test_a_refused_head_says_why_and_costs_no_forward_pass_when_it_is_alone(trunks: FakeTrunks) -> None:
    outcomes, embedder = await classify(
        trunks, FakePredictor(), [head("old", refused="trained elsewhere")], Classification(["a"])
    )
    old = outcomes["old"]

    assert isinstance(old, FailedPrecondition)
    assert "trained elsewhere" == old.message
    assert [] == embedder.calls


async def test_only_default_heads_answer_when_none_is_named(trunks: FakeTrunks) -> None:
    heads = [head("usual"), head("special", default=False)]

    unnamed, _ = await classify(trunks, FakePredictor(), heads, Classification(["a"]))
    named, _ = await classify(trunks, FakePredictor(), heads, Classification(["a"], heads=["special"]))

    assert ["usual"] == list(unnamed)
    assert ["special"] == list(named)


async def test_an_unknown_head_is_not_found_and_an_empty_list_is_a_mistake(trunks: FakeTrunks) -> None:
    with pytest.raises(NotFound, match="usual"):
        await classify(trunks, FakePredictor(), [head("usual")], Classification(["a"], heads=["unusual"]))
    with pytest.raises(InvalidRequest):
        await classify(trunks, FakePredictor(), [head("usual")], Classification(["a"], heads=[]))


async def test_a_trunk_exchanged_meanwhile_is_asked_for_again_once(trunks: FakeTrunks) -> None:
    await trunks.trunk(Deadline.after(1))
    trunks.live = "sha256:two"
    outcomes, embedder = await classify(trunks, FakePredictor(), [head("one")], Classification(["a"]))

    assert [HeadAnswer("spam", 0.75, 7)] == outcomes["one"]
    assert 1 == len(embedder.calls)


async def test_scores_are_ranked_and_cut(trunks: FakeTrunks) -> None:
    whole, _ = await classify(trunks, FakePredictor(), [head("one")], Classification(["a"], with_scores=True))
    best, _ = await classify(trunks, FakePredictor(), [head("one")], Classification(["a"], top_k=1))

    assert isinstance(whole["one"], list)
    assert isinstance(best["one"], list)
    assert [("spam", 0.75), ("ham", 0.25)] == list((whole["one"][0].scores or {}).items())
    assert {"spam": 0.75} == best["one"][0].scores
