"""A local directory that follows a repository in an object store, for the head server and the gateway beside it.

An object store has no rename, and TensorFlow Serving would load a version while it is still being copied, so versions are
pulled to a temporary name, held to their manifest, and renamed. The local catalogue moves last: only to versions that lie here
and that the head server has.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clients.wire.catalogue import Catalogue, CatalogueHead
from head_service import configuration
from head_service.configuration import CATALOGUE, MODELS_CONFIG, ServedHead, entries_of, entry_of, made_of
from head_service.errors import HeadServiceError, ManifestError, StorageError
from head_service.lifecycle import GRACE_SECONDS, Lifecycle
from head_service.repository import Repository
from head_service.states import roles
from head_service.store import Clock, LocalStore

_log = logging.getLogger(__name__)

IsAvailable = Callable[[str, int], bool | None]
"""(head, version): whether the head server has it loaded; None: it cannot be asked."""

REMOVE_AFTER_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 30.0
"""A version that cannot be had, or whose files are not those of its manifest, is not pulled again at every round."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did: versions *pulled* and *removed*, and *problems*, a sentence each."""

    pulled: tuple[tuple[str, int], ...] = ()
    removed: tuple[tuple[str, int], ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class Mirror:
    """Owner of the local directory *root*: nobody else writes there.

    *is_available* asks the head server that reads *root*. *base_path* is where that server sees it.
    *with_labels* is for a server that has loaded something: it takes a label only on a version that it has.
    """

    source: Repository
    root: Path
    is_available: IsAvailable = lambda _, __: None
    base_path: Path | None = None
    grace_seconds: float = GRACE_SECONDS
    remove_after_seconds: float = REMOVE_AFTER_SECONDS
    clock: Callable[[], float] = time.monotonic
    wall_clock: Clock = time.time
    with_labels: bool = True
    _local: LocalStore = field(init=False)
    _left: dict[tuple[str, int], float] = field(default_factory=dict)
    _named: dict[tuple[str, int], float] = field(default_factory=dict)
    _broken: dict[tuple[str, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._local = LocalStore(self.root)

    def follow(self) -> Round:
        """One round: pull, tell the head server, move the catalogue, remove. Idempotent; a later round goes on from anywhere.

        Raises:
            HeadServiceError: the source cannot be read, or *root* cannot be written. What is there stays as it was.
        """
        catalogue, _ = configuration.read_catalogue_of(self.source.store)
        wanted = {name: head.versions for name, head in Lifecycle(self.source, clock=self.wall_clock).served(catalogue).items()}
        with self._local.locked():
            before, stored = configuration.read_catalogue_of(self._local)
            pulled, problems = self._pull(wanted)
            self._write_config(wanted, before, labels=before)
            after = self._ready(catalogue, before)
            if stored is None or after != before:
                self._leave(before, after)
                configuration.write_catalogue(self._local, after, stored)
            self._write_config(wanted, after, labels=after)
            removed = self._remove(wanted, after)
        return Round(pulled, removed, problems)

    def _pull(self, wanted: Mapping[str, frozenset[int]]) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
        pulled, problems = [], []
        for name, versions in wanted.items():
            for version in sorted(versions - set(self._local.versions(name))):
                if self.clock() < self._broken.get((name, version), 0.0):
                    continue
                try:
                    self._pull_version(name, version)
                except (ManifestError, StorageError) as error:
                    # The others go on, and what nobody wants is removed, which may be what makes room for it.
                    self._broken[name, version] = self.clock() + RETRY_SECONDS
                    problems.append(f"{name} version {version} in {self.source.store.url} is not mirrored: {error}")
                else:
                    pulled.append((name, version))
        return tuple(pulled), tuple(problems)

    def _pull_version(self, name: str, version: int) -> None:
        with self._local.staging(name) as staged:
            self.source.fetch(name, version, staged)
            self._local.prepare(name, version, staged)
            self._local.publish(name, version, staged)
        _log.info("%s version %d is mirrored", name, version)

    def _ready(self, catalogue: Catalogue, before: Catalogue) -> Catalogue:
        """What the gateway may be told: each head's new entry once all of it can answer, and until then the former one."""
        entries: dict[str, CatalogueHead] = {}
        for name, entry in entries_of(catalogue).items():
            former = entry_of(before, name)
            chosen = entry if self._can_answer(name, entry, former) else former
            if chosen is not None:
                entries[name] = chosen
        return made_of(entries)

    def _can_answer(self, name: str, head: CatalogueHead, former: CatalogueHead | None) -> bool:
        here = set(self._local.versions(name))
        asked = {version for version in (head.stable, head.canary, head.shadow) if version is not None}
        return asked <= here and all(self._is_served(name, version) for version in asked - roles(former).keys())

    def _is_served(self, name: str, version: int) -> bool:
        """Of a head server that cannot be asked it is believed once it has been told of a version for a while."""
        available = self.is_available(name, version)
        return self.clock() - self._named[name, version] >= self.grace_seconds if available is None else available

    def _write_config(self, wanted: Mapping[str, frozenset[int]], catalogue: Catalogue, *, labels: Catalogue) -> None:
        """Name what the source wants, what the local catalogue names, and what left it a moment ago, as far as it lies here."""
        now = self.clock()
        staying = [key for key, since in self._left.items() if now - since < self.grace_seconds]
        served = {}
        for name in self._local.heads():
            here = set(self._local.versions(name))
            kept = set(wanted.get(name, ())) | roles(entry_of(catalogue, name)).keys()
            kept |= {version for head, version in staying if head == name}
            wishes = configuration.labels_of(entry_of(labels, name)) if self.with_labels else {}
            served[name] = ServedHead(frozenset(kept & here), {label: one for label, one in wishes.items() if one in here})
            for version in kept & here:
                self._named.setdefault((name, version), now)
        base_path = self.base_path or self.root.absolute()
        configuration.replace_if_other(self._local, MODELS_CONFIG, configuration.render_config(served, base_path))

    def _leave(self, before: Catalogue, after: Catalogue) -> None:
        for name, head in entries_of(before).items():
            for version in roles(head).keys() - roles(entry_of(after, name)).keys():
                self._left[name, version] = self.clock()

    def _remove(self, wanted: Mapping[str, frozenset[int]], catalogue: Catalogue) -> tuple[tuple[str, int], ...]:
        """What nobody has wanted for a while, and the head server does not have."""
        removed = []
        for name in self._local.heads():
            kept = set(wanted.get(name, ())) | roles(entry_of(catalogue, name)).keys()
            for version in self._local.versions(name):
                if version in kept:
                    self._left.pop((name, version), None)
                elif self._is_forgotten(name, version) and self.is_available(name, version) is not True:
                    self._local.remove(name, version)
                    self._left.pop((name, version), None)
                    self._named.pop((name, version), None)
                    removed.append((name, version))
            self._local.sweep(name)
        return tuple(removed)

    def _is_forgotten(self, name: str, version: int) -> bool:
        return self.clock() - self._left.setdefault((name, version), self.clock()) >= self.remove_after_seconds


def mirror_layout(root: Path) -> None:
    """Give a gateway and a head server something to start on before the first round: nothing is live yet."""
    store = LocalStore(root)
    with store.locked():
        if store.read(CATALOGUE) is None:
            configuration.write_catalogue(store, Catalogue(), None)
        if store.read(MODELS_CONFIG) is None:
            store.write(MODELS_CONFIG, configuration.render_config({}, root), before=None)


def follow_once(mirror: Mirror, say: Callable[[str], None]) -> None:
    """One round of *mirror*, told; a source that is away is told too, and what is here goes on answering."""
    try:
        done = mirror.follow()
    except HeadServiceError as error:
        say(f"the mirror stays as it is: {error}")
        return
    for name, version in done.pulled:
        say(f"{name} version {version} is mirrored")
    for name, version in done.removed:
        say(f"{name} version {version} is removed from the mirror")
    for problem in done.problems:
        say(problem)
