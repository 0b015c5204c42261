from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace

from clients import Deadline, FailedPrecondition, InvalidRequest, InvalidResponse, NotFound, TrunklineError, Unavailable
from clients.wire.catalogue import CatalogueHead, View
from gateway.classification import Classification, HeadAnswer, HeadOutcome
from gateway.ports import FloatArray, Rows
from tests.gateway.fakes import (
    WIDTH,
    FakeEmbedder,
    FakePredictor,
    FakeTrunks,
    Scores,
    head,
    live,
    manifest,
    pipeline_of,
    raises,
    second_wins,
)


async def classify(
    trunks: FakeTrunks, predictor: FakePredictor, heads: Sequence[CatalogueHead], request: Classification
) -> tuple[dict[str, HeadOutcome], FakeEmbedder]:
    embedder = FakeEmbedder(trunks)
    answer = await pipeline_of(trunks, embedder, predictor, *heads).classify(request, Deadline.after(5))
    return answer.outcomes, embedder


async def test_texts_are_embedded_once_for_all_heads(trunks: FakeTrunks) -> None:
    heads = [head("one"), head("two"), head("cls", view=View(pooling="cls"))]
    outcomes, embedder = await classify(trunks, FakePredictor(), heads, Classification(["a b", "c"]))

    assert [(2, (View(pooling="cls"), View()))] == embedder.calls
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


async def test_what_a_head_server_refuses_of_the_gateways_is_no_mistake_of_the_callers(trunks: FakeTrunks) -> None:
    predictor = FakePredictor(bad=raises(InvalidRequest("input has another width")), gone=raises(NotFound("no such servable")))
    outcomes, _ = await classify(trunks, predictor, [head("bad"), head("gone")], Classification(["a"]))

    assert isinstance(outcomes["bad"], InvalidResponse)
    assert isinstance(outcomes["gone"], NotFound)


async def test_a_head_of_another_trunk_says_why_and_costs_no_forward_pass_when_it_is_alone(trunks: FakeTrunks) -> None:
    outcomes, embedder = await classify(trunks, FakePredictor(), [head("old", trunk="sha256:elsewhere")], Classification(["a"]))
    old = outcomes["old"]

    assert isinstance(old, FailedPrecondition)
    assert "another trunk" in old.message
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
    heads = [head("one", trunk="sha256:two"), head("old")]
    outcomes, embedder = await classify(trunks, FakePredictor(), heads, Classification(["a"]))

    assert [HeadAnswer("spam", 0.75, 7)] == outcomes["one"]
    assert isinstance(outcomes["old"], FailedPrecondition)
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
    predictor = FakePredictor(**{name: keep(name) for name in ("plain", "tokens", "mixed", "both")})

    _, embedder = await classify(trunks, predictor, heads, Classification(["a b", "c"]))

    # "a b" is four tokens with the special ones, "c" is three.
    assert 1 == len(embedder.calls)
    assert {View(), tokens, View(layer=-3), View("tokens", -2, normalize=False)} == set(embedder.calls[0][1])
    assert [[3.0] * WIDTH, [2.0] * WIDTH] == read["plain"]
    assert [[[3.0] * WIDTH] * 4, [[2.0] * WIDTH] * 3] == read["tokens"]
    assert [[3.0] * WIDTH + [1.0] * WIDTH, [2.0] * WIDTH + [0.0] * WIDTH] == read["mixed"]
    assert [[[3.0] * WIDTH + [2.0] * WIDTH] * 4, [[2.0] * WIDTH + [1.0] * WIDTH] * 3] == read["both"]


@pytest.mark.parametrize("unreadable", [head("deep", view=View(layer=-4)), head("deep", mix_layers=(-1, -4))])
async def test_a_head_that_reads_a_layer_nobody_computes_is_refused_and_the_others_answer(
    trunks: FakeTrunks, unreadable: CatalogueHead
) -> None:
    outcomes, embedder = await classify(trunks, FakePredictor(), [unreadable, head("good")], Classification(["a"]))
    deep = outcomes["deep"]

    assert isinstance(deep, FailedPrecondition)
    assert "layer -4" in deep.message
    assert "--layers" in deep.message
    assert [(1, (View(),))] == embedder.calls
    assert [HeadAnswer("spam", 0.75, 7)] == outcomes["good"]


async def test_several_labels_a_text_are_those_at_or_above_their_thresholds(trunks: FakeTrunks) -> None:
    several = replace(manifest("tags"), task="multi_label", thresholds=(0.2, 0.8))

    outcomes, _ = await classify(trunks, FakePredictor(), [live(several)], Classification(["a"]))

    assert isinstance(outcomes["tags"], list)
    assert ["ham"] == outcomes["tags"][0].labels


async def test_a_regression_answers_its_value(trunks: FakeTrunks) -> None:
    price = replace(manifest("price"), task="regression", labels=("value",))
    predictor = FakePredictor(price=lambda rows: np.array([[-41.5]] * len(rows), np.float32))

    outcomes, _ = await classify(trunks, predictor, [live(price)], Classification(["a"]))

    assert [HeadAnswer(None, -41.5, 7, value=-41.5)] == outcomes["price"]


async def test_equal_texts_are_one_input_and_each_has_its_answer(trunks: FakeTrunks) -> None:
    def lengths(rows: Rows) -> FloatArray:
        return np.array([[row[0], 0.0] for row in rows], np.float32)

    outcomes, embedder = await classify(trunks, FakePredictor(one=lengths), [head("one")], Classification(["a", "b c", "a"]))

    assert [(2, (View(),))] == embedder.calls
    assert isinstance(outcomes["one"], list)
    # Three and four tokens, less one for the layer.
    assert [2.0, 3.0, 2.0] == [answer.score for answer in outcomes["one"]]


async def test_a_text_in_windows_gets_the_mean_of_their_scores(trunks: FakeTrunks) -> None:
    seen: list[int] = []

    def counted(rows: Rows) -> FloatArray:
        seen.append(len(rows))
        return np.array([[1.0, 0.0], [0.0, 0.5]] + [[1.0, 0.5]] * (len(rows) - 2), np.float32)

    request = Classification(["a b c d e f g " * 15, "c"], truncation="window", with_scores=True)
    outcomes, _ = await classify(trunks, FakePredictor(one=counted), [head("one")], request)

    # 105 words in windows of 62: two, and the short text.
    assert [3] == seen
    assert isinstance(outcomes["one"], list)
    assert [{"ham": 0.5, "spam": 0.25}, {"ham": 1.0, "spam": 0.5}] == [answer.scores for answer in outcomes["one"]]


async def test_a_text_that_may_not_be_cut_is_refused_when_it_is_too_long(trunks: FakeTrunks) -> None:
    with pytest.raises(InvalidRequest, match="text 1"):
        await classify(trunks, FakePredictor(), [head("one")], Classification(["a", "b " * 100], truncation="error"))


async def test_two_words_for_one_version_are_one_call(trunks: FakeTrunks) -> None:
    calls: list[int] = []

    def counted(rows: Rows) -> FloatArray:
        calls.append(len(rows))
        return second_wins(rows)

    outcomes, _ = await classify(
        trunks, FakePredictor(one=counted), [head("one")], Classification(["a"], heads=["one", "one@7", "one@stable"])
    )

    assert ["one", "one@7", "one@stable"] == list(outcomes)
    assert [1] == calls


async def test_a_text_that_a_heads_steps_leave_nothing_of_is_that_heads_error(trunks: FakeTrunks) -> None:
    strips = live(replace(manifest("strips"), preprocess=("html-strip/1",)))
    outcomes, embedder = await classify(trunks, FakePredictor(), [head("plain"), strips], Classification(["a", "<br>"]))

    assert isinstance(outcomes["strips"], InvalidRequest)
    assert "text 1 has nothing in it" in outcomes["strips"].message
    assert [HeadAnswer("spam", 0.75, 7)] * 2 == outcomes["plain"]
    assert [(2, (View(),))] == embedder.calls


async def test_windows_are_joined_as_each_head_has_it(trunks: FakeTrunks) -> None:
    def rising(rows: Rows) -> FloatArray:
        return np.array([[0.1 * place, 0.0] for place in range(1, len(rows) + 1)], np.float32)

    ways = {"cut": "cut", "mean": "mean", "highest": "max"}
    heads = [live(replace(manifest(name), long_text=way, task="multi_label")) for name, way in ways.items()]
    text = " ".join("abcdefghijklmnopqrstuvwxyz" * 3)
    outcomes, embedder = await classify(trunks, FakePredictor(**dict.fromkeys(ways, rising)), heads, Classification([text, "b"]))

    assert 2 == len(trunks.tokens.encode_windows(text))
    # The beginning, a short text, two windows.
    assert [(4, (View(),))] == embedder.calls
    scores = {name: [answer.score for answer in outcome] for name, outcome in outcomes.items() if isinstance(outcome, list)}
    np.testing.assert_allclose([[0.1, 0.2], [0.15, 0.3], [0.2, 0.3]], [scores[name] for name in ways], rtol=1e-6)
