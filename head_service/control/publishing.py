"""Exactly one version a run, however often the run is tried.

The run's id is a file of the version itself, so both appear at once. Right before a run's version appears, under the repository's
lock, it looks for a version with its id; and it asks whether its lease still holds, so that a worker thought dead publishes
nothing late. It asks twice: with patience before it has the lock, so that a database that is slow to answer keeps nobody else
from the repository, and briefly under it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from clients.wire.catalogue import MANIFEST_PATH, encode
from clients.wire.decoding import NOT_DECODED
from head_service.errors import RepositoryError
from head_service.manifest import hash_files, read_manifest
from head_service.repository import Export, Repository
from head_service.store import Store

RUN_PATH: Final = "assets.extra/trunkline_run.json"
PATIENT_SECONDS: Final = 60.0
BRIEF_SECONDS: Final = 5.0
"""For the worker to say whether the lease holds: while nobody waits for this, and while others wait for the repository."""


class LeaseLostError(RepositoryError):
    """Another worker has this run by now, or may have; nothing was published."""


class _AlreadyPublishedError(RepositoryError):
    def __init__(self, version: int) -> None:
        super().__init__(f"this run has published version {version} before")
        self.version = version


class _RunMark(msgspec.Struct, frozen=True):
    run: str


class RunRepository(Repository):
    """A repository that publishes in the name of one run.

    *may_publish* is told how many seconds to wait for an answer, and asked last before the version appears; *on_published* is
    told its number.
    """

    def __init__(
        self, location: str | Path | Store, run_id: str, may_publish: Callable[[float], bool], on_published: Callable[[int], None]
    ) -> None:
        super().__init__(location)
        self._run_id = run_id
        self._may_publish = may_publish
        self._on_published = on_published

    def publish(self, name: str, export: Export, *, fingerprint: str, guard: Callable[[], None] = lambda: None) -> int:
        """See `Repository.publish`; the version this run published before, if there is one.

        Raises:
            LeaseLostError: the run is another worker's by now.
        """

        def marked(directory: Path, version: int) -> None:
            export(directory, version)
            _mark(directory, self._run_id)
            self._check_lease(PATIENT_SECONDS)

        def only_once() -> None:
            guard()
            if (before := published_by(self, name, self._run_id)) is not None:
                raise _AlreadyPublishedError(before)
            self._check_lease(BRIEF_SECONDS)

        version = published_by(self, name, self._run_id)
        if version is None:
            try:
                version = super().publish(name, marked, fingerprint=fingerprint, guard=only_once)
            except _AlreadyPublishedError as found:
                version = found.version
        self._on_published(version)
        return version

    def _check_lease(self, seconds: float) -> None:
        if not self._may_publish(seconds):
            raise LeaseLostError("another worker has taken this run over, or the store does not say so in time")


def published_by(repository: Repository, name: str, run_id: str) -> int | None:
    """The version of *name* that run *run_id* published."""
    for version in reversed(repository.versions(name)):
        if _run_of(repository, name, version) == run_id:
            return version
    return None


def _run_of(repository: Repository, name: str, version: int) -> str | None:
    stored = repository.store.read(f"{name}/{version}/{RUN_PATH}")
    try:
        return msgspec.json.decode(stored.content, type=_RunMark).run if stored else None
    except NOT_DECODED:
        return None


def _mark(directory: Path, run_id: str) -> None:
    """Put the run's id among the files, and the file into the manifest."""
    path = directory / RUN_PATH
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.encode(_RunMark(run_id)))
    manifest = msgspec.structs.replace(read_manifest(directory), files=hash_files(directory))
    (directory / MANIFEST_PATH).write_bytes(encode(manifest))
