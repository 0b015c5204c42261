"""Which versions answer a request: heads by name, tag or default; the stable version, the canary or one that is named.

Pure: a plan is made of the catalogue, the trunk and the request, and nothing is waited for.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import astuple

from clients import InvalidRequest, NotFound
from clients.wire import chain
from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, View, views_of
from gateway.classification import Classification
from gateway.ports import LiveTrunk
from gateway.preprocess import Reading, reading_of

MAX_NAMES: Final = 50
"""Of known heads in the message that one is not known."""

MAX_KEPT: Final = 256

MAX_SCORES: Final = 2**20
"""Of one answer: they become objects and then JSON, all of them at once."""


@dataclass(frozen=True, slots=True)
class ChosenHead:
    """The version that answers for a head, the one that runs in its shadow, or why the head cannot answer on this trunk.

    *is_exact*: it is a canary, or was asked for by itself, so nothing that another version said before may answer in its place.
    """

    manifest: Manifest
    shadow: Manifest | None = None
    refused: str = ""
    is_exact: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """*heads* by the words they were asked for with; *readings* are the ways they want texts to be read, each once."""

    heads: dict[str, ChosenHead]
    versions: tuple[Manifest, ...]
    """Those that answer, each once: a head may be asked for in two words."""
    readings: tuple[Reading, ...]
    exact: frozenset[tuple[str, int]] = frozenset()
    """Name and version of those that must answer themselves, see `ChosenHead`."""
    shadows: tuple[tuple[Manifest, Manifest], ...] = ()
    """Each version that has a shadow, and that."""


class Planner:
    """Makes plans, and keeps those that do not depend on who asks for as long as catalogue and trunk stay what they are."""

    def __init__(self, *, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._made_of: tuple[Catalogue, LiveTrunk] | None = None
        self._kept: dict[object, Plan] = {}

    def plan(self, catalogue: Catalogue, trunk: LiveTrunk, request: Classification) -> Plan:
        """The plan for *request*.

        Raises:
            NotFound: a head, version or tag is unknown; the message names known heads.
            InvalidRequest: an empty list of heads or tags.
        """
        if self._made_of is None or self._made_of[0] is not catalogue or self._made_of[1] is not trunk:
            self._made_of = (catalogue, trunk)
            self._kept.clear()
        key = (_words(request.heads), _words(request.tags))
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        plan = _plan_of(choose(catalogue, trunk, request, self._draw))
        if len(self._kept) < MAX_KEPT and _length(key) <= len(plan.heads) and not _is_drawn(catalogue, plan):
            self._kept[key] = plan
        return plan


def choose(
    catalogue: Catalogue, trunk: LiveTrunk, request: Classification, draw: Callable[[], float] = random.random
) -> dict[str, ChosenHead]:
    """The heads that *request* asks for, by its words for them; see `Planner.plan` for what it raises."""
    words = _asked(catalogue, request)
    chosen = {}
    for word in words:
        head = catalogue.heads.get(_name(word))
        manifest = None if head is None else _version(head, word, request.sticky_key, draw)
        if head is None or manifest is None:
            known = ", ".join(sorted(catalogue.heads)[:MAX_NAMES]) or "none yet"
            raise NotFound(f"a head, or the version of one, that was asked for is unknown; known heads: {known}")
        # A version that is asked for by itself is being looked at: what runs beside the stable one is no business of that.
        shadow = head.versions[head.shadow] if head.shadow is not None and "@" not in word else None
        shadow = shadow if shadow is not None and shadow is not manifest and not refusal(shadow, trunk) else None
        is_exact = manifest.version != head.stable or word.partition("@")[2] not in {"", "stable"}
        chosen[word] = ChosenHead(manifest, shadow, refusal(manifest, trunk), is_exact)
    return chosen


def check_size(plan: Plan, request: Classification) -> None:
    """InvalidRequest where the answer would be too long: texts, heads and labels multiply."""
    num_scores = len(plan.heads)
    if request.with_scores or request.top_k or request.threshold is not None:
        num_scores = sum(_num_scores(head.manifest, request) for head in plan.heads.values())
    if num_scores * len(request.texts) > MAX_SCORES:
        said = f"{num_scores} scores for each of {len(request.texts)} texts are more than the {MAX_SCORES} of one answer"
        raise InvalidRequest(f"{said}; send fewer texts at once, ask fewer heads, or use top_k")


def _num_scores(manifest: Manifest, request: Classification) -> int:
    """The most of one head in a text's answer. Of what passes a threshold, and of what is above, *top_k* cuts nothing."""
    num_labels = len(manifest.labels)
    ranked = min(num_labels, request.top_k or num_labels) if request.with_scores or request.top_k else 1
    passing = num_labels if manifest.task == "multi_label" and request.threshold is not None else 0
    above = num_labels if manifest.label_separator and request.with_scores else 0
    return ranked + passing + above


def refusal(manifest: Manifest, trunk: LiveTrunk) -> str:
    """Why *manifest*'s version cannot answer on *trunk*; "" when it can.

    Asked for a layer that it does not compute, the trunk would answer nobody: so the head is refused before.
    """
    if manifest.trunk.fingerprint != trunk.fingerprint:
        return f"head {manifest.name!r} was trained on another trunk ({manifest.trunk.name}); train it again on this one"
    missing = [str(view.layer) for view in views_of(manifest) if view.layer not in trunk.layers]
    if missing:
        said = f"head {manifest.name!r} reads layer {', '.join(missing)}, which the embedding service does not compute"
        return f"{said}; start it with --layers"
    if fault := chain.fault_of(manifest.preprocess):
        return f"head {manifest.name!r} cannot be given texts as it was trained on: {fault}"
    return ""


def is_canary(name: str, version: int, sticky_key: str, share: float) -> bool:
    """Whether callers with *sticky_key* are among the *share*, 0 to 1, that gets the canary: the same for the whole of a rollout.

    The version is part of the draw, so that the next canary is not tried on the same callers again.
    """
    digest = hashlib.blake2b(f"{name}\0{version}\0{sticky_key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def views_for(versions: Sequence[Manifest]) -> tuple[View, ...]:
    """The views that *versions* read, each once; the same ones in the same order, whatever that of *versions* is."""
    views = {view for manifest in versions for view in views_of(manifest)}
    return tuple(views) if len(views) == 1 else tuple(sorted(views, key=astuple))


def _asked(catalogue: Catalogue, request: Classification) -> list[str]:
    if request.heads is None and request.tags is None:
        return sorted(name for name, head in catalogue.heads.items() if head.default)
    if not request.heads and not request.tags:
        raise InvalidRequest("heads and tags are empty; leave them out for the default heads")
    tags = set(request.tags or ())
    known = {tag for head in catalogue.heads.values() for tag in head.tags}
    if not tags <= known:
        raise NotFound(f"a tag that was asked for is unknown; known tags: {', '.join(sorted(known)[:MAX_NAMES]) or 'none yet'}")
    tagged = sorted(name for name, head in catalogue.heads.items() if tags.intersection(head.tags))
    return list(dict.fromkeys([*(request.heads or ()), *tagged]))


def _version(head: CatalogueHead, word: str, sticky_key: str, draw: Callable[[], float]) -> Manifest | None:
    """The version that *word* means; None where there is none such."""
    name, at, which = word.partition("@")
    if not at:
        return head.versions[_drawn(name, head, sticky_key, draw)]
    roles = {"stable": head.stable, "canary": head.canary, "shadow": head.shadow, "previous": head.previous}
    number = roles.get(which)
    if number is None and which.isascii() and which.isdigit() and len(which) < 19:
        number = int(which)
    return None if number is None else head.versions.get(number)


def _drawn(name: str, head: CatalogueHead, sticky_key: str, draw: Callable[[], float]) -> int:
    if head.canary is None or not head.canary_share:
        return head.stable
    if sticky_key:
        return head.canary if is_canary(name, head.canary, sticky_key, head.canary_share) else head.stable
    return head.canary if draw() < head.canary_share else head.stable


def _plan_of(chosen: dict[str, ChosenHead]) -> Plan:
    answering = [head for head in chosen.values() if not head.refused]
    versions = {_version_of(head): head.manifest for head in answering}
    readings = tuple(dict.fromkeys(map(reading_of, versions.values())))
    exact = frozenset(_version_of(head) for head in answering if head.is_exact)
    shadows = {_version_of(head): (head.manifest, head.shadow) for head in answering if head.shadow is not None}
    return Plan(chosen, tuple(versions.values()), readings, exact, tuple(shadows.values()))


def _version_of(head: ChosenHead) -> tuple[str, int]:
    return head.manifest.name, head.manifest.version


def _words(words: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if words is None else tuple(words)


def _length(key: tuple[tuple[str, ...] | None, tuple[str, ...] | None]) -> int:
    """How many words were said: who says one twice is not worth remembering."""
    return sum(len(words) for words in key if words is not None)


def _name(word: str) -> str:
    return word.partition("@")[0]


def _is_drawn(catalogue: Catalogue, plan: Plan) -> bool:
    """Whether another caller with the same words may get another plan."""
    heads = (catalogue.heads[_name(word)] for word in plan.heads)
    return any(head.canary is not None and head.canary_share > 0 for head in heads)
