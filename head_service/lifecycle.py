"""A head's life after training: promote, roll back, try out, remove; each in steps of which any may be the last of its process.

Every change that brings a version in goes TensorFlow Serving's two safe ways: models.config names it beside the others, and
only once the head server has it do the catalogue and the labels move. The catalogue is the truth: models.config is derived from
it, the marks beside the versions and the clock, so the next command repairs what an interrupted one left. A version that loses
its role stays loaded for a grace, in which every gateway polls the catalogue.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest
from clients.wire.decoding import NOT_DECODED
from head_service import configuration, history, roles
from head_service.configuration import MODELS_CONFIG, ServedHead, bundle_entry, entry_of
from head_service.errors import ConflictError, RefusedError, RepositoryError
from head_service.gate import Comparison
from head_service.history import Event
from head_service.repository import Repository, check_name, no_version
from head_service.states import Mark, describe, expendable, is_over, loaded
from head_service.states import roles as roles_of
from head_service.store import Clock, Stored, is_bundle

GRACE_SECONDS: Final = 3.0
"""Several times the gateway's default poll; whoever makes gateways poll more slowly than once a second raises this."""

KEEP_VERSIONS: Final = 10
KEEP_BUNDLES: Final = 1
"""A bundle is made again from its members at any time."""

ANY_VERSION: Final = 0
"""No version's number."""

WaitUntilAvailable = Callable[[str, int], None]
"""(head, version): returns when the head server serves it; raises when it refuses to."""


def already_available(name: str, version: int) -> None:
    """For whoever has waited, or knows that no head server runs."""


@dataclass(frozen=True, slots=True)
class HeadState:
    """One head as it is: its entry in the catalogue, the versions that exist, and their marks."""

    name: str
    entry: CatalogueHead | None
    versions: tuple[int, ...]
    marks: Mapping[int, Mark]

    def describe(self, version: int) -> str:
        """A version's state, for a person."""
        return describe(self.entry, version, self.marks.get(version))


@dataclass(slots=True)
class Lifecycle:
    """All changes to what is live go through one of these; any number of them, in any process, at once.

    *wait_until_available* None: the head server cannot be asked, and is given the grace to load what it is told of.
    """

    repository: Repository
    wait_until_available: WaitUntilAvailable | None = None
    clock: Clock = time.time
    sleep: Callable[[float], None] = time.sleep
    grace_seconds: float = GRACE_SECONDS
    keep_versions: int = KEEP_VERSIONS
    actor: str = field(default_factory=history.actor)

    def states(self) -> list[HeadState]:
        """Every head that has a version, or had one, and no bundle; reads alone."""
        catalogue, _ = self._catalogue()
        return [self._state(name, catalogue) for name in self.repository.heads() if not is_bundle(name)]

    def state(self, name: str) -> HeadState:
        """One head.

        Raises:
            RepositoryError: there is none of that name.
        """
        catalogue, _ = self._catalogue()
        state = self._state(check_name(name), catalogue)
        if not state.versions and state.entry is None:
            known = ", ".join(head for head in self.repository.heads() if not is_bundle(head))
            raise RepositoryError(f"there is no head {name!r}; there are {known or 'none'}")
        return state

    def promote(self, name: str, version: int, *, reason: str = "", expected_live: int | None = ANY_VERSION) -> CatalogueHead:
        """Make *version* the one that answers; the one before it stays loaded for `roll_back`.

        Args:
            name: the head's.
            version: is published.
            reason: for the history.
            expected_live: the version that it was found good enough to take the place of; None: no version.

        Raises:
            ConflictError: another version than *expected_live* is live by now.
            RefusedError: the gate refused it.
            ManifestError: its files are not those of its manifest.
            RepositoryError: see `Repository`, and whatever *wait_until_available* raises. What answers has not changed.
        """

        def change(entry: CatalogueHead | None, manifest: Manifest) -> CatalogueHead:
            live = _stable(entry)
            if expected_live not in {ANY_VERSION, live}:
                raise ConflictError(f"{name} has another live version by now ({live}); it must be compared with that one")
            return roles.promoted(entry, manifest)

        return self._bring_in("promote", name, version, change, reason)

    def roll_back(self, name: str, *, reason: str = "") -> CatalogueHead:
        """Let the previous version answer again; the two change places. Raises like `promote`."""
        entry = self._entry(name)
        if entry.previous is None:
            raise RepositoryError(f"{name} has no previous version to roll back to")
        return self._bring_in("roll back", name, entry.previous, _known(roles.rolled_back), reason)

    def start_canary(self, name: str, version: int, share: float, *, reason: str = "") -> CatalogueHead:
        """Let *version* answer a *share* of the callers, above 0 and up to 1. Raises like `promote`."""
        return self._bring_in("canary", name, version, lambda entry, manifest: roles.with_canary(entry, manifest, share), reason)

    def start_shadow(self, name: str, version: int, *, reason: str = "") -> CatalogueHead:
        """Run *version* beside the stable one, compared and never answered. Raises like `promote`."""
        return self._bring_in("shadow", name, version, roles.with_shadow, reason)

    def promote_bundle(self, name: str, version: int) -> None:
        """Tell gateways of *version* of the bundle *name* in the place of the one before it. Raises like `promote`."""
        self._bring_in("bundle", name, version, lambda _, manifest: bundle_entry(manifest), "")

    def end_canary(self, name: str, *, reason: str = "") -> CatalogueHead:
        """The stable version answers everybody again; nothing happens where there is no canary."""
        return self._change("end canary", name, roles.without_canary, reason)

    def end_shadow(self, name: str, *, reason: str = "") -> CatalogueHead:
        """Nothing runs beside the stable version any more."""
        return self._change("end shadow", name, roles.without_shadow, reason)

    def configure(self, name: str, *, default: bool | None = None, tags: tuple[str, ...] | None = None) -> CatalogueHead:
        """Whether the head answers when none is named, and its tags; None leaves what is."""

        def change(entry: CatalogueHead) -> CatalogueHead:
            wanted = msgspec.structs.replace(entry, default=entry.default if default is None else default)
            return wanted if tags is None else msgspec.structs.replace(wanted, tags=tags)

        return self._change("set", name, change, "")

    def load_candidate(self, name: str, version: int) -> Manifest:
        """Have the head server load *version*, so that it can be checked before it answers anybody; its manifest.

        Idempotent. What the head server will not load is a candidate no more.
        """
        manifest = self._checked(name, version)
        with self.repository.locked():
            self._check_not_refused(name, version)
            known = self.served().get(name)
            # Marked first: an old version that nobody has asked for is otherwise among those that are settled away.
            self.repository.set_mark(name, version, Mark("candidate", self.clock(), self.actor))
            self._settle_locked()
        try:
            self._wait(name, version, is_told=known is not None and version in known.versions)
        except Exception:
            self.drop_candidate(name, version)
            raise
        return manifest

    def _wait(self, name: str, version: int, *, is_told: bool) -> None:
        if self.wait_until_available is not None:
            self.wait_until_available(name, version)
        # The head server of an object store is its mirror's business, which moves the catalogue there.
        elif self.repository.is_local and not is_told:
            self.sleep(self.grace_seconds)

    def drop_candidate(self, name: str, version: int) -> None:
        """A candidate whose time has not come is loaded no more. Whatever else it is by now, it stays."""
        with self.repository.locked():
            mark = self.repository.mark(name, version)
            if mark and mark.state == "candidate":
                self.repository.set_mark(name, version, None)
                self._write_configs()

    def refuse(self, name: str, version: int, comparison: Comparison) -> None:
        """Keep *version* from answering, for good or until it is promoted by force, and remember why."""
        with self.repository.locked():
            held = roles_of(self._state(name, self._catalogue()[0]).entry).get(version)
            if held:
                raise RepositoryError(f"{name} version {version} is {' and '.join(held)}; end that before it is refused")
            self._keep_comparison(name, version, comparison)
            self.repository.set_mark(name, version, Mark("refused", self.clock(), self.actor, comparison.reason))
            self._write_configs()
            self._record(name, "refuse", version, None, None, comparison.reason)

    def pardon(self, name: str, version: int, *, reason: str) -> None:
        """Take the refusal of *version* back: a person's decision."""
        with self.repository.locked():
            mark = self.repository.mark(name, version)
            if mark and mark.state == "refused":
                self.repository.set_mark(name, version, None)
                self._record(name, "pardon", version, None, None, reason)

    def keep_comparison(self, name: str, version: int, comparison: Comparison) -> None:
        """Remember what the gate found of *version*."""
        with self.repository.locked():
            self._keep_comparison(name, version, comparison)

    def comparison(self, name: str, version: int) -> Comparison | None:
        """What the gate found of *version*, if it was ever asked and what it found can be read."""
        stored = self.repository.store.read(_gate_key(name, version))
        try:
            return msgspec.json.decode(stored.content, type=Comparison) if stored else None
        except NOT_DECODED:
            return None

    def remove(self, name: str, version: int | None = None, *, reason: str = "") -> None:
        """Delete a version that has no role, or all of a head. Waits until no gateway can ask for what goes.

        Raises:
            RepositoryError: the version has a role, or is not there.
        """
        state = self.state(name)
        doomed = state.versions if version is None else (version,)
        if version is not None and version not in state.versions:
            raise no_version(name, version, state.versions)
        with self.repository.locked():
            self._settle_locked()
            state = self._state(name, self._catalogue()[0])
            held = roles_of(state.entry)
            if version in held:
                raise RepositoryError(f"{name} version {version} is {' and '.join(held[version])}; end that first")
            for number in doomed:
                served = number in held or number in self._loaded(state)
                self.repository.set_mark(name, number, Mark("removing", self.clock() if served else 0.0, self.actor, reason))
            if version is None and state.entry is not None:
                self._put_entry(name, None)
            self._write_configs()
            self._record(name, "remove", version, _stable(state.entry), None, reason)
        self.settle(wait_for=name)

    def settle(self, *, wait_for: str | None = None) -> None:
        """Finish what was begun and is due: drop what nobody asks for any more, delete what is to go, keep the last versions.

        *wait_for* names a head whose rest is waited for, at most as long as the grace. Idempotent; any command does it first.
        """
        with self.repository.locked():
            self._settle_locked()
            left = self._until_settled(wait_for) if wait_for else 0.0
        if left > 0:
            self.sleep(left)
            with self.repository.locked():
                self._settle_locked()

    def _settle_locked(self) -> None:
        """`settle` by whoever holds the lock."""
        catalogue, _ = self._catalogue()
        states = [self._state(name, catalogue) for name in self.repository.heads()]
        for state in states:
            self._clear_marks(state)
        self._write_configs(catalogue)
        for state in states:
            self._delete_due(self._state(state.name, catalogue))

    def write_configs(self, *, labels: bool = True) -> None:
        """Write models.config, and what is like it, anew. Without *labels*: for a head server that has loaded nothing yet."""
        with self.repository.locked():
            self._write_configs(labels=labels)

    def served(self, catalogue: Catalogue | None = None, *, labels: bool = True) -> dict[str, ServedHead]:
        """What the head server is to be told of each head now."""
        known = self._catalogue()[0] if catalogue is None else catalogue
        return {
            state.name: ServedHead(frozenset(self._loaded(state)), labels_in(state) if labels else {})
            for state in (self._state(name, known) for name in self.repository.heads())
        }

    def _bring_in(
        self, what: str, name: str, version: int, change: Callable[[CatalogueHead | None, Manifest], CatalogueHead], reason: str
    ) -> CatalogueHead:
        # What cannot be is said before anything is loaded for it.
        change(entry_of(self._catalogue()[0], check_name(name)), self.repository.manifest(name, version))
        manifest = self.load_candidate(name, version)
        with self.repository.locked():
            self._check_not_refused(name, version)
            entry = entry_of(self._catalogue()[0], name)
            after = change(entry, configuration.summary(manifest))
            self._move(name, entry, after)
            self.repository.set_mark(name, version, None)
            self._record(name, what, version, _stable(entry), after.stable, reason)
        return after

    def _change(self, what: str, name: str, change: Callable[[CatalogueHead], CatalogueHead], reason: str) -> CatalogueHead:
        with self.repository.locked():
            self._settle_locked()
            entry = self._entry(name)
            after = change(entry)
            if after != entry:
                self._move(name, entry, after)
                self._record(name, what, None, entry.stable, after.stable, reason)
        return after

    def _move(self, name: str, entry: CatalogueHead | None, after: CatalogueHead) -> None:
        """The second safe step: what leaves is kept loaded first, then the catalogue says so, then the labels follow."""
        for version in roles_of(entry).keys() - roles_of(after).keys():
            self.repository.set_mark(name, version, Mark("retiring", self.clock(), self.actor))
        if after != entry:
            self._put_entry(name, after)
        self._write_configs()

    def _put_entry(self, name: str, entry: CatalogueHead | None) -> None:
        catalogue, stored = self._catalogue()
        entries = {known: one for known, one in configuration.entries_of(catalogue).items() if known != name}
        after = configuration.made_of(entries | ({name: entry} if entry is not None else {}))
        configuration.write_catalogue(self.repository.store, after, stored)

    def _clear_marks(self, state: HeadState) -> None:
        """Marks that say nothing any more; one that a role overrules is the trace of a change that was cut short."""
        held = roles_of(state.entry)
        for version, mark in state.marks.items():
            passing = mark.state in {"candidate", "retiring"}
            if version in held and mark.state != "refused":
                if mark.state == "candidate" and "stable" in held[version]:
                    self._record(state.name, "recover", version, None, version, "an earlier command was cut short here")
                self.repository.set_mark(state.name, version, None)
            elif passing and is_over(mark, self.clock(), self.grace_seconds):
                self.repository.set_mark(state.name, version, None)

    def _delete_due(self, state: HeadState) -> None:
        now = self.clock()
        due = {
            version
            for version, mark in state.marks.items()
            if mark.state == "removing" and is_over(mark, now, self.grace_seconds) and version not in roles_of(state.entry)
        }
        keep = KEEP_BUNDLES if is_bundle(state.name) else self.keep_versions
        for version in sorted(due | expendable(state.entry, state.marks, state.versions, keep)):
            self.repository.remove(state.name, version)

    def _until_settled(self, name: str) -> float:
        """Seconds until the last version of *name* that is on its way out is due."""
        marks = self.repository.marks(name).values()
        ends = [mark.since + self.grace_seconds for mark in marks if mark.state in {"retiring", "removing"}]
        return min(max(ends, default=0.0) - self.clock(), self.grace_seconds)

    def _write_configs(self, catalogue: Catalogue | None = None, *, labels: bool = True) -> None:
        """models.config for a head server that reads this directory; one with a mirror is told by the mirror."""
        if not self.repository.is_local:
            return
        store = self.repository.store
        served = self.served(catalogue, labels=labels)
        files = {MODELS_CONFIG: str(self.repository.root.absolute())} | configuration.base_paths(store)
        for file, base_path in files.items():
            configuration.replace_if_other(store, file, configuration.render_config(served, Path(base_path)))

    def _keep_comparison(self, name: str, version: int, comparison: Comparison) -> None:
        configuration.replace_if_other(self.repository.store, _gate_key(name, version), msgspec.json.encode(comparison) + b"\n")

    def _record(self, name: str, what: str, version: int | None, before: int | None, after: int | None, reason: str) -> None:
        event = Event(history.moment(self.clock()), self.actor, what, version, before, after, reason)
        history.append(self.repository.store, name, event)

    def _checked(self, name: str, version: int) -> Manifest:
        self._check_not_refused(check_name(name), version)
        return self.repository.verify(name, version)

    def _check_not_refused(self, name: str, version: int) -> None:
        mark = self.repository.mark(name, version)
        if mark and mark.state == "refused":
            raise RefusedError(f"{name} version {version} is refused: {mark.reason or 'no reason is recorded'}")
        if mark and mark.state in {"removing", "removed"}:
            raise RepositoryError(f"{name} version {version} is being removed")

    def _entry(self, name: str) -> CatalogueHead:
        entry = self._catalogue()[0].heads.get(check_name(name))
        if entry is None:
            raise RepositoryError(f"{name} has no live version; promote one with `trunkline heads promote {name} VERSION`")
        return entry

    def _catalogue(self) -> tuple[Catalogue, Stored | None]:
        return configuration.read_catalogue_of(self.repository.store)

    def _state(self, name: str, catalogue: Catalogue) -> HeadState:
        entry = entry_of(catalogue, name)
        return HeadState(name, entry, tuple(self.repository.versions(name)), self.repository.marks(name))

    def _loaded(self, state: HeadState) -> set[int]:
        return loaded(state.entry, state.marks, state.versions, now=self.clock(), grace_seconds=self.grace_seconds)


def labels_in(state: HeadState) -> dict[str, int]:
    """The labels of a head, on versions that are there."""
    return {label: version for label, version in configuration.labels_of(state.entry).items() if version in state.versions}


def _stable(entry: CatalogueHead | None) -> int | None:
    return entry.stable if entry else None


def _known(
    change: Callable[[CatalogueHead, Manifest], CatalogueHead],
) -> Callable[[CatalogueHead | None, Manifest], CatalogueHead]:
    """*change*, for a head that is in the catalogue."""

    def changed(entry: CatalogueHead | None, manifest: Manifest) -> CatalogueHead:
        if entry is None:
            raise RepositoryError(f"{manifest.name} has no live version any more")
        return change(entry, manifest)

    return changed


def _gate_key(name: str, version: int) -> str:
    return f"{name}/{version}.gate.json"
