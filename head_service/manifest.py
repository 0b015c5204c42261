"""Hold a version directory to its manifest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from clients.wire.catalogue import MANIFEST_PATH, Manifest, decode_manifest
from head_service.errors import ManifestError, TrunkMismatchError

WARMUP_PATH: Final = "assets.extra/tf_serving_warmup_requests"
"""A TFRecord of PredictionLog that a server replays before a version is AVAILABLE (TensorFlow Serving, SavedModel warmup)."""


def hash_files(directory: Path) -> dict[str, str]:
    """Each file below *directory* but the manifest, by relative POSIX path, to its "sha256:" digest."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    named = {path.relative_to(directory).as_posix(): path for path in paths}
    return {name: _hash(path) for name, path in named.items() if name != MANIFEST_PATH}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the version in *directory*.

    Raises:
        ManifestError: there is none, or it is not one.
    """
    path = directory / MANIFEST_PATH
    return parse_manifest(path.read_bytes() if path.exists() else None)


def parse_manifest(content: bytes | None) -> Manifest:
    """The manifest that *content* is; None stands for a file that is not there.

    Raises:
        ManifestError: it is not one.
    """
    if content is None:
        raise ManifestError(f"there is no {MANIFEST_PATH}")
    try:
        return decode_manifest(content)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ManifestError(f"{MANIFEST_PATH} is not a manifest: {error}") from None


def verify(directory: Path) -> Manifest:
    """The manifest of *directory*, once every file is there, is what was exported, and no other lies beside them.

    Raises:
        ManifestError: they are not; the message names the files.
    """
    manifest = read_manifest(directory)
    check_files(manifest, hash_files(directory))
    return manifest


def check_files(manifest: Manifest, found: Mapping[str, str]) -> None:
    """Hold files, by relative path to their digests as `hash_files` gives them, to *manifest*.

    Raises:
        ManifestError: they are not those; the message names them.
    """
    missing = sorted(manifest.files.keys() - found.keys())
    extra = sorted(found.keys() - manifest.files.keys())
    changed = sorted(name for name, digest in manifest.files.items() if found.get(name, digest) != digest)
    problems = [
        f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", extra), ("changed", changed)) if names
    ]
    if problems:
        raise ManifestError(f"the files are not those of the manifest: {'; '.join(problems)}")


def check_trunk(manifest: Manifest, fingerprint: str) -> None:
    """Refuse a head of another trunk.

    Raises:
        TrunkMismatchError: *fingerprint* is not the one it was trained on.
    """
    if manifest.trunk.fingerprint != fingerprint:
        raise TrunkMismatchError(
            f"head {manifest.name!r} version {manifest.version} was trained on trunk {manifest.trunk.name!r} "
            f"({manifest.trunk.fingerprint[:19]}…), and this trunk is {fingerprint[:19]}…; train it again on this one"
        )
