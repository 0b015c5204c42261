from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from clients.wire.catalogue import BundleMember, bundles_of, members_of
from head_service.catalogue import read_catalogue
from head_service.configuration import MODELS_CONFIG, parse_config
from head_service.errors import StorageError
from head_service.lifecycle import GRACE_SECONDS, Lifecycle
from head_service.mirror import REMOVE_AFTER_SECONDS, RETRY_SECONDS, Mirror, follow_once, mirror_layout
from head_service.object_store import ObjectStore
from head_service.repository import Repository
from tests.head_service.lifecycles import Clock
from tests.head_service.versions_on_disk import FINGERPRINT, exporter, manifest, write_version


@dataclass
class Mirrored:
    """A repository in S3 and its mirror; *available* is what the head server has, None that nobody can ask it."""

    source: Repository
    root: Path
    clock: Clock = field(default_factory=Clock)
    available: set[tuple[str, int]] | None = None

    def __post_init__(self) -> None:
        self.mirror = Mirror(self.source, self.root, is_available=self._is_available, clock=self.clock, wall_clock=self.clock)
        self.lifecycle = Lifecycle(self.source, clock=self.clock, sleep=self.clock.sleep)

    def _is_available(self, name: str, version: int) -> bool | None:
        return None if self.available is None else (name, version) in self.available

    def publish(self, name: str = "spam") -> int:
        return self.source.publish(name, exporter(name), fingerprint=FINGERPRINT)

    def stable(self, name: str = "spam") -> int | None:
        head = read_catalogue(self.root).heads.get(name)
        return head.stable if head else None

    def served(self, name: str = "spam") -> tuple[set[int], dict[str, int]]:
        told = parse_config((self.root / MODELS_CONFIG).read_bytes())[name]
        return set(told.versions), dict(told.labels)

    def versions(self) -> list[int]:
        return Repository(self.root).versions("spam")


@pytest.fixture
def mirrored(s3: Callable[..., ObjectStore], tmp_path: Path) -> Mirrored:
    made = Mirrored(Repository(s3()), tmp_path / "mirror", available=set())
    for _ in range(3):
        made.publish()
    made.lifecycle.promote("spam", 1)
    return made


def test_the_catalogue_moves_once_the_head_server_has_the_version(mirrored: Mirrored) -> None:
    done = mirrored.mirror.follow()
    assert (("spam", 1),) == done.pulled
    assert (None, ({1}, {})) == (mirrored.stable(), mirrored.served())

    mirrored.available = {("spam", 1)}
    mirrored.mirror.follow()
    assert (1, ({1}, {"stable": 1})) == (mirrored.stable(), mirrored.served())

    mirrored.lifecycle.promote("spam", 2)
    mirrored.mirror.follow()
    assert (1, ({1, 2}, {"stable": 1})) == (mirrored.stable(), mirrored.served())

    mirrored.available |= {("spam", 2)}
    mirrored.mirror.follow()
    assert (2, ({1, 2}, {"stable": 2})) == (mirrored.stable(), mirrored.served())
    assert (mirrored.root / "spam/2/saved_model.pb").read_bytes() == b"a graph"


def test_a_candidate_is_mirrored_before_it_is_promoted(mirrored: Mirrored) -> None:
    mirrored.lifecycle.load_candidate("spam", 3)

    mirrored.mirror.follow()

    assert {1, 3} == mirrored.served()[0]


def test_what_nobody_wants_is_removed_and_never_what_is_loaded(mirrored: Mirrored) -> None:
    mirrored.available = {("spam", version) for version in (1, 2, 3)}
    for version in (1, 2, 3):
        mirrored.lifecycle.promote("spam", version)
        mirrored.mirror.follow()
    mirrored.clock.sleep(GRACE_SECONDS)
    mirrored.lifecycle.settle()
    mirrored.mirror.follow()
    assert ({2, 3}, [1, 2, 3]) == (mirrored.served()[0], mirrored.versions())

    mirrored.clock.sleep(REMOVE_AFTER_SECONDS)
    assert () == mirrored.mirror.follow().removed

    mirrored.available -= {("spam", 1)}
    assert (("spam", 1),) == mirrored.mirror.follow().removed
    assert [2, 3] == mirrored.versions()


def test_without_a_head_server_to_ask_the_catalogue_moves_after_a_while(mirrored: Mirrored) -> None:
    mirrored.available = None
    mirrored.mirror.follow()
    assert mirrored.stable() is None

    mirrored.clock.sleep(GRACE_SECONDS)
    mirrored.mirror.follow()
    assert 1 == mirrored.stable()


def test_a_version_that_is_not_its_manifest_is_not_mirrored_and_the_old_one_answers(mirrored: Mirrored) -> None:
    mirrored.available = {("spam", 1), ("spam", 2)}
    mirrored.mirror.follow()
    mirrored.lifecycle.promote("spam", 2)
    store = mirrored.source.store
    before = store.read("spam/2/saved_model.pb")
    store.write("spam/2/saved_model.pb", b"another graph", before=before)

    [problem] = mirrored.mirror.follow().problems

    assert "changed saved_model.pb" in problem
    assert (1, [1]) == (mirrored.stable(), mirrored.versions())
    assert () == mirrored.mirror.follow().problems

    store.write("spam/2/saved_model.pb", b"a graph", before=store.read("spam/2/saved_model.pb"))
    mirrored.clock.sleep(RETRY_SECONDS)
    mirrored.mirror.follow()
    assert 2 == mirrored.stable()


def test_a_version_that_cannot_be_pulled_holds_up_no_other(mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored.publish("topic")
    mirrored.lifecycle.promote("topic", 1)
    fetch = mirrored.source.fetch

    def failing(name: str, version: int, directory: Path) -> None:
        if name == "spam":
            raise StorageError("no room")
        fetch(name, version, directory)

    monkeypatch.setattr(mirrored.source, "fetch", failing)
    done = mirrored.mirror.follow()
    assert (("topic", 1),) == done.pulled
    assert ["spam version 1"] == [" ".join(problem.split()[:3]) for problem in done.problems]

    monkeypatch.undo()
    assert () == mirrored.mirror.follow().pulled
    mirrored.clock.sleep(RETRY_SECONDS)
    assert (("spam", 1),) == mirrored.mirror.follow().pulled


def test_an_empty_object_where_a_folder_begins_is_no_file(mirrored: Mirrored) -> None:
    store = mirrored.source.store
    for marker in ("spam/1/", "spam/1/variables/"):
        store.create(marker, b"")
    assert (("spam", 1),) == mirrored.mirror.follow().pulled


def test_a_file_whose_name_leads_outside_is_not_written(mirrored: Mirrored) -> None:
    store = mirrored.source.store
    store.create("spam/1/../../../outside", b"here")

    [problem] = mirrored.mirror.follow().problems

    assert "leads outside" in problem
    assert not (mirrored.root.parent / "outside").exists()


def test_a_mirror_that_is_started_again_goes_on(mirrored: Mirrored) -> None:
    mirrored.available = {("spam", 1)}
    mirrored.mirror.follow()
    again = Mirrored(mirrored.source, mirrored.root, available={("spam", 1)})

    done = again.mirror.follow()
    assert ((), ()) == (done.pulled, done.problems)
    assert 1 == again.stable()


def test_a_source_that_is_away_leaves_the_mirror_as_it_is(mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored.available = {("spam", 1)}
    mirrored.mirror.follow()
    said: list[str] = []

    def away(key: str) -> None:
        raise StorageError("s3://heads cannot be reached")

    monkeypatch.setattr(mirrored.source.store, "read", away)
    follow_once(mirrored.mirror, said.append)

    assert ["the mirror stays as it is: s3://heads cannot be reached"] == said
    assert 1 == mirrored.stable()


def test_a_mirror_starts_with_nothing_live(tmp_path: Path) -> None:
    mirror_layout(tmp_path)

    assert {} == read_catalogue(tmp_path).heads
    assert {} == parse_config((tmp_path / MODELS_CONFIG).read_bytes())


def test_a_bundle_is_told_of_once_the_head_server_has_it(mirrored: Mirrored) -> None:
    members = (BundleMember("spam", 1, 0, 2, "sha256:3"), BundleMember("topic", 1, 2, 2, "sha256:4"))

    def export(directory: Path, version: int) -> None:
        write_version(directory, msgspec.structs.replace(manifest("bundle-1", version), members=members))

    version = mirrored.source.publish_bundle("bundle-1", export, fingerprint=FINGERPRINT)
    mirrored.lifecycle.promote_bundle("bundle-1", version)
    mirrored.available = {("spam", 1)}
    mirrored.mirror.follow()
    assert {} == bundles_of(read_catalogue(mirrored.root))
    assert ({1}, {}) == mirrored.served("bundle-1")

    mirrored.available.add(("bundle-1", 1))
    mirrored.mirror.follow()
    assert members == members_of(bundles_of(read_catalogue(mirrored.root))["bundle-1"])
    assert 1 == mirrored.stable()

    mirrored.lifecycle.remove("bundle-1")
    mirrored.mirror.follow()
    assert {} == bundles_of(read_catalogue(mirrored.root))
