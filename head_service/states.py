"""What a version is besides being published: a mark beside it, and what follows for the head server, as pure functions.

The mark of version 3 is the file `3.state.json` in the head's folder; a version without one is simply published. Servers never
see marks: TensorFlow Serving looks at names that are numbers alone.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from clients.wire.catalogue import CatalogueHead
from clients.wire.decoding import NOT_DECODED

State = Literal["reserved", "candidate", "retiring", "removing", "removed", "refused"]

CANDIDATE_SECONDS: Final = 3_600.0
"""A candidate whose promotion never came is loaded for no longer."""

_MARK: Final = re.compile(r"([1-9][0-9]*)\.state\.json")
_ROLES: Final = ("stable", "canary", "shadow", "previous")


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*state* of a version *since* a time, in seconds since the epoch.

    reserved: its number is taken, it is being written. candidate: to be loaded, so that it can be checked. retiring: it had a
    role until then, and stays loaded until every gateway has moved on. removing: the same, and then its files go. removed:
    gone; the mark keeps its number from being given again. refused: the gate said no.
    """

    state: State
    since: float
    by: str = ""
    reason: str = ""


def mark_name(version: int) -> str:
    """The file name of a version's mark."""
    return f"{version}.state.json"


def marked_version(name: str) -> int | None:
    """The version whose mark a file of that *name* is; None when it is none."""
    match = _MARK.fullmatch(name)
    return int(match[1]) if match else None


def decode_mark(content: bytes) -> Mark:
    """The mark; one that cannot be read keeps its version out, which is the safe side."""
    try:
        return msgspec.json.decode(content, type=Mark)
    except NOT_DECODED as error:
        return Mark("refused", 0.0, reason=f"its state file cannot be read: {error}")


def roles(head: CatalogueHead | None) -> dict[int, list[str]]:
    """The roles of each version that has one, by version; *previous* is one."""
    found: dict[int, list[str]] = {}
    for role in _ROLES if head else ():
        version = getattr(head, role)
        if version is not None:
            found.setdefault(version, []).append(role)
    return found


def is_over(mark: Mark, now: float, grace_seconds: float) -> bool:
    """Whether a mark that keeps its version loaded for a while does so no longer."""
    match mark.state:
        case "candidate":
            return now - mark.since >= CANDIDATE_SECONDS
        case "retiring" | "removing":
            return now - mark.since >= grace_seconds
        case _:
            return False


def loaded(
    head: CatalogueHead | None, marks: Mapping[int, Mark], published: Iterable[int], *, now: float, grace_seconds: float
) -> set[int]:
    """The versions of a head that its server is to hold: those with a role, candidates, and those not gone for long."""
    kept = {
        version
        for version, mark in marks.items()
        if mark.state in {"candidate", "retiring", "removing"} and not is_over(mark, now, grace_seconds)
    }
    return (kept | roles(head).keys()) & set(published)


def expendable(head: CatalogueHead | None, marks: Mapping[int, Mark], published: Iterable[int], keep: int) -> set[int]:
    """The published versions that are neither among the last *keep* nor in a role nor on their way into or out of one."""
    numbers = sorted(published)
    busy = {version for version, mark in marks.items() if mark.state in {"reserved", "candidate", "retiring", "removing"}}
    return set(numbers[: max(0, len(numbers) - keep)]) - busy - roles(head).keys()


def describe(head: CatalogueHead | None, version: int, mark: Mark | None) -> str:
    """A version's state in a word or three, for a person."""
    held = roles(head).get(version, [])
    if "stable" in held:
        return "live"
    words = [*held, *([mark.state] if mark and not held else [])]
    return ", ".join(words) or "published"
