import errno
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from head_service import history
from head_service.configuration import read_catalogue_of
from head_service.errors import BusyError, ConflictError, ManifestError, RepositoryError, StorageError
from head_service.lifecycle import Lifecycle
from head_service.object_store import ObjectStore
from head_service.repository import Repository
from head_service.states import Mark
from head_service.store import STALE_SECONDS, Stored, is_remote, open_store
from tests.head_service.lifecycles import Clock
from tests.head_service.versions_on_disk import FINGERPRINT, exporter

MakeStore = Callable[..., ObjectStore]


def publish(store: ObjectStore, name: str = "spam") -> int:
    return Repository(store).publish(name, exporter(name), fingerprint=FINGERPRINT)


def test_versions_are_published_and_live_as_in_a_directory(s3: MakeStore) -> None:
    store, clock = s3(), Clock()
    lifecycle = Lifecycle(Repository(store), clock=clock, sleep=clock.sleep)
    assert [1, 2, 3] == [publish(store) for _ in range(3)]

    for version in (1, 2, 3):
        lifecycle.promote("spam", version)
    lifecycle.roll_back("spam")

    head = read_catalogue_of(store)[0].heads["spam"]
    assert (2, 3) == (head.stable, head.previous)
    assert ["spam"] == store.heads()
    assert "sha256:" in Repository(store).verify("spam", 2).files["saved_model.pb"]
    assert 4 == len(history.events(store, "spam"))

    lifecycle.remove("spam", 1)
    assert [2, 3] == store.versions("spam")
    assert 4 == publish(store)


def test_a_version_exists_when_its_manifest_does(s3: MakeStore, tmp_path: Path) -> None:
    store = s3()
    exporter()(tmp_path, 1)

    store.prepare("spam", 1, tmp_path)
    assert [] == store.versions("spam")
    store.publish("spam", 1, tmp_path)
    assert [1] == store.versions("spam")
    with pytest.raises(ConflictError):
        store.prepare("spam", 1, tmp_path)


def test_an_upload_that_broke_off_is_no_version_and_goes_once_it_is_old(s3: MakeStore, tmp_path: Path) -> None:
    store = s3()
    repository = Repository(store)
    exporter()(tmp_path, 1)
    store.prepare("spam", 1, tmp_path)
    repository.set_mark("spam", 1, Mark("reserved", 0.0))
    store.prepare("spam", 2, tmp_path)
    repository.set_mark("spam", 2, Mark("reserved", 10**12))

    assert 3 == publish(store)

    assert [3] == store.versions("spam")
    assert {2} == repository.marks("spam").keys()
    assert {} == store.hashes("spam", 1)
    assert STALE_SECONDS < 10**12


def test_an_export_that_fails_leaves_nothing_in_the_bucket(s3: MakeStore) -> None:
    store = s3()

    def export(directory: Path, version: int) -> None:
        exporter()(directory, version)
        (directory / "saved_model.pb").write_bytes(b"other")

    with pytest.raises(ManifestError):
        Repository(store).publish("spam", export, fingerprint=FINGERPRINT)

    assert [] == store.heads()


def test_of_two_who_write_the_same_catalogue_one_is_told(s3: MakeStore) -> None:
    store = s3()
    store.write("catalogue.json", b"first", before=None)
    seen = store.read("catalogue.json")
    store.write("catalogue.json", b"second", before=seen)

    with pytest.raises(ConflictError, match="changed by somebody else"):
        store.write("catalogue.json", b"third", before=seen)
    with pytest.raises(ConflictError):
        store.write("catalogue.json", b"third", before=None)

    found = store.read("catalogue.json")
    assert found is not None
    assert b"second" == found.content


def test_a_put_whose_answer_was_lost_is_not_taken_for_another_ones(s3: MakeStore) -> None:
    store = s3()
    store.write("catalogue.json", b"mine", before=None)

    store.write("catalogue.json", b"mine", before=None)


class Interrupted(ObjectStore):
    """Somebody else promotes another head between our look at the catalogue and our put, as a lost lock would let them."""

    between: Callable[[], object] | None = None

    def write(self, key: str, content: bytes, *, before: Stored | None) -> None:
        if key == "catalogue.json" and self.between:
            between, self.between = self.between, None
            between()
        super().write(key, content, before=before)


def test_two_publishers_cannot_lose_each_others_promotion_even_without_the_lock(
    s3: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock = s3(), Clock()
    publish(store)
    publish(store, "topic")
    mine = Interrupted(store._fs, f"{store._bucket}/{store._below}")
    mine.between = lambda: store.write("catalogue.json", b'{"heads": {}}', before=store.read("catalogue.json"))

    with pytest.raises(ConflictError):
        Lifecycle(Repository(mine), clock=clock, sleep=clock.sleep).promote("spam", 1)
    Lifecycle(Repository(mine), clock=clock, sleep=clock.sleep).promote("spam", 1)
    Lifecycle(Repository(store), clock=clock, sleep=clock.sleep).promote("topic", 1)

    assert {"spam", "topic"} == read_catalogue_of(store)[0].heads.keys()


def test_the_lock_names_its_holder_and_ends_with_its_lease(s3: MakeStore) -> None:
    clock = Clock()
    first, second = s3(clock=clock), s3(clock=clock, lock_seconds=0.0)
    waiting = second.locked()

    with first.locked(), pytest.raises(BusyError, match=r"locked by process \d+ since"):
        waiting.__enter__()
    with second.locked():
        pass

    dead = first.locked()
    dead.__enter__()
    clock.sleep(120)
    with second.locked():
        dead.__exit__(None, None, None)
        with pytest.raises(BusyError):
            s3(clock=clock, lock_seconds=0.0).locked().__enter__()


def test_a_bucket_that_is_not_there_is_told(s3: MakeStore) -> None:
    store = ObjectStore(s3()._fs, "no-such-bucket-anywhere/models")

    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket-anywhere'"):
        store.heads()
    with pytest.raises(StorageError, match="there is no bucket"):
        store.create("spam/1.state.json", b"")


def test_a_store_that_cannot_be_reached_is_told_as_such(s3: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    away = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, config_kwargs={"retries": {"max_attempts": 0}})

    with pytest.raises(StorageError, match="cannot be reached"):
        ObjectStore(away, "bucket/models").read("catalogue.json")


def test_a_disk_that_is_full_is_told_by_who_fetches(s3: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3()
    version = publish(store)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="cannot be written here: No space left"):
        store.fetch("spam", version, tmp_path)


def test_a_repository_is_opened_by_its_url(s3: MakeStore, tmp_path: Path) -> None:
    assert open_store(s3().url).url == s3().url
    assert str(tmp_path) == open_store(f"file://{tmp_path}").url
    assert [True, False, False] == [is_remote(one) for one in ("s3://b/p", "file:///p", tmp_path)]
    for wrong in ("ftp://host/models", "s3://"):
        with pytest.raises(RepositoryError, match="s3://bucket/prefix"):
            open_store(wrong)
    with pytest.raises(RepositoryError, match="needs a mirror"):
        Repository(s3()).path("spam", 1)
