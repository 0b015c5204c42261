"""Bundles kept current: the heads of one view answer in one call, from a servable that is made of them again when one changes.

A bundle is an offer beside its heads and never in their place: it is told of only once the head server has it and it was seen to
answer what they answer, and a gateway uses it only for the very versions that it was made of. Whatever goes wrong here costs
time and no answer. One owner at a time: `trunkline up` runs `python -m head_service.bundling` after a change, and
`trunkline heads bundle` does the same by hand; two at once make the same bundle, and one of them is taken.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from clients import HeadClient, TrunklineError
from clients.wire.catalogue import MANIFEST_PATH, BundleMember, Catalogue, Manifest, bundles_of, members_of, views_of
from clients.wire.credentials import NO_CREDENTIALS, Credentials
from clients.wire.decoding import NOT_DECODED
from head_service import configuration
from head_service.errors import ConflictError, HeadServiceError, ManifestError, RepositoryError
from head_service.head_server import loaded, wait_until_available
from head_service.lifecycle import Lifecycle
from head_service.parts import BUNDLED_TYPES, LINEAR_TYPES, FloatArray, Part, UnlikeError, laid_out, part_of
from head_service.repository import Repository
from head_service.serving.trust import LoadError, check_head
from head_service.store import BUNDLE_PREFIX, is_bundle

MIN_MEMBERS: Final = 2
TOLERANCE: Final = 1e-6
"""How far a bundle's score may lie from its head's; of a head with scores beyond one, in parts of the largest of them."""

PROBE_ROWS: Final = 32
ASK_SECONDS: Final = 30.0
_UNFIT: Final = "unfit.json"
_NICENESS: Final = 10

Ask = Callable[[Manifest, FloatArray], FloatArray]
"""(version, float32 [texts, width]): its scores, float32 [texts, labels]. Raises HeadServiceError or TrunklineError."""

Version = tuple[str, int]


class UnfitError(HeadServiceError):
    """A head that cannot be part of a bundle, for good: its version does not change."""


def wanted_bundles(catalogue: Catalogue, unfit: Mapping[str, frozenset[Version]]) -> dict[str, tuple[Manifest, ...]]:
    """The bundles there should be, by name, each with the versions it should answer for: those that are stable.

    *unfit*, by bundle, are versions that cannot be in it.
    """
    groups: dict[str, list[Manifest]] = {}
    for head in catalogue.heads.values():
        manifest = head.versions[head.stable]
        if manifest.head_type in BUNDLED_TYPES and not manifest.mask_input:
            groups.setdefault(bundle_name(manifest), []).append(manifest)
    wanted = {}
    for name, manifests in groups.items():
        members = [manifest for manifest in manifests if _version(manifest) not in unfit.get(name, frozenset())]
        if len(members) >= MIN_MEMBERS:
            wanted[name] = tuple(sorted(members, key=_version))
    return wanted


def bundle_name(manifest: Manifest) -> str:
    """The bundle of all heads that read what *manifest*'s head reads; those with a hidden layer have one of their own.

    A bundle computes all its heads for whoever wants two of them, and one with a hidden layer costs as much as a hundred others.
    """
    is_deep = manifest.head_type not in LINEAR_TYPES
    read = msgspec.json.encode((manifest.trunk.fingerprint, views_of(manifest), manifest.width, is_deep))
    return f"{BUNDLE_PREFIX}{hashlib.sha256(read).hexdigest()[:12]}"


def out_of_date(catalogue: Catalogue, wanted: Mapping[str, Sequence[Manifest]]) -> tuple[list[str], list[str]]:
    """The names of the bundles to make, and of those to remove."""
    known = bundles_of(catalogue)
    to_make = [name for name, members in wanted.items() if name not in known or not _answers_for(known[name], members)]
    return sorted(to_make), sorted(known.keys() - wanted.keys())


def _answers_for(bundle: Manifest, members: Sequence[Manifest]) -> bool:
    return {(one.name, one.version) for one in members_of(bundle)} == set(map(_version, members))


def _version(head: Manifest | BundleMember) -> Version:
    return head.name, head.version


@dataclass(slots=True)
class Bundler:
    """Makes what bundles are missing. *ask* asks a version, as gateways do, or loads it; *say* is told what was done."""

    lifecycle: Lifecycle
    ask: Ask
    say: Callable[[str], None] = print
    _rows: dict[int, FloatArray] = field(default_factory=dict)

    def needs(self) -> tuple[list[str], list[str]]:
        """See `out_of_date`; of the repository as it is now."""
        return needs_of(self._repository, self._catalogue())

    def run(self) -> None:
        """Make every bundle that is out of date, and remove those of which too few heads are left.

        Raises:
            HeadServiceError, TrunklineError: one could not be made. What answers has not changed.
        """
        to_make, to_remove = self.needs()
        for name in to_remove:
            self.lifecycle.remove(name)
            self.say(f"{name} is removed: too few heads are left for it")
        for name in to_make:
            with contextlib.suppress(ConflictError):
                self._make(name)

    def _make(self, name: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            members = wanted_bundles(self._catalogue(), unfit_in(self._repository)).get(name, ())
            parts = list(self._parts(name, members, Path(scratch)))
        while len(parts) >= MIN_MEMBERS:
            differing = self._go_live(name, members[0], laid_out(parts))
            if not differing:
                return
            parts = [part for part in parts if _version(part.member) not in differing]
        self.say(f"{name} is not made: of its heads {len(parts)} can be in it")

    def _go_live(self, name: str, like: Manifest, groups: Sequence[Sequence[Part]]) -> frozenset[Version]:
        """Make a bundle of *groups* live, if it answers what its heads answer; if not, the heads of which it does not.

        Raises:
            RepositoryError: it does so for none of them.
        """
        version = self._publish(name, like, groups)
        manifest = self.lifecycle.load_candidate(name, version)
        try:
            differing = self._differing(manifest, groups)
            if not differing:
                self.lifecycle.promote_bundle(name, version)
        except BaseException:
            self.lifecycle.drop_candidate(name, version)
            raise
        if not differing:
            self.say(f"{name} version {version} answers for {len(members_of(manifest))} heads")
            return frozenset()
        self.lifecycle.drop_candidate(name, version)
        for head, head_version in sorted(differing):
            self._remember_unfit(name, (head, head_version))
            self.say(f"{head} version {head_version} is served alone: together with others it answers otherwise")
        return differing

    def _parts(self, name: str, members: Sequence[Manifest], scratch: Path) -> Iterator[Part]:
        for manifest in members:
            try:
                yield self._part(manifest, scratch)
            except UnfitError as error:
                self._remember_unfit(name, _version(manifest))
                self.say(str(error))

    def _part(self, manifest: Manifest, scratch: Path) -> Part:
        """The head as part of a bundle, once its files were held to its manifest and it was seen to be what its weights say."""
        from head_service.bundle import read_weights  # noqa: PLC0415 (TensorFlow: seconds)

        directory = scratch / f"{manifest.name}-{manifest.version}"
        directory.mkdir()
        self._repository.store.fetch(manifest.name, manifest.version, directory)
        try:
            whole = check_head(directory)
        except LoadError as error:
            raise RepositoryError(f"{manifest.name} version {manifest.version} is not in order: {error}") from None
        if _version(whole) != _version(manifest):
            raise ManifestError(f"{manifest.name} version {manifest.version} says that it is another one")
        digest = f"sha256:{hashlib.sha256((directory / MANIFEST_PATH).read_bytes()).hexdigest()}"
        weights = read_weights(directory)
        rows = self._probe(whole)
        answered = self.ask(whole, rows)
        # Which of the two it is its manifest does not say, and its answers do.
        for one_vs_rest in (False, True):
            with contextlib.suppress(UnlikeError):
                part = part_of(whole, weights, digest, one_vs_rest=one_vs_rest)
                if is_same(part.scores(rows), answered):
                    return part
        raise UnfitError(f"{manifest.name} version {manifest.version} is served alone: it answers otherwise than its weights say")

    def _publish(self, name: str, like: Manifest, groups: Sequence[Sequence[Part]]) -> int:
        from head_service.bundle import export_bundle  # noqa: PLC0415

        def export(directory: Path, version: int) -> None:
            manifest = bundle_manifest(name, version, like, groups, self._labels)
            export_bundle(groups, manifest, self._probe(manifest), directory)

        def guard() -> None:
            if name not in self.needs()[0]:
                raise ConflictError(f"{name} was made by somebody else meanwhile")

        return self._repository.publish_bundle(name, export, fingerprint=like.trunk.fingerprint, guard=guard)

    def _labels(self, name: str, version: int) -> tuple[str, ...]:
        return self._repository.manifest(name, version).labels

    def _differing(self, manifest: Manifest, groups: Sequence[Sequence[Part]]) -> frozenset[Version]:
        """The heads that answer otherwise than the bundle of *manifest* does, where it is served.

        Raises:
            RepositoryError: all of them do.
        """
        rows = self._probe(manifest)
        scores = self.ask(manifest, rows)
        if scores.shape != (len(rows), len(manifest.labels)):
            raise RepositoryError(f"{manifest.name} version {manifest.version} does not answer with a score a label")
        members = [part.member for group in groups for part in group]
        differing = frozenset(_version(member) for member in members if not self._says_the_same(member, scores, rows))
        if len(differing) == len(members):
            raise RepositoryError(f"{manifest.name} version {manifest.version} does not answer what its heads answer")
        return differing

    def _says_the_same(self, member: BundleMember, scores: FloatArray, rows: FloatArray) -> bool:
        head = self._repository.manifest(member.name, member.version)
        return is_same(scores[:, member.offset : member.offset + member.count], self.ask(head, rows))

    def _probe(self, manifest: Manifest) -> FloatArray:
        """Vectors of length one, and where the view does not make them so, also longer ones."""
        known = self._rows.get(manifest.width)
        if known is None:
            drawn = np.random.default_rng(manifest.width).normal(size=(PROBE_ROWS, manifest.width))
            known = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
            self._rows[manifest.width] = known
        return known if manifest.view.normalize else np.concatenate([known, known * np.float32(manifest.width**0.5 / 4)])

    def _remember_unfit(self, name: str, version: Version) -> None:
        """So that it is not tried again at every change of another head."""
        with self._repository.locked():
            known = [*_unfit_of(self._repository, name), version]
            configuration.replace_if_other(self._repository.store, f"{name}/{_UNFIT}", msgspec.json.encode(known) + b"\n")

    def _catalogue(self) -> Catalogue:
        return configuration.read_catalogue_of(self._repository.store)[0]

    @property
    def _repository(self) -> Repository:
        return self.lifecycle.repository


def needs_of(repository: Repository, catalogue: Catalogue) -> tuple[list[str], list[str]]:
    """See `out_of_date`; of what *repository* knows."""
    return out_of_date(catalogue, wanted_bundles(catalogue, unfit_in(repository)))


def unfit_in(repository: Repository) -> dict[str, frozenset[Version]]:
    """By bundle, the versions that were found not to fit into it."""
    return {name: frozenset(_unfit_of(repository, name)) for name in repository.heads() if is_bundle(name)}


def _unfit_of(repository: Repository, name: str) -> list[Version]:
    stored = repository.store.read(f"{name}/{_UNFIT}")
    try:
        return msgspec.json.decode(stored.content, type=list[Version]) if stored else []
    except NOT_DECODED:
        return []


def bundle_manifest(
    name: str, version: int, like: Manifest, groups: Sequence[Sequence[Part]], labels_of: Callable[[str, int], tuple[str, ...]]
) -> Manifest:
    """The manifest of the bundle of *groups*, whose heads all read what that of *like* reads."""
    members = tuple(part.member for group in groups for part in group)
    labels = tuple(f"{one.name}.{label}" for one in members for label in labels_of(one.name, one.version))
    return Manifest(
        name=name,
        version=version,
        task="multi_label",
        labels=labels,
        view=like.view,
        mix_layers=like.mix_layers,
        width=like.width,
        trunk=like.trunk,
        head_type="bundle",
        members=members,
    )


def is_same(scores: FloatArray, others: FloatArray) -> bool:
    """Whether both are the same numbers to `TOLERANCE`.

    A sum of large terms that comes out small has the rounding of the terms, whoever adds them up; so the largest score of all
    texts is what a difference is held against.
    """
    if scores.shape != others.shape or not np.isfinite(others).all():
        return False
    return bool((np.abs(scores - others) <= TOLERANCE * max(1.0, float(np.abs(others).max(initial=0.0)))).all())


@contextlib.contextmanager
def asking(address: str, repository: Repository, credentials: Credentials = NO_CREDENTIALS) -> Iterator[Ask]:
    """Asks the head server at *address*; where that is "", versions of *repository* are loaded for it."""
    if not address:
        yield lambda manifest, rows: np.asarray(loaded(repository, manifest, {manifest.input: rows}), np.float32)
        return
    with HeadClient(address, timeout=ASK_SECONDS, **credentials._asdict()) as client:

        def ask(manifest: Manifest, rows: FloatArray) -> FloatArray:
            answer = client.predict(
                manifest.name, {manifest.input: rows}, version=manifest.version, output_filter=(manifest.output,)
            )
            return np.asarray(answer.outputs[manifest.output], np.float32)

        yield ask


def main() -> int:
    """The command line: one round, with the key in TRUNKLINE_API_KEY where the head server takes one; its exit status."""
    parser = argparse.ArgumentParser("python -m head_service.bundling", description="Make the bundles that are out of date.")
    parser.add_argument("--repository", required=True, help="a directory, or s3://bucket/prefix")
    parser.add_argument("--heads-address", default="", help="HOST:PORT of the head server's gRPC; without it versions are loaded")
    asked = parser.parse_args()
    # What is made here is wanted soon, and what answers meanwhile goes first.
    os.nice(_NICENESS)
    try:
        key = os.environ.get("TRUNKLINE_API_KEY") or None
        bundle_once(asked.repository, asked.heads_address, credentials=Credentials(key))
    except (HeadServiceError, TrunklineError) as error:
        print(f"bundling: {error}", file=sys.stderr)
        return 1
    return 0


def bundle_once(
    location: str | Path,
    heads_address: str,
    say: Callable[[str], None] = print,
    credentials: Credentials = NO_CREDENTIALS,
) -> None:
    """Bring all bundles of the repository at *location* up to date; see `Bundler.run` for what it raises."""
    repository = Repository(location)
    lifecycle = Lifecycle(repository, partial(wait_until_available, heads_address, credentials=credentials))
    with asking(heads_address, repository, credentials) as ask:
        Bundler(lifecycle, ask, say).run()


if __name__ == "__main__":
    sys.exit(main())
