"""An environment of its own for each peer: a venv in the cache, torch first, then the peer with all it needs pinned.

pip is used as it is configured on this machine. Where that takes torch with CUDA, it takes several gigabytes: let pip find
a CPU build instead (its option `find-links`, say) where that matters.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedding_service.models.fetch import locked

TORCH: Final = "torch==2.13.0"
"""Installed first and alone, so that nothing else can choose another."""

WITHOUT_TORCH: Final = frozenset({"keras_hub"})
"""Environments that do without."""

INSTALL_TIMEOUT_SECONDS: Final = 1_800.0
_PINS: Final = Path(__file__).parent
_READY: Final = "installed"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    stderr: str


Run = Callable[[Sequence[str]], Ended]
"""Runs a command to its end."""


class CannotInstall(Exception):
    """A peer's environment cannot be made; the message is one line that says why."""


def run_command(command: Sequence[str]) -> Ended:
    """Run *command*; one that takes too long is ended and counts as failed."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Ended(1, f"ERROR: not done in {INSTALL_TIMEOUT_SECONDS:.0f} s")
    return Ended(ended.returncode, ended.stderr)


def python_of(peer: str, cache_dir: Path, say: Callable[[str], None], run: Run = run_command) -> Path:
    """The Python of *peer*'s environment, which is made at the first call and again when its pins change.

    Raises:
        CannotInstall: and why, in one line.
    """
    pins = _PINS / f"{peer}.txt"
    folder = cache_dir / "peers" / f"{peer}-{_identity(pins)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    with locked(cache_dir / "peers.lock"):
        if not (folder / _READY).is_file():
            say(f"installing {peer} (a gigabyte of packages) for the first time")
            for command in install_commands(folder, pins):
                _checked(peer, run(command))
            (folder / _READY).touch()
    return python


def install_commands(folder: Path, pins: Path) -> list[list[str]]:
    """What makes an environment in *folder*, in order. A half-made one is begun anew."""
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        *([] if pins.stem in WITHOUT_TORCH else [[*pip, TORCH]]),
        [*pip, "--no-deps", "-r", str(pins)],
    ]


def reason_of(stderr: str) -> str:
    """The line of *stderr* that says what went wrong: the last of pip's errors, else its last line at all."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it said nothing"])[-1][:300]


def _checked(peer: str, ended: Ended) -> None:
    if ended.status:
        raise CannotInstall(f"{peer} cannot be installed: {reason_of(ended.stderr)}")


def _identity(pins: Path) -> str:
    words = f"{TORCH} {sys.version_info[:2]} {pins.read_text()}"
    return hashlib.sha256(words.encode()).hexdigest()[:12]
