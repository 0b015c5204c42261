"""A repository with a clock of its own, a head server that loads what models.config names, and a store that dies when told to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from clients.wire.catalogue import Catalogue, GoldenExample, Metrics
from head_service.catalogue import read_catalogue
from head_service.configuration import MODELS_CONFIG, ServedHead, consistent, parse_config
from head_service.errors import RepositoryError
from head_service.lifecycle import Lifecycle
from head_service.repository import Repository
from head_service.store import LocalStore, Stored
from tests.head_service.versions_on_disk import FINGERPRINT, manifest, write_version

T = TypeVar("T")
GOLDEN = (GoldenExample("win a prize", "spam", (0.1, 0.9)), GoldenExample("see you", "ham", (0.8, 0.2)))


class Killed(BaseException):
    """The process is gone; what would clean up after an exception does not run either, for the store does nothing more."""


class DyingStore(LocalStore):
    """Dies at change number *dies_at*, counted from 1: before it, or right *after* it."""

    def __init__(self, root: Path, dies_at: int, *, after: bool) -> None:
        super().__init__(root, lock_seconds=0.0)
        self.dies_at = dies_at
        self.after = after
        self.num_changes = 0

    def create(self, key: str, content: bytes) -> bool:
        return self._change(lambda: super(DyingStore, self).create(key, content))

    def write(self, key: str, content: bytes, *, before: Stored | None) -> None:
        self._change(lambda: super(DyingStore, self).write(key, content, before=before))

    def delete(self, key: str) -> None:
        self._change(lambda: super(DyingStore, self).delete(key))

    def publish(self, name: str, version: int, staged: Path) -> None:
        self._change(lambda: super(DyingStore, self).publish(name, version, staged))

    def remove(self, name: str, version: int) -> None:
        self._change(lambda: super(DyingStore, self).remove(name, version))

    def _change(self, change: Callable[[], T]) -> T:
        self.num_changes += 1
        if self.num_changes > self.dies_at or (self.num_changes == self.dies_at and not self.after):
            raise Killed
        done = change()
        if self.num_changes == self.dies_at:
            raise Killed
        return done


@dataclass
class Clock:
    """Seconds that pass when told to."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class World:
    """Everything around one local repository. *broken* versions are those the head server will not load."""

    root: Path
    clock: Clock = field(default_factory=Clock)
    broken: set[tuple[str, int]] = field(default_factory=set)
    waited: list[tuple[str, int]] = field(default_factory=list)

    @property
    def repository(self) -> Repository:
        return Repository(self.root)

    @property
    def lifecycle(self) -> Lifecycle:
        return self.lifecycle_of(self.repository)

    def lifecycle_of(self, repository: Repository) -> Lifecycle:
        return Lifecycle(repository, self.wait, clock=self.clock, sleep=self.clock.sleep, actor="somebody@here")

    def publish(self, name: str = "spam", *, accuracy: float | None = None, data: str = "sha256:test") -> int:
        def export(directory: Path, version: int) -> None:
            metrics = None if accuracy is None else Metrics(accuracy, accuracy, 80, 20, data)
            described = msgspec.structs.replace(manifest(name, version), metrics=metrics, golden=GOLDEN)
            write_version(directory, described)

        return self.repository.publish(name, export, fingerprint=FINGERPRINT)

    def wait(self, name: str, version: int) -> None:
        """The head server, as far as a lifecycle knows it: it has what models.config names, if it can load it."""
        self.waited.append((name, version))
        assert version in self.served()[name].versions
        if (name, version) in self.broken:
            raise RepositoryError("the head server refuses it")

    def catalogue(self) -> Catalogue:
        return read_catalogue(self.root)

    def served(self) -> dict[str, ServedHead]:
        return parse_config((self.root / MODELS_CONFIG).read_bytes())

    def problems(self) -> list[str]:
        """What is not consistent between catalogue, models.config, marks and disk."""
        repository, catalogue, served = self.repository, self.catalogue(), self.served()
        marks = {name: repository.marks(name) for name in repository.heads()}
        refused = [(name, number) for name, of in marks.items() for number, mark in of.items() if mark.state == "refused"]
        found = consistent(catalogue, served, refused)
        for name, head in catalogue.heads.items():
            found += [f"{name} {version} is not there" for version in head.versions if version not in repository.versions(name)]
        for name, told in served.items():
            found += [f"{name} {version} is served and not there" for version in told.versions - set(repository.versions(name))]
            found += [f"{name} {version} is served and refused" for version in told.versions if (name, version) in refused]
        return found
