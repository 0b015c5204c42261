from pathlib import Path

import pytest

from clients.wire.catalogue import MANIFEST_PATH
from head_service.errors import ManifestError, TrunkMismatchError
from head_service.manifest import check_trunk, hash_files, read_manifest, verify
from tests.head_service.versions_on_disk import FINGERPRINT, OTHER_FINGERPRINT, manifest, write_version


@pytest.fixture
def version(tmp_path: Path) -> Path:
    write_version(tmp_path, manifest())
    return tmp_path


def test_an_untouched_version_is_what_its_manifest_says(version: Path) -> None:
    assert "spam" == verify(version).name
    assert {"saved_model.pb", "variables/variables.index"} == hash_files(version).keys()


def test_a_changed_file_is_named(version: Path) -> None:
    (version / "variables" / "variables.index").write_bytes(b"weightz")

    with pytest.raises(ManifestError, match=r"changed variables/variables\.index$"):
        verify(version)


def test_a_missing_file_is_named(version: Path) -> None:
    (version / "saved_model.pb").unlink()

    with pytest.raises(ManifestError, match=r"missing saved_model\.pb$"):
        verify(version)


def test_an_extra_file_is_named(version: Path) -> None:
    (version / "assets.extra" / "more").write_bytes(b"")

    with pytest.raises(ManifestError, match=r"unknown assets\.extra/more$"):
        verify(version)


def test_every_problem_is_told_at_once(version: Path) -> None:
    (version / "saved_model.pb").rename(version / "saved_model.pbtxt")
    (version / "variables" / "variables.index").write_bytes(b"")

    with pytest.raises(ManifestError, match=r"missing .*; unknown .*; changed "):
        verify(version)


def test_a_directory_without_a_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"there is no assets\.extra/trunkline\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "spam"}', b'{"schema": "trunkline.head/9"}', b"\xff" * 9])
def test_what_is_no_manifest_is_told(version: Path, content: bytes) -> None:
    (version / MANIFEST_PATH).write_bytes(content)

    with pytest.raises(ManifestError, match="is not a manifest"):
        verify(version)


def test_a_head_of_another_trunk_is_refused_with_both_fingerprints() -> None:
    check_trunk(manifest(), FINGERPRINT)

    with pytest.raises(TrunkMismatchError) as caught:
        check_trunk(manifest(), OTHER_FINGERPRINT)

    assert FINGERPRINT[:19] in str(caught.value)
    assert OTHER_FINGERPRINT[:19] in str(caught.value)
