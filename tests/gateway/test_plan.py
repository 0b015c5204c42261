from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from clients import InvalidRequest, NotFound
from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, TrunkRef, View
from gateway.classification import Classification
from gateway.plan import Planner, check_size, is_canary, views_for
from gateway.ports import LiveTrunk
from tests.gateway.fakes import live, manifest


def trunk(fingerprint: str = "sha256:one") -> LiveTrunk:
    return LiveTrunk("tiny", fingerprint, None, 64)  # type: ignore[arg-type]  # nothing is encoded here


def rolled_out(*, share: float = 0.5, shadow: int | None = None, tags: tuple[str, ...] = ()) -> CatalogueHead:
    """Version 3 is stable, 4 the canary."""
    versions = {version: manifest("topic", version=version) for version in (2, 3, 4)}
    return CatalogueHead(3, versions, canary=4, canary_share=share, shadow=shadow, previous=2, tags=tags)


def versions_of(catalogue: Catalogue, request: Classification, *, draw: float = 0.99) -> dict[str, int]:
    plan = Planner(draw=lambda: draw).plan(catalogue, trunk(), request)
    return {word: head.manifest.version for word, head in plan.heads.items()}


@pytest.mark.parametrize(
    ("word", "version"),
    [("topic@stable", 3), ("topic@canary", 4), ("topic@previous", 2), ("topic@2", 2), ("topic@4", 4), ("topic", 3)],
)
def test_a_version_may_be_asked_for_by_number_or_by_role(word: str, version: int) -> None:
    assert {word: version} == versions_of(Catalogue({"topic": rolled_out()}), Classification(["a"], heads=[word]))


@pytest.mark.parametrize("word", ["nothing", "topic@9", "topic@shadow", "topic@", "topic@-3", "topic@³", f"topic@{9**30}", "@3"])
def test_a_head_or_version_that_is_not_there_is_not_found_and_the_message_names_heads_alone(word: str) -> None:
    with pytest.raises(NotFound) as told:
        versions_of(Catalogue({"topic": rolled_out()}), Classification(["a"], heads=[word]))
    assert "known heads: topic" in told.value.message


def test_heads_are_asked_for_by_tag_too() -> None:
    heads = {"one": live(manifest("one")), "topic": rolled_out(share=0, tags=("news",)), "two": live(manifest("two"))}
    assert ["topic"] == list(versions_of(Catalogue(heads), Classification(["a"], tags=["news"])))
    assert ["two", "topic"] == list(versions_of(Catalogue(heads), Classification(["a"], heads=["two"], tags=["news"])))
    with pytest.raises(NotFound, match="known tags: news"):
        versions_of(Catalogue(heads), Classification(["a"], tags=["sports"]))
    with pytest.raises(InvalidRequest):
        versions_of(Catalogue(heads), Classification(["a"], tags=[]))


def test_a_draw_below_the_share_gets_the_canary() -> None:
    catalogue = Catalogue({"topic": rolled_out(share=0.3)})
    assert {"topic": 4} == versions_of(catalogue, Classification(["a"]), draw=0.29)
    assert {"topic": 3} == versions_of(catalogue, Classification(["a"]), draw=0.31)


@given(st.text(), st.floats(0, 1))
def test_a_sticky_key_decides_once_for_a_rollout_and_more_share_only_adds_callers(key: str, share: float) -> None:
    assert is_canary("topic", 4, key, share) <= is_canary("topic", 4, key, min(1.0, share + 0.1))
    assert is_canary("topic", 4, key, 1.0)
    assert not is_canary("topic", 4, key, 0.0)


def test_a_share_of_sticky_keys_is_that_share() -> None:
    catalogue = Catalogue({"topic": rolled_out(share=0.25)})
    planner = Planner(draw=lambda: pytest.fail("nothing is drawn for a key"))
    requests = [Classification(["a"], sticky_key=f"caller {number}") for number in range(4_000)]
    seen = Counter(planner.plan(catalogue, trunk(), request).heads["topic"].manifest.version for request in requests)
    again = [planner.plan(catalogue, trunk(), request).heads["topic"].manifest.version for request in requests]

    # Six standard deviations.
    assert 0.25 == pytest.approx(seen[4] / 4_000, abs=0.042)
    assert seen == Counter(again)


def test_a_shadow_runs_beside_the_head_but_not_beside_a_version_asked_for_by_itself() -> None:
    catalogue = Catalogue({"topic": rolled_out(share=0, shadow=4)})
    plan = Planner().plan(catalogue, trunk(), Classification(["a"], heads=["topic", "topic@2"]))

    assert plan.heads["topic"].shadow is catalogue.heads["topic"].versions[4]
    assert plan.heads["topic@2"].shadow is None
    assert [3, 2] == [version.version for version in plan.versions]


def test_a_version_is_no_shadow_of_itself() -> None:
    catalogue = Catalogue({"topic": rolled_out(share=1, shadow=4)})

    assert () == Planner().plan(catalogue, trunk(), Classification(["a"])).shadows


@pytest.mark.parametrize(
    ("word", "draw", "exact"),
    [
        ("topic", 0.99, set()),
        ("topic", 0.0, {("topic", 4)}),
        ("topic@stable", 0.99, set()),
        ("topic@3", 0.99, {("topic", 3)}),
        ("topic@canary", 0.99, {("topic", 4)}),
    ],
)
def test_a_canary_and_a_version_asked_for_by_itself_must_answer_themselves(
    word: str, draw: float, exact: set[tuple[str, int]]
) -> None:
    catalogue = Catalogue({"topic": rolled_out()})

    assert exact == Planner(draw=lambda: draw).plan(catalogue, trunk(), Classification(["a"], heads=[word])).exact


def test_a_plan_is_kept_until_catalogue_or_trunk_change_but_not_where_it_is_drawn() -> None:
    planner = Planner()
    fixed, drawn = Catalogue({"one": live(manifest("one"))}), Catalogue({"topic": rolled_out()})
    here, request = trunk(), Classification(["a"])
    first = planner.plan(fixed, here, request)

    assert planner.plan(fixed, here, request) is first
    assert planner.plan(fixed, trunk("sha256:two"), request) is not first
    assert planner.plan(drawn, here, request) is not planner.plan(drawn, here, request)


def test_views_are_asked_for_once_whoever_reads_them() -> None:
    def reading(*layers: int) -> Manifest:
        return Manifest(name="h", version=1, labels=("a",), width=4, trunk=TrunkRef("t", "f"), mix_layers=layers)

    assert (View(layer=-2), View()) == views_for([reading(), reading(-1, -2), reading(-2)])


@pytest.mark.parametrize("step", ["lower/99", "entrypoint:not.installed/1"])
def test_a_head_whose_texts_cannot_be_prepared_here_says_why(step: str) -> None:
    heads = {name: live(replace(manifest(name), preprocess=steps)) for name, steps in (("a", ("lower/1",)), ("b", (step,)))}
    plan = Planner().plan(Catalogue(heads), trunk(), Classification(["a"]))

    assert ["a"] == [version.name for version in plan.versions]
    assert "cannot be given texts as it was trained on: " in plan.heads["b"].refused
    assert step.partition("/")[0] in plan.heads["b"].refused


def test_heads_in_another_order_read_the_same_views_in_the_same_order() -> None:
    heads = [manifest(str(layer), view=View(layer=layer)) for layer in (-1, -3, -2)]

    assert views_for(heads) == views_for(heads[::-1])


def test_an_answer_has_a_bound_that_texts_heads_and_labels_reach_together() -> None:
    wide = replace(manifest("wide"), labels=tuple(map(str, range(2_000))))
    plan = Planner().plan(Catalogue({"wide": live(wide)}), trunk(), Classification(["a"]))
    texts = ["a"] * 600

    check_size(plan, Classification(texts))
    check_size(plan, Classification(texts, with_scores=True, top_k=5))
    check_size(plan, Classification(texts[:500], with_scores=True))
    with pytest.raises(InvalidRequest, match="top_k"):
        check_size(plan, Classification(texts, with_scores=True))


def test_what_top_k_does_not_cut_counts_whole() -> None:
    labels = tuple(f"{number}/below" for number in range(2_000))
    several = replace(manifest("several"), labels=labels, task="multi_label")
    levels = replace(manifest("levels"), labels=labels, label_separator="/")
    plans = [Planner().plan(Catalogue({one.name: live(one)}), trunk(), Classification(["a"])) for one in (several, levels)]
    texts = ["a"] * 600

    for plan in plans:
        check_size(plan, Classification(texts, top_k=1))
    with pytest.raises(InvalidRequest, match="2001 scores"):
        check_size(plans[0], Classification(texts, top_k=1, threshold=0.0))
    with pytest.raises(InvalidRequest, match="2001 scores"):
        check_size(plans[1], Classification(texts, top_k=1, with_scores=True))
