"""Which bundles answer for which heads: current ones alone, and none that has just failed.

A bundle of the catalogue stands for the very versions that it lists. What is asked of other versions goes to the heads, and so
does everything while the bundle is left alone after a failure.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from clients.wire.catalogue import Catalogue, Manifest, bundles_of, members_of, views_of
from gateway.ports import CatalogueSource

MIN_CALLS: Final = 2
"""One head is asked by itself: it costs no more, and it is then nobody else's trouble."""

FIRST_REST_SECONDS: Final = 1.0
MAX_REST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a version's scores lie in those of its *bundle*: columns *start* to *end*."""

    bundle: Manifest
    start: int
    end: int


@dataclass(slots=True)
class _Rest:
    """A bundle that failed is asked again, by one alone, after *until* of the clock; *seconds* double with each failure.

    *is_tried*: somebody asks it now.
    """

    until: float
    seconds: float = FIRST_REST_SECONDS
    is_tried: bool = False


class Bundles:
    """Owner of what is known of bundles. All methods belong to the event loop, and none waits."""

    def __init__(self, catalogue: CatalogueSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._made_of: Catalogue | None = None
        self._places: dict[tuple[str, int], Place] = {}
        self._resting: dict[tuple[str, int], _Rest] = {}

    def places(self, manifests: Iterable[Manifest]) -> list[Place | None]:
        """Where each of *manifests* is answered for; None where it is to be asked by itself.

        A bundle that is wanted by fewer than `MIN_CALLS` of them, or is left alone, is none.
        """
        known = self._known()
        if not known:
            return [None for _ in manifests]
        found = [known.get((manifest.name, manifest.version)) for manifest in manifests]
        counts: dict[tuple[str, int], int] = {}
        for place in found:
            if place is not None:
                key = _key(place.bundle)
                counts[key] = counts.get(key, 0) + 1
        used = {key for key, count in counts.items() if count >= MIN_CALLS and self._may_ask(key)}
        return [place if place is not None and _key(place.bundle) in used else None for place in found]

    def answered(self, bundle: Manifest) -> None:
        """It works."""
        self._resting.pop(_key(bundle), None)

    def failed(self, bundle: Manifest) -> None:
        """It is left alone for a while, for longer each time."""
        rest = self._resting.get(_key(bundle))
        if rest is None:
            self._resting[_key(bundle)] = _Rest(self._clock() + FIRST_REST_SECONDS)
        # Calls that were out together fail together, and are one failure.
        elif rest.is_tried:
            rest.is_tried = False
            rest.seconds = min(2 * rest.seconds, MAX_REST_SECONDS)
            rest.until = self._clock() + rest.seconds

    def _may_ask(self, key: tuple[str, int]) -> bool:
        rest = self._resting.get(key)
        if rest is None:
            return True
        now = self._clock()
        if now < rest.until:
            return False
        # Should nothing come of it, because the caller leaves, somebody else tries as long after.
        rest.is_tried = True
        rest.until = now + rest.seconds
        return True

    def _known(self) -> dict[tuple[str, int], Place]:
        catalogue = self._catalogue.catalogue
        if catalogue is not self._made_of:
            self._made_of = catalogue
            self._places = places_in(catalogue)
            current = {_key(bundle) for bundle in bundles_of(catalogue).values()}
            self._resting = {key: rest for key, rest in self._resting.items() if key in current}
        return self._places


def places_in(catalogue: Catalogue) -> dict[tuple[str, int], Place]:
    """Where each version is answered for; a member that is not what its head's manifest says is left out."""
    found: dict[tuple[str, int], Place] = {}
    for bundle in bundles_of(catalogue).values():
        for member in members_of(bundle):
            head = catalogue.heads.get(member.name)
            manifest = head.versions.get(member.version) if head is not None else None
            end = member.offset + member.count
            is_inside = 0 <= member.offset < end <= len(bundle.labels)
            if manifest is not None and is_inside and member.count == len(manifest.labels) and reads_the_same(bundle, manifest):
                found[member.name, member.version] = Place(bundle, member.offset, end)
    return found


def reads_the_same(bundle: Manifest, manifest: Manifest) -> bool:
    """Whether what goes into the head goes into the bundle."""
    read = [(one.trunk.fingerprint, views_of(one), one.width, bool(one.mask_input)) for one in (bundle, manifest)]
    return read[0] == read[1]


def _key(bundle: Manifest) -> tuple[str, int]:
    return bundle.name, bundle.version
