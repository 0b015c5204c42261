from pathlib import Path

import pytest

from clients.wire.catalogue import Manifest
from head_service import history
from head_service.errors import RefusedError, RepositoryError
from head_service.release import force, release
from tests.head_service.lifecycles import GOLDEN, World

SCORES = tuple(example.scores for example in GOLDEN)


def scorer(manifest: Manifest, texts: object) -> tuple[tuple[float, ...], ...]:
    return SCORES


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
