"""Where a repository lies: small files by key, versions that appear whole or not at all, and one lock.

A key is a relative POSIX path below the repository, such as `catalogue.json` or `spam/3.state.json`. `LocalStore` is a directory;
`head_service.object_store` is S3.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from head_service.errors import BusyError, ConflictError, RepositoryError, StorageError, StorageFullError
from head_service.manifest import hash_files

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
BUNDLE_PREFIX: Final = "bundle-"
"""What names of bundles begin with, and names of heads do not."""

STALE_SECONDS: Final = 3_600.0
LOCK_SECONDS: Final = 15.0
TEMPORARY: Final = ".tmp-"
_LOCK: Final = ".lock"
_LOCK_POLL_SECONDS: Final = 0.02
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_CLOSED: Final = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Stored:
    """A small file as it was read. *tag* changes with the content."""

    content: bytes
    tag: str


class Store(Protocol):
    """All that a repository does to what lies below it. Every method may raise StorageError."""

    @property
    def url(self) -> str:
        """Where it lies, for a person."""
        ...

    def heads(self) -> list[str]:
        """The names that have a folder, sorted."""
        ...

    def versions(self, name: str) -> list[int]:
        """The versions of head *name* that are whole, ascending."""
        ...

    def files(self, name: str) -> list[str]:
        """The names of the small files in head *name*'s folder, sorted."""
        ...

    def read(self, key: str) -> Stored | None:
        """What lies at *key*; None when nothing does."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Put *content* at *key* unless something is there; whether it was put. Atomic between processes."""
        ...

    def write(self, key: str, content: bytes, *, before: Stored | None) -> None:
        """Replace *before*, which was read (None: nothing was there), by *content*. Durable when it returns.

        Raises:
            ConflictError: something else is there now.
        """
        ...

    def delete(self, key: str) -> None:
        """Have nothing at *key*."""
        ...

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """An empty local directory for a version of head *name* to be written into; gone with the context."""
        ...

    def prepare(self, name: str, version: int, staged: Path) -> None:
        """Bring what lies in *staged* as far as it can be without being a version: the slow part of publishing."""
        ...

    def publish(self, name: str, version: int, staged: Path) -> None:
        """Make what lies in *staged*, and was prepared, a version, all of it at once.

        Raises:
            ConflictError: that version is there already.
        """
        ...

    def discard(self, name: str, version: int) -> None:
        """Undo `prepare`; nothing happens to a version."""
        ...

    def hashes(self, name: str, version: int) -> dict[str, str]:
        """See `head_service.manifest.hash_files`."""
        ...

    def fetch(self, name: str, version: int, directory: Path) -> None:
        """Copy a version's files into the empty local *directory*, unchecked."""
        ...

    def remove(self, name: str, version: int) -> None:
        """Have no such version: it is gone as a version before the first of its files goes."""
        ...

    def sweep(self, name: str) -> None:
        """Remove what publishers of head *name* that died over `STALE_SECONDS` ago left behind."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """Hold the repository's lock, which is for short work only.

        Raises:
            BusyError: somebody held it too long; the message names the holder.
        """
        ...


class LocalStore:
    """A directory. *lock_seconds*: how long its lock is waited for."""

    def __init__(self, root: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self.root = root
        self._lock_seconds = lock_seconds

    @property
    def url(self) -> str:
        """See `Store`, like all others."""
        return str(self.root)

    def heads(self) -> list[str]:
        """See `Store`."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        return sorted(path.name for path in found if NAME.fullmatch(path.name) and path.is_dir())

    def versions(self, name: str) -> list[int]:
        """See `Store`."""
        folder = self.root / name
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(path.name) for path in found if is_version(path.name) and path.is_dir())

    def files(self, name: str) -> list[str]:
        """See `Store`."""
        folder = self.root / name
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(path.name for path in found if path.is_file())

    def read(self, key: str) -> Stored | None:
        """See `Store`."""
        try:
            content = (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._told(error) from error
        return Stored(content, hashlib.sha256(content).hexdigest())

    def create(self, key: str, content: bytes) -> bool:
        """See `Store`."""
        path = self.root / key
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        with self._telling():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                sync(temporary)
                # A link fails where a rename would replace.
                path.hardlink_to(temporary)
                sync(path.parent)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def write(self, key: str, content: bytes, *, before: Stored | None) -> None:
        """See `Store`. Two writers are kept apart by the lock, which whoever changes an existing file holds."""
        found = self.read(key)
        if (found and found.tag) != (before and before.tag):
            raise ConflictError(f"{key} was changed by somebody else meanwhile; look again and repeat the command")
        with self._telling():
            (self.root / key).parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.root / key, content)

    def delete(self, key: str) -> None:
        """See `Store`."""
        path = self.root / key
        with self._telling(), contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync(path.parent)

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """See `Store`. It lies beside the versions, so that publishing is a rename."""
        staged = self.root / name / f"{TEMPORARY}{uuid.uuid4().hex}"
        with self._telling():
            staged.mkdir(parents=True)
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def prepare(self, name: str, version: int, staged: Path) -> None:
        """See `Store`."""
        with self._telling():
            sync_tree(staged)

    def discard(self, name: str, version: int) -> None:
        """See `Store`: what is staged goes with its context."""

    def publish(self, name: str, version: int, staged: Path) -> None:
        """See `Store`."""
        target = self.root / name / str(version)
        with self._telling():
            try:
                staged.rename(target)
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise ConflictError(f"{name} has a version {version} already") from None
                raise
            sync(target.parent)

    def hashes(self, name: str, version: int) -> dict[str, str]:
        """See `Store`."""
        with self._telling():
            return hash_files(self.root / name / str(version))

    def fetch(self, name: str, version: int, directory: Path) -> None:
        """See `Store`."""
        with self._telling():
            shutil.copytree(self.root / name / str(version), directory, dirs_exist_ok=True)

    def remove(self, name: str, version: int) -> None:
        """See `Store`."""
        folder = self.root / name
        doomed = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
        with self._telling(), contextlib.suppress(FileNotFoundError):
            (folder / str(version)).rename(doomed)
            sync(folder)
            shutil.rmtree(doomed)

    def sweep(self, name: str) -> None:
        """See `Store`."""
        for path in (self.root / name).glob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See `Store`. The system lets the lock go with the process that held it, however it ends."""
        with self._telling():
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            self._acquire(handle)
            yield
        finally:
            os.close(handle)

    def _acquire(self, handle: int) -> None:
        give_up = time.monotonic() + self._lock_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise BusyError(busy(self.url, os.pread(handle, 200, 0).decode(errors="replace"))) from None
                # flock has no timeout of its own, and signals would be the process's business.
                time.sleep(_LOCK_POLL_SECONDS)
            else:
                break
        # On a full disk the lock holds all the same; only the holder's name is missing.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, holder().encode(), 0)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What the system says of this store, in a sentence."""
        try:
            yield
        except OSError as error:
            raise self._told(error) from error

    def _told(self, error: OSError) -> StorageError:
        if error.errno in _FULL:
            return StorageFullError(f"there is no room left below {self.root}; make some and try again; what is live is whole")
        if error.errno in _CLOSED:
            return StorageError(f"{self.root} cannot be written ({error.strerror}); what is live stays live")
        return StorageError(f"{error.filename or self.root}: {error.strerror or error}")


def holder() -> str:
    """Who holds a lock, for whoever waits for it."""
    return f"process {os.getpid()} since {datetime.now(UTC).isoformat(timespec='seconds')}"


def busy(url: str, held_by: str) -> str:
    """The sentence of a `BusyError`."""
    return f"the repository {url} is locked by {held_by.strip() or 'another process'}; wait for it to end, or end it"


def open_store(location: str | Path) -> Store:
    """The store at *location*: a directory, or s3://bucket/prefix.

    Raises:
        RepositoryError: another scheme, or the packages that S3 takes are missing.
    """
    scheme, separator, rest = str(location).partition("://")
    if not separator:
        return LocalStore(Path(location))
    if scheme == "file":
        return LocalStore(Path(rest))
    if scheme != "s3":
        raise RepositoryError(f"a repository is a directory or s3://bucket/prefix, not {scheme}://")
    from head_service.object_store import open_s3  # noqa: PLC0415 (an extra)

    return open_s3(rest)


def is_remote(location: str | Path) -> bool:
    """Whether a head server needs a mirror of the repository at *location*."""
    scheme, separator, _ = str(location).partition("://")
    return bool(separator) and scheme != "file"


def is_bundle(name: str) -> bool:
    """Whether a bundle bears that *name*, and no head."""
    return name.startswith(BUNDLE_PREFIX)


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
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


Clock = Callable[[], float]
"""Seconds since the epoch."""
