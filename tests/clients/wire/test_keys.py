import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clients.wire import keys
from clients.wire.keys import SCOPES, Caller, KeysError, KeysFile, Scope, add_key, read_keys, revoke_keys
from clients.wire.rates import Rate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets" / "keys.json"


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_a_key_tells_whose_it_is_and_what_it_may(path: Path) -> None:
    key = add_key(path, "ann", ("classify",))

    caller = KeysFile(path).caller_of(bearer(key))

    assert Caller("ann", frozenset({"classify"})) == caller
    assert {"classify"} == {scope for scope in SCOPES if caller.may(scope)}


def test_admin_may_all(path: Path) -> None:
    key = add_key(path, "root", ("admin",))
    caller = KeysFile(path).caller_of(bearer(key))

    assert caller is not None
    assert caller.is_admin
    assert all(caller.may(scope) for scope in SCOPES)


@pytest.mark.parametrize(("given", "rate"), [((5.0, 20.0), Rate(5.0, 20.0)), ((5.0, None), Rate(5.0, 50.0))])
def test_a_quota_has_ten_seconds_of_burst_where_none_is_given(path: Path, given: tuple[float, float | None], rate: Rate) -> None:
    key = add_key(path, "ann", ("embed",), texts_per_second=given[0], burst=given[1])
    caller = KeysFile(path).caller_of(bearer(key))

    assert caller is not None
    assert rate == caller.rate


def test_the_file_has_no_key_and_is_its_owners_alone(path: Path) -> None:
    key = add_key(path, "ann", ("train",))
    add_key(path, "bob", ("train",))

    assert key.split("_", 2)[2] not in path.read_text()
    assert 0o600 == path.stat().st_mode & 0o777
    assert [path.name] == [found.name for found in path.parent.iterdir()]


def test_a_right_header_is_looked_up_and_a_wrong_one_is_never_kept(path: Path) -> None:
    key = add_key(path, "ann", ("train",))
    file = KeysFile(path)
    wrong = bearer(key[:-1] + ("a" if key[-1] != "a" else "b"))

    assert [None, None] == [file.caller_of(wrong) for _ in range(2)]
    assert not file._known
    assert file.caller_of(bearer(key)) is file.caller_of(bearer(key))
    assert {bearer(key)} == file._known.keys()


def test_what_is_remembered_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_CACHED_KEYS", 3)
    key = add_key(path, "bob", ("embed",))
    file = KeysFile(path)
    for spaces in range(1, 9):
        assert file.caller_of(b"Bearer" + b" " * spaces + key.encode()) is not None
        assert len(file._known) <= 3


@pytest.mark.parametrize("change", [b"", b"%s", b"Basic %s", b"Bearer %s\n", b"Bearer %s%s", b"Bearer  \xff%s"])
def test_anything_but_the_key_is_nobody(path: Path, change: bytes) -> None:
    key = add_key(path, "ann", ("train",)).encode()

    assert KeysFile(path).caller_of(change.replace(b"%s", key)) is None


def test_a_key_ends_when_its_time_is_over_also_when_it_is_remembered(path: Path) -> None:
    clock = [datetime.now(UTC).timestamp()]
    key = add_key(path, "ann", ("train",), datetime.fromtimestamp(clock[0], UTC) + timedelta(days=1))
    file = KeysFile(path, clock=lambda: clock[0])

    assert file.caller_of(bearer(key)) is not None
    clock[0] += 86_401
    assert file.caller_of(bearer(key)) is None


def test_two_keys_of_a_name_are_valid_at_once_and_a_revoked_one_ends_within_a_second(path: Path) -> None:
    clock = [1_000.0]
    old = add_key(path, "ann", ("train",))
    file = KeysFile(path, clock=lambda: clock[0])
    new = add_key(path, "ann", ("train",))
    clock[0] += 1
    assert file.caller_of(bearer(new)) == file.caller_of(bearer(old)) is not None

    assert 1 == revoke_keys(path, read_keys(path)[0].id)
    clock[0] += 0.5
    assert file.caller_of(bearer(old)) is not None
    clock[0] += 0.5
    assert file.caller_of(bearer(old)) is None
    assert file.caller_of(bearer(new)) is not None


def test_a_clock_that_is_set_back_does_not_keep_a_revoked_key(path: Path) -> None:
    clock = [1_000.0]
    key = add_key(path, "ann", ("train",))
    file = KeysFile(path, clock=lambda: clock[0])
    revoke_keys(path, "ann")
    clock[0] = 10.0

    assert file.caller_of(bearer(key)) is None


def test_revoking_a_name_takes_all_its_keys_and_no_other(path: Path) -> None:
    for name in ("ann", "bob", "ann"):
        add_key(path, name, ("train",))

    assert [2, 0] == [revoke_keys(path, "ann") for _ in range(2)]
    assert ["bob"] == [entry.name for entry in read_keys(path)]


def test_a_file_that_breaks_or_goes_later_changes_nothing(path: Path) -> None:
    key = add_key(path, "ann", ("train",))
    file = KeysFile(path, look_seconds=0)
    path.write_text("{")
    os.utime(path, (0, 0))
    assert file.caller_of(bearer(key)) is not None

    path.unlink()
    assert file.caller_of(bearer(key)) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": [{"id": "x"}]}', '{"keys": [], "more": 1}'])
def test_a_broken_file_is_told_at_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(KeysError, match="not a file of keys"):
        KeysFile(path)


def test_a_missing_file_is_told(path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        KeysFile(path)


@pytest.mark.parametrize(
    ("name", "scopes", "quota", "message"),
    [
        ("Ann Other", ("train",), None, "a key's name"),
        ("ann", ("fly",), None, "a key's scopes"),
        ("ann", ("train",), 0.0, "a key's quota"),
    ],
)
def test_a_key_that_cannot_be_is_not_made(path: Path, name: str, scopes: tuple[Scope, ...], quota: float, message: str) -> None:
    with pytest.raises(KeysError, match=message):
        add_key(path, name, scopes, texts_per_second=quota)
    assert not path.exists()


def test_files_of_older_services_are_read(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = add_key(path, "ann", ("feedback", "train"))
    entry = {**json.loads(path.read_text())["keys"][0], "expires": None}
    path.write_text(json.dumps({"keys": [entry]}))

    assert KeysFile(path).caller_of(bearer(key)) is not None
