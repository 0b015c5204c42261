"""Real processes, killed and stopped. The long trial is `python -m perf.control_kills`."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from perf.control_kills import kill_rounds


def control(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "head_service.control", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.timeout(180)
def test_what_was_acknowledged_is_there_once_after_kill_9():
    verdict = kill_rounds(5)

    assert [] == verdict.faults
    assert verdict.num_rows > 0
    assert verdict.num_runs == verdict.num_versions > 0


def test_settings_that_make_no_sense_are_told_in_a_sentence(tmp_path: Path):
    for arguments, status, words in (
        ((), 2, "say one of serve, worker, migrate, key"),
        (("serve", "--host", "0.0.0.0"), 2, "give --keys FILE, or --insecure"),
        (("serve", "--nonsense", "1"), 2, "nonsense"),
        (
            ("worker", "--home", str(tmp_path), "--repository", str(tmp_path / "r"), "--trainer", "no.such:thing"),
            1,
            "there is no trainer",
        ),
        (("serve", "--database", "nonsense", "--home", str(tmp_path)), 1, "the database cannot be used"),
    ):
        ended = control(*arguments)
        assert (status, True) == (ended.returncode, words in ended.stderr), ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_told_in_a_sentence(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = control("serve", "--home", str(tmp_path), "--port", port)

    assert (1, True) == (ended.returncode, f"port {port} cannot be had" in ended.stderr)


def test_a_key_is_printed_once_and_kept_as_a_hash(tmp_path: Path):
    path = tmp_path / "keys.json"
    ended = control("key", "--keys", str(path), "--name", "ann", "--scopes", "feedback,train", "--days", "30")

    [entry] = json.loads(path.read_text())["keys"]
    assert 0 == ended.returncode
    assert ended.stdout.startswith(f"tlk_{entry['id']}_")
    assert ended.stdout.strip() not in path.read_text()
    assert "scopes takes" in control("key", "--keys", str(path), "--name", "ann", "--scopes", "all").stderr


def test_a_worker_without_work_ends_at_once_when_told_to(tmp_path: Path):
    home, repository = ("--home", str(tmp_path / "control")), ("--repository", str(tmp_path / "heads"))
    command = [sys.executable, "-m", "head_service.control", "worker", *home, *repository]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline().startswith("worker ")
    os.kill(worker.pid, signal.SIGTERM)

    assert 0 == worker.wait(30)
    worker.stdout.close()
