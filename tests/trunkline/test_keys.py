from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clients import InvalidRequest
from clients.wire.keys import KeysFile
from trunkline.cli import app


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def keys(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments, "--file", str(path)])


def test_a_key_is_shown_once_listed_without_its_secret_and_revoked(path: Path) -> None:
    made = keys(path, "add", "ann", "--scopes", "classify,embed", "--days", "30", "--texts-per-second", "5")
    key = made.stdout.strip()
    caller = KeysFile(path).caller_of(f"Bearer {key}".encode())
    listed = keys(path, "list")

    assert caller is not None
    assert ("ann", {"classify", "embed"}, (5.0, 50.0)) == (caller.name, caller.scopes, caller.rate)
    assert "only time" in made.stderr
    assert "ann" in listed.stdout
    assert key.split("_")[1] in listed.stdout
    assert key.split("_", 2)[2] not in listed.stdout + path.read_text()
    assert "1 revoked" in keys(path, "revoke", key.split("_")[1]).stdout
    assert KeysFile(path).caller_of(f"Bearer {key}".encode()) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "ann", "--scopes", "fly"), "--scopes takes some of"),
        (("add", "Ann Other", "--scopes", "embed"), "a key's name"),
        (("add", "ann", "--scopes", "embed", "--burst", "3"), "--burst belongs"),
        (("revoke", "ann"), "cannot be read"),
        (("list",), "cannot be read"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(path: Path, arguments: tuple[str, ...], message: str) -> None:
    failed = keys(path, *arguments).exception

    assert isinstance(failed, InvalidRequest)
    assert message in failed.message
    assert not path.exists()


def test_revoking_nobody_is_told(path: Path) -> None:
    keys(path, "add", "ann", "--scopes", "embed")
    failed = keys(path, "revoke", "bob").exception

    assert isinstance(failed, InvalidRequest)
    assert "no key of that name" in failed.message
