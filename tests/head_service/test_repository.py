import os
import time
from pathlib import Path

import pytest

from head_service.errors import ManifestError, RepositoryError, TrunkMismatchError
from head_service.manifest import verify
from head_service.repository import STALE_SECONDS, Repository, is_version, replace_file
from tests.head_service.versions_on_disk import FINGERPRINT, OTHER_FINGERPRINT, exporter


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "heads")


def visible(repository: Repository, name: str = "spam") -> list[str]:
    return sorted(path.name for path in (repository.root / name).iterdir())


def test_versions_count_up_from_one(repository: Repository) -> None:
    assert [] == repository.versions("spam")

    published = [repository.publish("spam", exporter(), fingerprint=FINGERPRINT) for _ in range(3)]

    assert [1, 2, 3] == published == repository.versions("spam")
    assert 3 == verify(repository.path("spam", 3)).version


def test_versions_sort_as_numbers_and_continue_after_the_highest(repository: Repository) -> None:
    for number in (9, 10):
        repository.path("spam", number).mkdir(parents=True)

    assert 11 == repository.publish("spam", exporter(), fingerprint=FINGERPRINT)
    assert [9, 10, 11] == repository.versions("spam")


def test_heads_count_apart(repository: Repository) -> None:
    repository.publish("spam", exporter(), fingerprint=FINGERPRINT)

    assert 1 == repository.publish("topic", exporter("topic"), fingerprint=FINGERPRINT)


def test_a_head_of_another_trunk_is_refused_and_nothing_is_published(repository: Repository) -> None:
    with pytest.raises(TrunkMismatchError):
        repository.publish("spam", exporter(), fingerprint=OTHER_FINGERPRINT)

    assert [] == visible(repository)


def test_an_export_that_fails_leaves_nothing_behind(repository: Repository) -> None:
    def export(directory: Path, version: int) -> None:
        (directory / "saved_model.pb").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        repository.publish("spam", export, fingerprint=FINGERPRINT)

    assert [] == visible(repository)


def test_an_export_that_is_not_its_manifest_is_not_published(repository: Repository) -> None:
    def export(directory: Path, version: int) -> None:
        exporter()(directory, version)
        (directory / "saved_model.pb").write_bytes(b"other")

    with pytest.raises(ManifestError, match=r"saved_model\.pb"):
        repository.publish("spam", export, fingerprint=FINGERPRINT)

    assert [] == visible(repository)


def test_a_version_being_written_is_not_seen(repository: Repository) -> None:
    seen: list[list[int]] = []

    def export(directory: Path, version: int) -> None:
        exporter()(directory, version)
        seen.append(repository.versions("spam"))

    repository.publish("spam", export, fingerprint=FINGERPRINT)

    assert [[]] == seen
    assert ["1"] == visible(repository)


@pytest.mark.parametrize("name", ["0", "01", "-1", "+1", "1.0", "1 ", "", "²", "٣", ".tmp-1", "latest", "1e3"])
def test_odd_directory_names_are_no_versions(name: str) -> None:
    assert not is_version(name)


def test_odd_directories_beside_versions_are_left_alone(repository: Repository) -> None:
    repository.publish("spam", exporter(), fingerprint=FINGERPRINT)
    (repository.root / "spam" / "007").mkdir()
    (repository.root / "spam" / "notes").mkdir()

    assert [1] == repository.versions("spam")
    assert 2 == repository.publish("spam", exporter(), fingerprint=FINGERPRINT)
    assert ["007", "1", "2", "notes"] == visible(repository)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "Spam", "-spam", ".tmp", "a b", "a\n", "é", "x" * 65])
def test_names_that_cannot_be_a_heads_are_refused(repository: Repository, name: str) -> None:
    with pytest.raises(RepositoryError, match="cannot name a head"):
        repository.publish(name, exporter(), fingerprint=FINGERPRINT)

    assert not repository.root.exists()


def test_what_a_crash_left_is_invisible_and_goes_once_it_is_old(repository: Repository) -> None:
    repository.publish("spam", exporter(), fingerprint=FINGERPRINT)
    fresh, stale = (repository.root / "spam" / name for name in (".tmp-fresh", ".tmp-stale"))
    for left in (fresh, stale):
        left.mkdir()
    long_ago = time.time() - STALE_SECONDS - 60
    os.utime(stale, (long_ago, long_ago))

    assert [1] == repository.versions("spam")
    assert 2 == repository.publish("spam", exporter(), fingerprint=FINGERPRINT)

    assert [".tmp-fresh", "1", "2"] == visible(repository)


def test_a_replaced_file_is_the_new_one_and_alone(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", b"old")
    replace_file(tmp_path / "file", b"new")

    assert ["file"] == [path.name for path in tmp_path.iterdir()]
    assert b"new" == (tmp_path / "file").read_bytes()
