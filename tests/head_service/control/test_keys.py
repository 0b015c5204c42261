import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clients import PermissionDenied, Unauthenticated
from head_service.control.errors import ControlError
from head_service.control.keys import Caller, KeysFile, add_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_tells_whose_it_is_and_what_it_may(path: Path):
    key = add_key(path, "ann", ("feedback",), None)

    caller = KeysFile(path).caller_of(f"Bearer {key}")

    assert Caller("ann", frozenset({"feedback"})) == caller
    caller.require("feedback")
    for scope in ("train", "admin"):
        with pytest.raises(PermissionDenied, match=scope):
            caller.require(scope)
    assert "ann" == caller.owner


def test_admin_may_all_and_sees_everybodys(path: Path):
    key = add_key(path, "root", ("admin",), None)
    caller = KeysFile(path).caller_of(f"Bearer {key}")

    caller.require("train")
    assert caller.owner is None


def test_the_file_has_no_key_and_is_its_owners_alone(path: Path):
    key = add_key(path, "ann", ("train",), None)

    assert key not in path.read_text()
    assert key.split("_", 2)[2] not in path.read_text()
    assert 0o600 == path.stat().st_mode & 0o777


def altered(key: str) -> str:
    """Another last letter."""
    return key[:-1] + ("x" if key[-1] != "x" else "y")


@pytest.mark.parametrize(
    "change",
    [lambda k: "", lambda k: k, lambda k: f"Basic {k}", lambda k: f"Bearer {altered(k)}", lambda k: f"Bearer {k}\n{k}"],
)
def test_anything_but_the_key_is_nobody(path: Path, change):
    key = add_key(path, "ann", ("train",), None)
    with pytest.raises(Unauthenticated) as caught:
        KeysFile(path).caller_of(change(key))
    assert key not in str(caught.value)


def test_a_key_ends_when_its_time_is_over(path: Path):
    now = datetime.now(UTC)
    key = add_key(path, "ann", ("train",), now + timedelta(days=1))
    clock = [now.timestamp()]
    keys = KeysFile(path, clock=lambda: clock[0])

    assert "ann" == keys.caller_of(f"Bearer {key}").name
    clock[0] += 86_401
    with pytest.raises(Unauthenticated):
        keys.caller_of(f"Bearer {key}")


def test_two_keys_of_a_name_are_valid_at_once_and_a_removed_one_is_not(path: Path):
    old = add_key(path, "ann", ("train",), None)
    keys = KeysFile(path)
    new = add_key(path, "ann", ("train",), None)
    assert {"ann"} == {keys.caller_of(f"Bearer {key}").name for key in (old, new)}

    content = json.loads(path.read_text())
    content["keys"] = content["keys"][1:]
    path.write_text(json.dumps(content))
    os.utime(path, (0, 0))

    keys.caller_of(f"Bearer {new}")
    with pytest.raises(Unauthenticated):
        keys.caller_of(f"Bearer {old}")


def test_a_file_that_breaks_later_changes_nothing(path: Path):
    key = add_key(path, "ann", ("train",), None)
    keys = KeysFile(path)
    path.write_text("{")
    os.utime(path, (0, 0))

    assert "ann" == keys.caller_of(f"Bearer {key}").name


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": [{"id": "x"}]}', '{"keys": [], "more": 1}'])
def test_a_broken_file_is_told_at_the_start(path: Path, content):
    path.write_text(content)
    with pytest.raises(ControlError, match="not a file of keys"):
        KeysFile(path)


def test_a_missing_file_and_a_bad_name_are_told(path: Path):
    with pytest.raises(ControlError, match="cannot be read"):
        KeysFile(path)
    with pytest.raises(ControlError, match="a key's name"):
        add_key(path, "Ann Other", ("train",), None)
