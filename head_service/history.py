"""What happened to a head: one JSON line an event in `history.jsonl` of its folder, the last ones kept."""

import getpass
import socket
from datetime import UTC, datetime
from typing import Final

import msgspec

from clients.wire.decoding import NOT_DECODED
from head_service.store import Store

HISTORY: Final = "history.jsonl"
MAX_EVENTS: Final = 500


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """*who* did *what*, *when* (ISO 8601, UTC). *version* it was about; *before* and *after* are the stable versions then."""

    when: str
    who: str
    what: str
    version: int | None = None
    before: int | None = None
    after: int | None = None
    reason: str = ""


def append(store: Store, name: str, event: Event) -> None:
    """Add *event* to head *name*'s history, durably. The lock is held."""
    key = f"{name}/{HISTORY}"
    stored = store.read(key)
    lines = stored.content.splitlines()[-(MAX_EVENTS - 1) :] if stored else []
    store.write(key, b"".join(line + b"\n" for line in [*lines, msgspec.json.encode(event)]), before=stored)


def events(store: Store, name: str) -> list[Event]:
    """The events of head *name*, the oldest first; a line that cannot be read is left out."""
    stored = store.read(f"{name}/{HISTORY}")
    found = []
    for line in stored.content.splitlines() if stored else ():
        try:
            found.append(msgspec.json.decode(line, type=Event))
        except NOT_DECODED:
            continue
    return found


def moment(seconds: float) -> str:
    """*seconds* since the epoch as an event says it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def actor() -> str:
    """Who runs this process, for an event: user@host."""
    try:
        user = getpass.getuser()
    # Of a user id without a name, as in a container, Python's versions say one or the other.
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
