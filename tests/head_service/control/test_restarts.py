"""Real processes, killed and stopped. The long trial is `python -m perf.control_kills`."""

import json
import socket
from pathlib import Path

import pytest

from head_service.control import __main__ as command
from perf.control_kills import kill_rounds


@pytest.mark.timeout(180)
def test_what_was_acknowledged_is_there_once_after_kill_9_and_sigterm_ends_well():
    verdict = kill_rounds(3)

    assert [] == verdict.faults
    assert verdict.num_rows > 0
    assert verdict.num_runs == verdict.num_versions > 0


@pytest.fixture
def control(monkeypatch, caplog):
    """The command, in this process; its status and what it logged."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["control", *arguments])
        caplog.clear()
        return command.main(), caplog.text

    return run


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "say one of serve, worker, migrate, key"),
        (("serve", "--host", "0.0.0.0"), 2, "give --keys FILE, or --insecure"),
        (("worker", "--poll-seconds", "60"), 2, "poll_seconds is above half of lease_seconds"),
        (("worker", "--trainer", "no.such:thing"), 1, "there is no trainer"),
        (("serve", "--database", "nonsense"), 1, "the database cannot be used"),
        (("serve", "--keys", "no-such-file"), 1, "the keys in no-such-file cannot be read"),
    ],
)
def test_settings_that_make_no_sense_are_told_in_a_sentence(control, tmp_path: Path, monkeypatch, arguments, status, words):
    monkeypatch.chdir(tmp_path)

    found, said = control(*arguments)

    assert (status, True) == (found, words in said), said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_told_in_a_sentence(control, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, said = control("serve", "--home", str(tmp_path), "--port", port)

    assert (1, True) == (status, f"port {port} is taken" in said)


def test_migrating_twice_is_migrating_once(control, tmp_path: Path):
    assert [0, 0] == [control("migrate", "--home", str(tmp_path))[0] for _ in range(2)]


def test_a_key_is_printed_once_and_kept_as_a_hash(control, tmp_path: Path, capsys):
    path = tmp_path / "keys.json"
    status, _ = control("key", "--keys", str(path), "--name", "ann", "--scopes", "feedback,train", "--days", "30")
    printed = capsys.readouterr().out

    [entry] = json.loads(path.read_text())["keys"]
    assert 0 == status
    assert printed.startswith(f"tlk_{entry['id']}_")
    assert printed.strip() not in path.read_text()
    assert "--scopes takes" in control("key", "--keys", str(path), "--name", "ann", "--scopes", "all")[1]
