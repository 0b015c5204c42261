import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from perf.peers.environment import TORCH, CannotInstall, Ended, install_commands, python_of, reason_of, run_command

PEERS = ["infinity", "litserve", "sentence_transformers"]


class Commands:
    """Keeps the commands it is given; those that hold *fails_at* fail with *stderr*."""

    def __init__(self, fails_at: str = "", stderr: str = "") -> None:
        self._fails_at, self._stderr = fails_at, stderr
        self.run: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str]) -> Ended:
        self.run.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True, exist_ok=True)
        return Ended(1, self._stderr) if self._fails_at in command else Ended(0, "")


@pytest.mark.parametrize("peer", PEERS)
def test_torch_is_installed_first_and_alone_and_nothing_else_chooses_another(peer: str, tmp_path: Path) -> None:
    commands = Commands()
    python_of(peer, tmp_path, lambda _: None, commands)

    _, torch, rest = commands.run
    assert TORCH == torch[-1]
    assert "--no-deps" in rest
    pins = Path(rest[-1]).read_text().splitlines()[1:]
    assert all("==" in pin for pin in pins)
    assert not any(pin.startswith(("torch==", "nvidia", "triton")) for pin in pins)


def test_an_environment_that_is_there_is_used_again(tmp_path: Path) -> None:
    first, second = Commands(), Commands()
    python = python_of("litserve", tmp_path, lambda _: None, first)

    assert python == python_of("litserve", tmp_path, lambda _: None, second)
    assert [] == second.run


def test_a_peer_that_cannot_be_installed_says_so_in_one_line_and_is_tried_again_the_next_time(tmp_path: Path) -> None:
    stderr = "WARNING: slow\nERROR: Could not find a version\nERROR: No matching distribution found for it\n\nnotice: old pip\n"
    failing, working = Commands(TORCH, stderr), Commands()

    with pytest.raises(CannotInstall) as told:
        python_of("infinity", tmp_path, lambda _: None, failing)
    assert "infinity cannot be installed: No matching distribution found for it" == str(told.value)

    python_of("infinity", tmp_path, lambda _: None, working)
    assert 3 == len(working.run)


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("ERROR: first\nERROR: second", "second"),
        ("Traceback\nOSError: No space left on device\n", "OSError: No space left on device"),
        ("", "it said nothing"),
        ("x" * 5_000, "x" * 300),
    ],
)
def test_a_reason_is_one_short_line(stderr: str, expected: str) -> None:
    assert expected == reason_of(stderr)


def test_a_real_command_that_fails_is_told_by_its_own_words() -> None:
    ended = run_command([sys.executable, "-c", "raise SystemExit('ERROR: no')"])

    assert ended.status
    assert "no" == reason_of(ended.stderr)


def test_a_half_made_environment_is_begun_anew(tmp_path: Path) -> None:
    assert "--clear" in install_commands(tmp_path, tmp_path / "pins.txt")[0]


def test_an_environment_that_needs_no_torch_goes_without(tmp_path: Path) -> None:
    commands = Commands()
    python_of("keras_hub", tmp_path, lambda _: None, commands)

    _, rest = commands.run
    assert "--no-deps" in rest
    pins = Path(rest[-1]).read_text().splitlines()[1:]
    assert all("==" in pin for pin in pins)
    assert not any(pin.startswith(("torch", "tensorflow-text")) for pin in pins)
