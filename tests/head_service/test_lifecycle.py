import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.wire.catalogue import CatalogueHead
from head_service import history
from head_service.configuration import MODELS_CONFIG
from head_service.errors import BusyError, ConflictError, ManifestError, RefusedError, RepositoryError
from head_service.gate import Comparison
from head_service.lifecycle import GRACE_SECONDS, Lifecycle
from head_service.repository import Repository
from head_service.states import CANDIDATE_SECONDS
from head_service.store import LocalStore
from tests.head_service.lifecycles import DyingStore, Killed, World
from tests.head_service.versions_on_disk import FINGERPRINT, exporter

REFUSAL = Comparison(verdict="refused", reason="it is worse", version=2)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "repository")
    for _ in range(3):
        made.publish()
    return made


def versions(world: World, name: str = "spam") -> set[int]:
    return set(world.served()[name].versions)


def roles(head: CatalogueHead) -> tuple[int, int | None, int | None, int | None]:
    return head.stable, head.previous, head.canary, head.shadow


def test_a_version_is_named_to_the_head_server_before_it_answers_anybody(world: World) -> None:
    seen: list[tuple[set[int], dict[str, int], int]] = []
    lifecycle = world.lifecycle
    lifecycle.promote("spam", 1)

    def wait(name: str, version: int) -> None:
        told = world.served()[name]
        seen.append((set(told.versions), dict(told.labels), world.catalogue().heads[name].stable))

    lifecycle.wait_until_available = wait
    lifecycle.promote("spam", 2)

    assert [({1, 2}, {"stable": 1}, 1)] == seen
    assert ({1, 2}, {"stable": 2}) == (versions(world), world.served()["spam"].labels)
    assert (2, 1, None, None) == roles(world.catalogue().heads["spam"])


def test_a_version_that_the_head_server_refuses_never_answers(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    world.broken.add(("spam", 2))

    with pytest.raises(RepositoryError, match="the head server refuses it"):
        world.lifecycle.promote("spam", 2)

    assert {1} == versions(world)
    assert 1 == world.catalogue().heads["spam"].stable
    assert [] == world.problems()


def test_what_leaves_stays_loaded_until_every_gateway_has_moved_on(world: World) -> None:
    for version in (1, 2, 3):
        world.lifecycle.promote("spam", version)
    assert {1, 2, 3} == versions(world)

    world.clock.sleep(GRACE_SECONDS - 0.1)
    world.lifecycle.settle()
    assert {1, 2, 3} == versions(world)

    world.lifecycle.settle(wait_for="spam")
    assert {2, 3} == versions(world)
    assert {} == world.repository.marks("spam")


def test_the_oldest_of_many_versions_can_be_promoted_though_it_is_not_among_the_last(world: World) -> None:
    lifecycle = world.lifecycle
    lifecycle.keep_versions = 2
    lifecycle.promote("spam", 1)

    assert {1} == versions(world)
    assert [2, 3] == [version for version in world.repository.versions("spam") if version != 1]
    assert [] == world.problems()


def test_rolling_back_exchanges_the_two(world: World) -> None:
    for version in (1, 2):
        world.lifecycle.promote("spam", version)

    assert (1, 2, None, None) == roles(world.lifecycle.roll_back("spam", reason="complaints"))
    assert (2, 1, None, None) == roles(world.lifecycle.roll_back("spam"))

    told = history.events(world.repository.store, "spam")
    assert [("promote", None, 1), ("promote", 1, 2), ("roll back", 2, 1), ("roll back", 1, 2)] == [
        (event.what, event.before, event.after) for event in told
    ]
    assert ("somebody@here", "complaints", "1970-01-12T13:46:40+00:00") == (told[2].who, told[2].reason, told[2].when)


def test_there_must_be_something_to_roll_back_to(world: World) -> None:
    with pytest.raises(RepositoryError, match="no live version"):
        world.lifecycle.roll_back("spam")
    world.lifecycle.promote("spam", 1)
    with pytest.raises(RepositoryError, match="no previous version"):
        world.lifecycle.roll_back("spam")


def test_a_canary_answers_its_share_and_a_shadow_none(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    world.lifecycle.start_canary("spam", 2, 0.05)
    world.lifecycle.start_shadow("spam", 3)

    head = world.catalogue().heads["spam"]
    assert ((1, None, 2, 3), 0.05, {1, 2, 3}) == (roles(head), head.canary_share, set(head.versions))
    assert {"stable": 1, "canary": 2} == world.served()["spam"].labels

    world.lifecycle.end_canary("spam")
    world.lifecycle.end_shadow("spam")

    assert (1, None, None, None) == roles(world.catalogue().heads["spam"])
    assert ({1, 2, 3}, {"stable": 1}) == (versions(world), world.served()["spam"].labels)
    world.clock.sleep(GRACE_SECONDS)
    world.lifecycle.settle()
    assert {1} == versions(world)


def test_promoting_the_canary_ends_the_trial(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    world.lifecycle.start_canary("spam", 2, 0.5)

    head = world.lifecycle.promote("spam", 2)

    assert ((2, 1, None, None), 0.0) == (roles(head), head.canary_share)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_is_above_0_and_at_most_1(world: World, share: float) -> None:
    world.lifecycle.promote("spam", 1)

    with pytest.raises(RepositoryError, match="share"):
        world.lifecycle.start_canary("spam", 2, share)

    assert {1} == versions(world)


def test_a_trial_takes_a_live_version_and_another_one(world: World) -> None:
    with pytest.raises(RepositoryError, match="promote one first"):
        world.lifecycle.start_canary("spam", 1, 0.1)
    world.lifecycle.promote("spam", 1)
    with pytest.raises(RepositoryError, match="answers already"):
        world.lifecycle.start_shadow("spam", 1)


def test_a_refused_version_is_kept_and_goes_nowhere_until_it_is_pardoned(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    world.lifecycle.load_candidate("spam", 2)
    world.lifecycle.refuse("spam", 2, REFUSAL)

    assert {1} == versions(world)
    assert REFUSAL == world.lifecycle.comparison("spam", 2)
    assert [1, 2, 3] == world.repository.versions("spam")
    for attempt in (world.lifecycle.promote, world.lifecycle.start_shadow):
        with pytest.raises(RefusedError, match="it is worse"):
            attempt("spam", 2)

    world.lifecycle.pardon("spam", 2, reason="forced")
    assert 2 == world.lifecycle.promote("spam", 2).stable


def test_a_version_with_a_role_is_neither_refused_nor_removed(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    world.lifecycle.promote("spam", 2)

    with pytest.raises(RepositoryError, match="is stable"):
        world.lifecycle.refuse("spam", 2, REFUSAL)
    with pytest.raises(RepositoryError, match="is previous"):
        world.lifecycle.remove("spam", 1)


def test_a_removed_version_is_gone_and_its_number_is_not_given_again(world: World) -> None:
    world.lifecycle.remove("spam", 3)

    assert [1, 2] == world.repository.versions("spam")
    assert 4 == world.publish()
    with pytest.raises(RepositoryError, match="has no version 3; there are 1, 2, 4"):
        world.lifecycle.remove("spam", 3)


def test_a_removed_head_goes_once_no_gateway_asks_for_it(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    before = world.clock.now

    world.lifecycle.remove("spam")

    assert GRACE_SECONDS == world.clock.now - before
    assert {} == world.catalogue().heads
    assert "spam" not in world.served()
    assert [] == world.repository.versions("spam")
    assert 4 == world.publish()


def test_the_last_versions_are_kept_and_so_is_every_one_with_a_role(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    world.lifecycle.promote("spam", 2)
    for _ in range(4):
        world.publish()
    lifecycle = world.lifecycle
    lifecycle.keep_versions = 2

    lifecycle.settle()

    assert [1, 2, 6, 7] == world.repository.versions("spam")


def test_a_candidate_that_nobody_promotes_is_loaded_for_an_hour(world: World) -> None:
    world.lifecycle.load_candidate("spam", 1)
    assert {1} == versions(world)

    world.clock.sleep(CANDIDATE_SECONDS)
    world.lifecycle.settle()

    assert "spam" not in world.served()


def test_a_head_is_a_default_and_has_tags_until_told_otherwise(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    world.lifecycle.configure("spam", default=False)
    world.lifecycle.configure("spam", tags=("mail", "en"))
    world.lifecycle.promote("spam", 2)

    head = world.catalogue().heads["spam"]
    assert (False, ("mail", "en")) == (head.default, head.tags)


def test_a_version_is_promoted_only_over_the_one_it_was_compared_with(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    with pytest.raises(ConflictError, match="another live version"):
        world.lifecycle.promote("spam", 3, expected_live=None)
    assert 3 == world.lifecycle.promote("spam", 3, expected_live=1).stable


def test_a_version_that_is_not_its_manifest_is_not_even_loaded(world: World) -> None:
    (world.repository.path("spam", 2) / "saved_model.pb").write_bytes(b"other")

    with pytest.raises(ManifestError, match=r"changed saved_model\.pb"):
        world.lifecycle.promote("spam", 2)

    assert [] == world.waited


def test_an_unknown_head_is_told_with_those_there_are(world: World) -> None:
    with pytest.raises(RepositoryError, match="there is no head 'topic'; there are spam"):
        world.lifecycle.state("topic")


Change = Callable[[Lifecycle], object]
CHANGES: dict[str, tuple[Change, Callable[[CatalogueHead | None], bool]]] = {
    "first promotion": (lambda life: life.promote("new", 1), lambda head: head is not None and head.stable == 1),
    "promotion": (lambda life: life.promote("spam", 3), lambda head: head is not None and head.stable == 3),
    "roll-back": (lambda life: life.roll_back("spam"), lambda head: head is not None and head.stable == 1),
    "canary": (lambda life: life.start_canary("spam", 3, 0.1), lambda head: head is not None and head.canary == 3),
    "shadow": (lambda life: life.start_shadow("spam", 3), lambda head: head is not None and head.shadow == 3),
    "removal": (lambda life: life.remove("spam"), lambda head: head is None),
    "refusal": (lambda life: life.refuse("spam", 3, REFUSAL), lambda head: head is not None and head.stable == 2),
}


@pytest.mark.parametrize("after", [False, True], ids=["before a change", "after a change"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_kill_at_any_step_leaves_what_the_next_command_goes_on_from(tmp_path: Path, what: str, after: bool) -> None:
    change, is_done = CHANGES[what]
    name = "new" if what == "first promotion" else "spam"
    for dies_at in range(1, 100):
        world = World(tmp_path / f"{dies_at}")
        for _ in range(3):
            world.publish()
        world.publish("new")
        world.lifecycle.promote("spam", 1)
        world.lifecycle.promote("spam", 2)
        store = DyingStore(world.root, dies_at, after=after)
        dying = world.lifecycle_of(Repository(store))
        try:
            change(dying)
        except Killed:
            pass
        else:
            break
        # The instant after the kill: whatever the catalogue names is there and served.
        assert not [problem for problem in world.problems() if "labels" not in problem]
        if what != "removal":
            assert world.catalogue().heads["spam"].stable in {1, 2, 3}

        world.lifecycle.settle()
        assert [] == world.problems()
        if not is_done(world.catalogue().heads.get(name)):
            change(world.lifecycle)
        assert is_done(world.catalogue().heads.get(name))
        assert [] == world.problems()
        world.clock.sleep(CANDIDATE_SECONDS)
        world.lifecycle.settle()
        passing = {"candidate", "retiring", "removing"}
        assert not passing & {mark.state for mark in world.repository.marks(name).values()}
        assert what != "removal" or [] == world.repository.versions("spam")
    assert dies_at > 3


def test_a_promotion_that_was_cut_short_is_in_the_history(world: World) -> None:
    world.lifecycle.promote("spam", 1)
    dying = world.lifecycle_of(Repository(DyingStore(world.root, 4, after=True)))
    with pytest.raises(Killed):
        dying.promote("spam", 2)
    assert 2 == world.catalogue().heads["spam"].stable

    world.lifecycle.settle()

    last = history.events(world.repository.store, "spam")[-1]
    assert ("recover", 2) == (last.what, last.after)


def promote_many(root: str, name: str, failures: "multiprocessing.queues.Queue[str]") -> None:
    try:
        lifecycle = Lifecycle(Repository(Path(root)), grace_seconds=0.0)
        for turn in range(20):
            lifecycle.promote(name, 1 + turn % 2)
    except Exception as error:
        failures.put(repr(error))
        raise


def test_two_processes_that_promote_different_heads_lose_nothing(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    for name in ("spam", "topic"):
        for _ in range(2):
            repository.publish(name, exporter(name), fingerprint=FINGERPRINT)
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    processes = [context.Process(target=promote_many, args=(str(tmp_path), name, failures)) for name in ("spam", "topic")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [0, 0] == [process.exitcode for process in processes]
    world = World(tmp_path)
    assert {"spam": 2, "topic": 2} == {name: head.stable for name, head in world.catalogue().heads.items()}
    assert [] == world.problems()
    for name in ("spam", "topic"):
        assert [1, 2] * 10 == [event.after for event in history.events(repository.store, name)]


def test_whoever_holds_the_lock_too_long_is_named(tmp_path: Path) -> None:
    second = LocalStore(tmp_path, lock_seconds=0.0).locked()
    with LocalStore(tmp_path).locked(), pytest.raises(BusyError, match=r"locked by process \d+ since 20"):
        second.__enter__()
    with LocalStore(tmp_path, lock_seconds=0.0).locked():
        pass


def test_a_head_server_that_cannot_be_asked_is_given_the_grace_to_load(world: World) -> None:
    lifecycle = world.lifecycle
    lifecycle.wait_until_available = None
    before = world.clock.now
    lifecycle.promote("spam", 1)
    lifecycle.promote("spam", 2)
    assert 2 * GRACE_SECONDS == world.clock.now - before

    lifecycle.roll_back("spam")
    assert 2 * GRACE_SECONDS == world.clock.now - before


def test_others_publish_while_one_exports(world: World) -> None:
    published = []

    def slow(directory: Path, version: int) -> None:
        published.append(world.publish())
        exporter()(directory, version)

    assert 4 == world.repository.publish("spam", slow, fingerprint=FINGERPRINT)
    assert [5] == published
    assert [1, 2, 3, 4, 5] == world.repository.versions("spam")


def test_a_guard_has_the_last_word(world: World) -> None:
    def guard() -> None:
        raise RepositoryError("another worker has this run")

    with pytest.raises(RepositoryError, match="another worker"):
        world.repository.publish("spam", exporter(), fingerprint=FINGERPRINT, guard=guard)

    assert [1, 2, 3] == world.repository.versions("spam")
    assert {} == world.repository.marks("spam")


def test_a_catalogue_that_was_changed_by_hand_meanwhile_is_not_overwritten(world: World) -> None:
    store = world.repository.store
    store.write("catalogue.json", b"{}", before=None)
    before = store.read("catalogue.json")
    store.write("catalogue.json", b'{"heads": {}}', before=before)

    with pytest.raises(ConflictError, match="changed by somebody else"):
        store.write("catalogue.json", b"{}", before=before)


def test_a_file_beside_models_config_is_kept_current(world: World) -> None:
    from head_service.configuration import remember_base_path

    remember_base_path(world.repository.store, "container.config", "/repository")
    world.lifecycle.promote("spam", 1)

    assert 'base_path: "/repository/spam"' in (world.root / "container.config").read_text()
    assert 'base_path: "/repository/spam"' not in (world.root / MODELS_CONFIG).read_text()
