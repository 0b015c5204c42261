from pathlib import Path

import pytest

from clients.wire.catalogue import Manifest, Metrics
from head_service import history
from head_service.errors import RefusedError, RepositoryError, SupersededError
from head_service.gate import Remeasure
from head_service.release import examine, force, release
from tests.head_service.lifecycles import GOLDEN, World

SCORES = tuple(example.scores for example in GOLDEN)


def scorer(manifest: Manifest, texts: object) -> tuple[tuple[float, ...], ...]:
    return SCORES


def live_scores(accuracy: float) -> Remeasure:
    """What the live version scores on a candidate's test part, whichever that is."""
    return lambda live, candidate: Metrics(accuracy, accuracy, 80, 20, candidate.data)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_better_version_goes_live_and_what_was_found_is_kept(world: World) -> None:
    for accuracy in (0.8, 0.9):
        release(world.lifecycle, "spam", world.publish(accuracy=accuracy), scorer=scorer)

    head = world.catalogue().heads["spam"]
    found = world.lifecycle.comparison("spam", 2)
    assert (2, 1) == (head.stable, head.previous)
    assert found is not None
    assert ("passed", 0.9, 0.8) == (found.verdict, found.candidate, found.live)
    assert "accuracy 0.9000 against 0.8000" in history.events(world.repository.store, "spam")[-1].reason


def test_a_worse_version_is_kept_refused_with_the_comparison(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.9), scorer=scorer)

    found = release(world.lifecycle, "spam", world.publish(accuracy=0.5), scorer=scorer)

    assert "refused" == found.verdict
    assert found == world.lifecycle.comparison("spam", 2)
    assert [1, 2] == world.repository.versions("spam")
    assert ({1}, 1) == (world.served()["spam"].versions, world.catalogue().heads["spam"].stable)
    assert [] == world.problems()
    with pytest.raises(RefusedError, match="is refused: accuracy"):
        release(world.lifecycle, "spam", 2, scorer=scorer)


def test_a_person_may_force_what_the_gate_refused(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.9), scorer=scorer)
    release(world.lifecycle, "spam", world.publish(accuracy=0.5), scorer=scorer)

    force(world.lifecycle, "spam", 2)

    assert 2 == world.catalogue().heads["spam"].stable
    assert ["promote", "refuse", "pardon", "promote"] == [e.what for e in history.events(world.repository.store, "spam")]


def test_a_version_measured_on_other_texts_waits_for_a_person(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.9), scorer=scorer)

    found = release(world.lifecycle, "spam", world.publish(accuracy=0.99, data="sha256:other"), scorer=scorer)

    assert "incomparable" == found.verdict
    assert {1} == world.served()["spam"].versions
    assert {} == world.repository.marks("spam")


def test_a_version_that_cannot_be_weighed_is_loaded_no_more(world: World) -> None:
    def unreachable(manifest: Manifest, texts: object) -> tuple[tuple[float, ...], ...]:
        raise RepositoryError("the embedding service is away")

    with pytest.raises(RepositoryError, match="is away"):
        release(world.lifecycle, "spam", world.publish(accuracy=0.9), scorer=unreachable)

    assert "spam" not in world.served()


def test_a_version_is_weighed_again_when_another_went_live_meanwhile(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.5), scorer=scorer)
    candidate = world.publish(accuracy=0.7)
    better = world.publish(accuracy=0.9)
    asked = []

    def slow(manifest: Manifest, texts: object) -> tuple[tuple[float, ...], ...]:
        asked.append(manifest.version)
        if len(asked) == 1:
            world.lifecycle.promote("spam", better)
        return SCORES

    found = release(world.lifecycle, "spam", candidate, scorer=slow)

    assert [candidate, candidate] == asked
    assert ("refused", better) == (found.verdict, found.live_version)
    assert better == world.catalogue().heads["spam"].stable


def test_an_older_version_does_not_follow_a_newer_one_that_went_live_meanwhile(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.5), scorer=scorer)
    older = world.publish(accuracy=0.9)
    newer = world.publish(accuracy=0.9)
    asked = []

    def scored_meanwhile(manifest: Manifest, texts: object) -> tuple[tuple[float, ...], ...]:
        asked.append(manifest.version)
        if len(asked) == 1:
            release(world.lifecycle, "spam", newer, scorer=scorer)
        return SCORES

    with pytest.raises(SupersededError, match="version 3 of spam went live meanwhile"):
        release(world.lifecycle, "spam", older, scorer=scored_meanwhile)

    assert newer == world.catalogue().heads["spam"].stable
    assert older not in world.served()["spam"].versions
    # Whoever asks for it by itself means it.
    release(world.lifecycle, "spam", older, scorer=scorer)
    assert older == world.catalogue().heads["spam"].stable


def test_a_version_may_be_examined_without_going_live(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.8), scorer=scorer)
    candidate = world.publish(accuracy=0.9, data="sha256:other")

    found = examine(world.lifecycle, "spam", candidate, scorer=scorer, remeasure=live_scores(0.7))

    assert ("passed", 0.9, 0.7) == (found.verdict, found.candidate, found.live)
    assert found == world.lifecycle.comparison("spam", candidate)
    assert ({1}, 1) == (world.served()["spam"].versions, world.catalogue().heads["spam"].stable)
    assert ({}, []) == (world.repository.marks("spam"), world.problems())


def test_a_worse_version_is_refused_when_it_is_examined(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.8), scorer=scorer)
    candidate = world.publish(accuracy=0.9, data="sha256:other")

    found = examine(world.lifecycle, "spam", candidate, scorer=scorer, remeasure=live_scores(0.95))

    assert "refused" == found.verdict
    with pytest.raises(RefusedError, match=r"0\.9000 against 0\.9500"):
        release(world.lifecycle, "spam", candidate, scorer=scorer)
    assert ({1}, 1) == (world.served()["spam"].versions, world.catalogue().heads["spam"].stable)


def test_an_examined_version_goes_live_without_the_texts_it_was_examined_on(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.8), scorer=scorer)
    candidate = world.publish(accuracy=0.9, data="sha256:other")
    examine(world.lifecycle, "spam", candidate, scorer=scorer, remeasure=live_scores(0.7))

    found = release(world.lifecycle, "spam", candidate, scorer=scorer)

    assert ("passed", 0.9, 0.7) == (found.verdict, found.candidate, found.live)
    assert candidate == world.catalogue().heads["spam"].stable


def test_an_examined_version_is_checked_by_its_golden_examples_again(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.8), scorer=scorer)
    candidate = world.publish(accuracy=0.9, data="sha256:other")
    examine(world.lifecycle, "spam", candidate, scorer=scorer, remeasure=live_scores(0.7))

    found = release(world.lifecycle, "spam", candidate, scorer=lambda *_: ((0.5, 0.5), (0.5, 0.5)))

    assert "refused" == found.verdict
    assert 1 == world.catalogue().heads["spam"].stable


def test_what_was_found_does_not_count_once_another_version_is_live(world: World) -> None:
    release(world.lifecycle, "spam", world.publish(accuracy=0.8), scorer=scorer)
    candidate = world.publish(accuracy=0.9, data="sha256:other")
    examine(world.lifecycle, "spam", candidate, scorer=scorer, remeasure=live_scores(0.7))
    other = world.publish(accuracy=0.99)
    release(world.lifecycle, "spam", other, scorer=scorer)

    found = release(world.lifecycle, "spam", candidate, scorer=scorer)

    assert ("incomparable", other) == (found.verdict, found.live_version)
    assert other == world.catalogue().heads["spam"].stable
