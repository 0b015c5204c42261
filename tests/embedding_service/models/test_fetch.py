import hashlib
import zipfile

import pytest

from embedding_service.models.fetch import KNOWN_TRUNKS, REQUIRED_FILES, _known, unpack


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("multilingual-e5-small", "multilingual-e5-small"),
        ("intfloat/multilingual-e5-small", "multilingual-e5-small"),
    ],
)
def test_a_known_trunk_goes_by_its_name_with_or_without_its_owner(model, name):
    known = _known(model)

    assert known is not None
    assert known.name == name


@pytest.mark.parametrize(
    "model", ["intfloat/all-MiniLM-L6-v2", "intfloat/multilingual-e5-small@main", "multilingual-e5-base", ""]
)
def test_other_names_are_left_to_the_hub(model):
    assert _known(model) is None


@pytest.mark.parametrize("known", KNOWN_TRUNKS, ids=lambda known: known.name)
def test_whatever_a_package_brings_is_pinned(known):
    assert set(REQUIRED_FILES) <= set(known.hashes)
    pins = [*known.hashes.values(), *known.packed.values(), *(package.sha256 for package in known.packages)]
    assert all(len(pin) == 64 and set(pin) <= set("0123456789abcdef") for pin in pins)
    assert len(known.packed) <= 1


def test_what_a_killed_unpacking_left_is_removed_by_the_next_and_what_is_beside_it_stays(tmp_path):
    wheel, left, other = tmp_path / "a.whl", tmp_path / "trunks" / ".unpacking-killed" / "trunk", tmp_path / "trunks" / "other"
    for folder in (left, other):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"half")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("in/config.json", b"{}")

    unpack(wheel, "in/", tmp_path / "trunks" / "new", {"config.json": hashlib.sha256(b"{}").hexdigest()})

    assert {"new", "other"} == {path.name for path in (tmp_path / "trunks").iterdir()}
