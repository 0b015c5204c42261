"""Version directories without a model in them: all that the control plane looks at."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from clients.wire.catalogue import MANIFEST_PATH, Manifest, TrunkRef, encode
from head_service.manifest import hash_files

FINGERPRINT = "sha256:" + "1" * 64
OTHER_FINGERPRINT = "sha256:" + "2" * 64


def manifest(name: str = "spam", version: int = 1) -> Manifest:
    trunk = TrunkRef("tiny", FINGERPRINT, "fake")
    return Manifest(name=name, version=version, labels=("ham", "spam"), width=4, trunk=trunk)


def write_version(directory: Path, described: Manifest) -> None:
    (directory / "variables").mkdir()
    (directory / "assets.extra").mkdir()
    (directory / "saved_model.pb").write_bytes(b"a graph")
    (directory / "variables" / "variables.index").write_bytes(b"weights")
    whole = msgspec.structs.replace(described, files=hash_files(directory))
    (directory / MANIFEST_PATH).write_bytes(encode(whole))


def exporter(name: str = "spam") -> Callable[[Path, int], None]:
    return lambda directory, version: write_version(directory, manifest(name, version))
