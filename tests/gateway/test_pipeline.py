from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from clients import Deadline, FailedPrecondition, InvalidRequest, NotFound, TrunklineError, Unavailable
from clients.wire.catalogue import Manifest, TrunkRef, View
from clients.wire.text import Encoded, TextEncoder
from gateway.pipeline import Classification, HeadAnswer, HeadOutcome, Pipeline
from gateway.ports import FloatArray, LiveHead, LiveTrunk, Rows
from tests.tiny_trunk import make_tiny_trunk

Scores = Callable[[Rows], FloatArray]
WIDTH = 4


def encoder(folder: Path) -> TextEncoder:
    return TextEncoder((make_tiny_trunk(folder / "trunk") / "tokenizer.json").read_bytes(), max_tokens=64)


class FakeTrunks:
    """A trunk that can be exchanged; asked again only after `forget`."""

    def __init__(self, tokens: TextEncoder) -> None:
        self.tokens = tokens
        self.live = "sha256:one"
        self.layers = frozenset({-1, -2, -3})
        self._known = ""

    async def trunk(self, deadline: Deadline) -> LiveTrunk:
        self._known = self._known or self.live
        return LiveTrunk("tiny", self._known, self.tokens, 64, self.layers)

    def forget(self) -> None:
        self._known = ""


class FakeEmbedder:
    """Counts its calls; each text's vector is its number of tokens plus the view's layer, WIDTH times, or so for each token."""

    def __init__(self, trunks: FakeTrunks) -> None:
        self._trunks = trunks
        self.calls: list[tuple[int, tuple[View, ...]]] = []

    async def embed(self, trunk: LiveTrunk, inputs: Sequence[Encoded], views: tuple[View, ...], deadline: Deadline) -> list[Rows]:
        if trunk.fingerprint != self._trunks.live:
            raise FailedPrecondition("another trunk")
        self.calls.append((len(inputs), views))
        return [[self._read(len(item.ids), view) for item in inputs] for view in views]

    @staticmethod
    def _read(num_tokens: int, view: View) -> FloatArray:
        shape = (num_tokens, WIDTH) if view.pooling == "tokens" else (WIDTH,)
        return np.full(shape, num_tokens + view.layer, np.float32)


class FakePredictor:
    """Answers by head name with what it was given; the default is that the second label wins."""

    def __init__(self, **heads: Scores) -> None:
        self._heads = heads

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        return self._heads.get(manifest.name, second_wins)(rows)


class FakeCatalogue:
    def __init__(self, *heads: LiveHead) -> None:
        self._heads = {head.manifest.name: head for head in heads}

    def heads(self, fingerprint: str) -> dict[str, LiveHead]:
        return self._heads


def second_wins(rows: Rows) -> FloatArray:
    return np.array([[0.25, 0.75]] * len(rows), dtype=np.float32)


def raises(error: Exception) -> Scores:
    def fail(_: Rows) -> FloatArray:
        raise error

    return fail


def head(
    name: str, *, default: bool = True, refused: str = "", view: View | None = None, mix_layers: tuple[int, ...] = ()
) -> LiveHead:
    trunk = TrunkRef("tiny", "sha256:one", "fake")
    manifest = Manifest(
        name=name, version=7, labels=("ham", "spam"), width=WIDTH, trunk=trunk, view=view or View(), mix_layers=mix_layers
    )
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


async def test_one_pass_gives_every_head_what_it_reads(trunks: FakeTrunks) -> None:
    read: dict[str, list[list[float]]] = {}

    def keep(name: str) -> Scores:
        def scores(rows: Rows) -> FloatArray:
            read[name] = [row.tolist() for row in rows]
            return second_wins(rows)

        return scores

    tokens = View("tokens", normalize=False)
    heads = [head("plain"), head("tokens", view=tokens), head("mixed", mix_layers=(-1, -3))]
    heads.append(head("both", view=tokens, mix_layers=(-1, -2)))
    predictor = FakePredictor(**{one.manifest.name: keep(one.manifest.name) for one in heads})

    _, embedder = await classify(trunks, predictor, heads, Classification(["a b", "c"]))

    # "a b" is four tokens with the special ones, "c" is three.
    assert 1 == len(embedder.calls)
    assert (View(), tokens, View(layer=-3), View("tokens", -2, normalize=False)) == embedder.calls[0][1]
    assert [[3.0] * WIDTH, [2.0] * WIDTH] == read["plain"]
    assert [[[3.0] * WIDTH] * 4, [[2.0] * WIDTH] * 3] == read["tokens"]
    assert [[3.0] * WIDTH + [1.0] * WIDTH, [2.0] * WIDTH + [0.0] * WIDTH] == read["mixed"]
    assert [[[3.0] * WIDTH + [2.0] * WIDTH] * 4, [[2.0] * WIDTH + [1.0] * WIDTH] * 3] == read["both"]


@pytest.mark.parametrize("unreadable", [head("deep", view=View(layer=-4)), head("deep", mix_layers=(-1, -4))])
async def test_a_head_that_reads_a_layer_nobody_computes_is_refused_and_the_others_answer(
    trunks: FakeTrunks, unreadable: LiveHead
) -> None:
    outcomes, embedder = await classify(trunks, FakePredictor(), [unreadable, head("good")], Classification(["a"]))
    deep = outcomes["deep"]

    assert isinstance(deep, FailedPrecondition)
    assert "layer -4" in deep.message
    assert "--layers" in deep.message
    assert [(1, (View(),))] == embedder.calls
    assert [HeadAnswer("spam", 0.75, 7)] == outcomes["good"]


async def test_several_labels_a_text_are_those_at_or_above_their_thresholds(trunks: FakeTrunks) -> None:
    several = head("tags")
    manifest = replace(several.manifest, task="multi_label", thresholds=(0.2, 0.8))

    outcomes, _ = await classify(trunks, FakePredictor(), [LiveHead(manifest, True)], Classification(["a"]))

    assert isinstance(outcomes["tags"], list)
    assert ["ham"] == outcomes["tags"][0].labels


async def test_a_regression_answers_its_value(trunks: FakeTrunks) -> None:
    manifest = replace(head("price").manifest, task="regression", labels=("value",))
    predictor = FakePredictor(price=lambda rows: np.array([[-41.5]] * len(rows), np.float32))

    outcomes, _ = await classify(trunks, predictor, [LiveHead(manifest, True)], Classification(["a"]))

    assert [HeadAnswer("value", -41.5, 7)] == outcomes["price"]
