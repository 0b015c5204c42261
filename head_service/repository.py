"""The repository: one folder a head, one numbered folder a version, the catalogue and models.config beside them.

A version appears by one rename of a folder that is complete and synced, so nobody ever sees half of one; in an object store it
appears with its manifest, which is put last. TensorFlow Serving ignores names that are not numbers, so a folder being written
may lie where it will be.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from clients.wire.catalogue import MANIFEST_PATH, Manifest
from head_service.errors import ManifestError, RepositoryError
from head_service.manifest import check_files, check_trunk, parse_manifest, verify
from head_service.states import Mark, decode_mark, mark_name, marked_version
from head_service.store import (
    BUNDLE_PREFIX,
    NAME,
    STALE_SECONDS,
    LocalStore,
    Store,
    is_bundle,
    is_version,
    open_store,
    replace_file,
    sync,
    sync_tree,
)

__all__ = ["NAME", "STALE_SECONDS", "Export", "Repository", "is_version", "replace_file", "sync", "sync_tree"]

Export = Callable[[Path, int], None]
_RESERVATIONS: Final = 100


def _nothing() -> None:
    """Prevents nothing."""


class Repository:
    """The head versions at *location*: a directory, s3://bucket/prefix, or a store. Safe between processes."""

    def __init__(self, location: str | Path | Store) -> None:
        self.store: Store = open_store(location) if isinstance(location, (str, Path)) else location

    @property
    def root(self) -> Path:
        """The directory it is.

        Raises:
            RepositoryError: it lies in an object store.
        """
        if not self.is_local:
            raise RepositoryError(f"{self.store.url} is not a directory; a head server needs a mirror of it")
        return Path(self.store.url)

    @property
    def is_local(self) -> bool:
        """Whether a head server can read it as it is."""
        return isinstance(self.store, LocalStore) or "://" not in self.store.url

    def heads(self) -> list[str]:
        """The names that have a folder, sorted; one may have no version."""
        return self.store.heads()

    def versions(self, name: str) -> list[int]:
        """The published versions of head *name*, ascending."""
        return self.store.versions(check_name(name))

    def path(self, name: str, version: int) -> Path:
        """Where a version lies, or would, in a directory."""
        return self.root / check_name(name) / str(version)

    def manifest(self, name: str, version: int) -> Manifest:
        """What a version says of itself, its files not looked at.

        Raises:
            ManifestError: it says nothing, or not that it is this version.
            RepositoryError: it is not there.
        """
        stored = self.store.read(f"{check_name(name)}/{version}/{MANIFEST_PATH}")
        if stored is None and version not in (known := self.versions(name)):
            raise no_version(name, version, known)
        manifest = parse_manifest(stored.content if stored else None)
        _check_number(manifest, name, version)
        return manifest

    def verify(self, name: str, version: int) -> Manifest:
        """The manifest of a version, once its files are held to it; see `head_service.manifest.verify`."""
        manifest = self.manifest(name, version)
        check_files(manifest, self.store.hashes(name, version))
        return manifest

    def fetch(self, name: str, version: int, directory: Path) -> None:
        """Copy a version into the empty local *directory*.

        Raises:
            ManifestError: what came is not what its manifest says, or not this version.
        """
        self.store.fetch(name, version, directory)
        _check_number(verify(directory), name, version)

    @contextlib.contextmanager
    def on_disk(self, name: str, version: int) -> Iterator[Path]:
        """A local directory of a version's files: where it lies, or a copy out of an object store, gone with the context.

        Raises:
            ManifestError: see `fetch`.
        """
        if self.is_local:
            yield self.path(name, version)
            return
        with self.store.staging(check_name(name)) as copy:
            self.fetch(name, version, copy)
            yield copy

    def publish(self, name: str, export: Export, *, fingerprint: str, guard: Callable[[], None] = _nothing) -> int:
        """Make the next version of *name* exist; its number.

        The number is reserved first, so nobody else waits while *export* runs.

        Args:
            name: the head's.
            export: writes the version, whose number it is given, into an empty local directory.
            fingerprint: of the trunk that the head is for.
            guard: called under the repository's lock right before the version appears; what it raises prevents that.

        Raises:
            ManifestError, TrunkMismatchError: what it wrote is not in order, or for another trunk than *fingerprint*.
            RepositoryError: the name cannot be a head's, or the store takes no more.
        """
        if is_bundle(name):
            raise RepositoryError(f"{name!r} cannot name a head: {BUNDLE_PREFIX} begins the names of bundles; choose another")
        return self._publish(name, export, fingerprint, guard)

    def publish_bundle(self, name: str, export: Export, *, fingerprint: str, guard: Callable[[], None] = _nothing) -> int:
        """`publish` for a bundle; see `head_service.bundling`."""
        if not is_bundle(name):
            raise RepositoryError(f"{name!r} cannot name a bundle: its name begins with {BUNDLE_PREFIX}")
        return self._publish(name, export, fingerprint, guard)

    def _publish(self, name: str, export: Export, fingerprint: str, guard: Callable[[], None]) -> int:
        self._sweep(check_name(name))
        version = self._reserve(name)
        try:
            with self.store.staging(name) as staged:
                export(staged, version)
                manifest = verify(staged)
                check_trunk(manifest, fingerprint)
                _check_number(manifest, name, version)
                self.store.prepare(name, version, staged)
                with self.locked():
                    guard()
                    self.store.publish(name, version, staged)
        except BaseException:
            with contextlib.suppress(RepositoryError):
                self.store.discard(name, version)
            raise
        finally:
            # From here the version speaks for its number itself, or the number is free again.
            with contextlib.suppress(RepositoryError):
                self.store.delete(_mark_key(name, version))
        return version

    def marks(self, name: str) -> dict[int, Mark]:
        """The marks of the versions that bear one."""
        numbers = (marked_version(file) for file in self.store.files(check_name(name)))
        found = {number: self.mark(name, number) for number in numbers if number is not None}
        return {number: mark for number, mark in found.items() if mark is not None}

    def mark(self, name: str, version: int) -> Mark | None:
        """The mark of one version; None when it bears none."""
        stored = self.store.read(_mark_key(name, version))
        return decode_mark(stored.content) if stored else None

    def set_mark(self, name: str, version: int, mark: Mark | None) -> None:
        """Mark a version, or take its mark away. The lock is held."""
        key = _mark_key(name, version)
        before = self.store.read(key)
        if mark is not None:
            content = msgspec.json.encode(mark) + b"\n"
            if before is None or before.content != content:
                self.store.write(key, content, before=before)
        elif before is not None:
            self.store.delete(key)

    def remove(self, name: str, version: int) -> None:
        """Delete a version that nobody wants; its number is not given again. The lock is held."""
        self.set_mark(name, version, Mark("removing", 0.0))
        self.store.remove(name, version)
        for file in self.store.files(name):
            if file.startswith(f"{version}.") and file != mark_name(version):
                self.store.delete(f"{name}/{file}")
        self.set_mark(name, version, Mark("removed", time.time()))
        self._forget_lower(name)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the repository's lock; BusyError names whoever has it for too long."""
        return self.store.locked()

    def _forget_lower(self, name: str) -> None:
        """Only the highest number that was ever given needs to be remembered."""
        marks = self.marks(name)
        highest = max([*marks, *self.versions(name)])
        for version, mark in marks.items():
            if mark.state == "removed" and version < highest:
                self.set_mark(name, version, None)

    def _reserve(self, name: str) -> int:
        mark = msgspec.json.encode(Mark("reserved", time.time(), by=uuid.uuid4().hex))
        for _ in range(_RESERVATIONS):
            version = max(_numbers(self.store, name), default=0) + 1
            if self.store.create(_mark_key(name, version), mark):
                # A version that was published between the look and the mark has this number too.
                if version not in self.store.versions(name):
                    return version
                self.store.delete(_mark_key(name, version))
        raise RepositoryError(f"no number could be had for a version of {name}: too many publish it at once; try again")

    def _sweep(self, name: str) -> None:
        self.store.sweep(name)
        published = set(self.store.versions(name))
        for version, mark in self.marks(name).items():
            if mark.state == "reserved" and time.time() - mark.since > STALE_SECONDS:
                if version not in published:
                    self.store.remove(name, version)
                self.store.delete(_mark_key(name, version))


def check_name(name: str) -> str:
    """*name*, when a head can bear it.

    Raises:
        RepositoryError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise RepositoryError(f"{name!r} cannot name a head: use 1 to 64 of a-z, 0-9, _ and -, a letter or digit first")
    return name


def no_version(name: str, version: int, known: Sequence[int]) -> RepositoryError:
    """Says that head *name* has no *version*, only those that are *known*."""
    return RepositoryError(f"{name} has no version {version}; there are {', '.join(map(str, known)) or 'none'}")


def _check_number(manifest: Manifest, name: str, version: int) -> None:
    if (manifest.name, manifest.version) != (name, version):
        raise ManifestError(f"{name} version {version} says that it is {manifest.name} version {manifest.version}")


def _numbers(store: Store, name: str) -> Iterator[int]:
    yield from store.versions(name)
    for file in store.files(name):
        number = marked_version(file)
        if number is not None:
            yield number


def _mark_key(name: str, version: int) -> str:
    return f"{name}/{mark_name(version)}"
