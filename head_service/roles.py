"""What promoting, rolling back and trying out do to a head's entry in the catalogue. Pure: nothing here reads or writes."""

from collections.abc import Mapping

import msgspec

from clients.wire.catalogue import CatalogueHead, Manifest
from head_service.errors import RepositoryError

Manifests = Mapping[int, Manifest]


def promoted(head: CatalogueHead | None, manifest: Manifest) -> CatalogueHead:
    """*manifest*'s version answers; the one before it is what roll-back goes to. A trial of the version itself is over."""
    version = manifest.version
    if head is None:
        return CatalogueHead(stable=version, versions={version: manifest})
    ended = _without_trial(head, version)
    previous = head.previous if head.stable == version else head.stable
    return _with(ended, {version: manifest}, stable=version, previous=previous)


def rolled_back(head: CatalogueHead, manifest: Manifest) -> CatalogueHead:
    """*manifest*'s version, the previous one, answers again, and the two have changed places."""
    if head.previous != manifest.version:
        raise RepositoryError(f"version {manifest.version} is not the previous one any more; look again with `trunkline heads`")
    return promoted(head, manifest)


def with_canary(head: CatalogueHead | None, manifest: Manifest, share: float) -> CatalogueHead:
    """*manifest*'s version answers a *share* of the callers, above 0 and up to 1."""
    if not 0.0 < share <= 1.0:
        raise RepositoryError("a canary's share is above 0 and at most 1; end it with --end")
    known = _on_trial(head, manifest.version)
    return _with(known, {manifest.version: manifest}, canary=manifest.version, canary_share=share)


def with_shadow(head: CatalogueHead | None, manifest: Manifest) -> CatalogueHead:
    """*manifest*'s version runs beside the stable one and never answers."""
    known = _on_trial(head, manifest.version)
    return _with(known, {manifest.version: manifest}, shadow=manifest.version)


def without_canary(head: CatalogueHead) -> CatalogueHead:
    """The stable version answers everybody."""
    return _with(head, {}, canary=None, canary_share=0.0)


def without_shadow(head: CatalogueHead) -> CatalogueHead:
    """Nothing runs beside the stable version."""
    return _with(head, {}, shadow=None)


def _on_trial(head: CatalogueHead | None, version: int) -> CatalogueHead:
    if head is None:
        raise RepositoryError("a head without a live version has nothing to be compared with; promote one first")
    if version == head.stable:
        raise RepositoryError(f"version {version} is the one that answers already")
    return head


def _without_trial(head: CatalogueHead, version: int) -> CatalogueHead:
    ended = without_canary(head) if head.canary == version else head
    return without_shadow(ended) if ended.shadow == version else ended


def _with(head: CatalogueHead, manifests: Manifests, **changes: object) -> CatalogueHead:
    """*head* changed, with the manifests of the versions in a role and no others."""
    fields = {name: changes.get(name, getattr(head, name)) for name in ("stable", "canary", "shadow", "previous")}
    known = {**head.versions, **manifests}
    kept = {version: known[version] for version in sorted({v for v in fields.values() if isinstance(v, int)}) if version in known}
    return msgspec.structs.replace(head, versions=kept, **changes)
