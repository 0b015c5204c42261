"""The repository: one folder a head, one numbered folder a version, the catalogue and models.config beside them.

A version appears by one rename of a folder that is complete and synced, so nobody ever sees half of one. TensorFlow Serving
ignores names that are not numbers, so a folder being written may lie where it will be.
"""

import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from head_service.errors import RepositoryError
from head_service.manifest import check_trunk, verify

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
STALE_SECONDS: Final = 3_600.0
_TEMPORARY: Final = ".tmp-"


class Repository:
    """The head versions below *root*. Safe between processes: whoever publishes holds the lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self, name: str) -> list[int]:
        """The published versions of head *name*, ascending."""
        folder = self._folder(name)
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(path.name) for path in found if is_version(path.name))

    def path(self, name: str, version: int) -> Path:
        """Where a version lies, or would."""
        return self._folder(name) / str(version)

    def publish(self, name: str, export: Callable[[Path, int], None], *, fingerprint: str) -> int:
        """Make the next version of *name* exist; its number.

        *export* writes the version, whose number it is given, into an empty directory.

        Raises:
            ManifestError, TrunkMismatchError: what it wrote is not in order, or for another trunk than *fingerprint*.
            RepositoryError: the name cannot be a head's.
        """
        folder = self._folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        with self.locked():
            self._sweep(folder)
            version = max(self.versions(name), default=0) + 1
            staged = folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
            staged.mkdir()
            try:
                export(staged, version)
                check_trunk(verify(staged), fingerprint)
                sync_tree(staged)
                staged.rename(folder / str(version))
                sync(folder)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
        return version

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the repository's lock; waits for whoever has it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _folder(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise RepositoryError(f"{name!r} cannot name a head: use 1 to 64 of a-z, 0-9, _ and -, a letter or digit first")
        return self.root / name

    def _sweep(self, folder: Path) -> None:
        """Remove what a publisher that died left behind."""
        for path in folder.glob(f"{_TEMPORARY}*"):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def is_version(name: str) -> bool:
    """Whether a directory of that *name* is a version: a positive decimal number, written the one way."""
    return name.isascii() and name.isdecimal() and not name.startswith("0")


def sync(path: Path) -> None:
    """Have the system write *path*, a file or a directory, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """`sync` everything below *directory*, and itself."""
    for path in (*directory.rglob("*"), directory):
        sync(path)


def replace_file(path: Path, content: bytes) -> None:
    """Put *content* at *path* so that a reader sees the old or the new, and a crash leaves one of them."""
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
