"""A file of hashed keys: who is calling, and what they may do. One form for all services.

A key is `tlk_ID_SECRET`. The secret is 256 random bits, so a fast hash is enough: nobody can try them all. The file holds only
the SHA-256 of the whole key; two keys of one name may be valid at once, which is how one is exchanged for another.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

import msgspec

from clients.wire.decoding import NOT_DECODED
from clients.wire.rates import Rate

Scope = Literal["classify", "embed", "feedback", "train", "admin"]
SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))
"""*classify* asks the gateway or a head server, *embed* the embedding service, *feedback* and *train* the control plane;
*admin* stands for all."""

LOOK_SECONDS: Final = 1.0
"""How long a change of the file may go unseen, so that not every request asks the disk."""

MAX_CACHED_KEYS: Final = 1_024

_HEADER: Final = re.compile(rb"(?i:bearer) +(tlk_([0-9a-f]{16})_[A-Za-z0-9_-]{43}) *")
_NOBODY: Final = hashlib.sha256(b"nobody").hexdigest()


class KeysError(Exception):
    """The file of keys cannot be used as asked; the message is one sentence and holds no key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose a request is, and what they may do. *rate* is in texts; None: as many as the service can take."""

    name: str
    scopes: frozenset[Scope]
    rate: Rate | None = None

    @property
    def is_admin(self) -> bool:
        """Whether it may see what others own."""
        return "admin" in self.scopes

    def may(self, scope: Scope) -> bool:
        """Whether it has *scope*."""
        return scope in self.scopes or "admin" in self.scopes


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key as the file has it. *expires* None: never; *texts_per_second* None: no quota; *burst* None: ten seconds' worth."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...]
    expires: datetime | None = None
    texts_per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None
    burst: Annotated[float, msgspec.Meta(ge=1)] | None = None

    @property
    def caller(self) -> Caller:
        """Whose it is."""
        rate = None
        if self.texts_per_second is not None:
            rate = Rate(self.texts_per_second, self.burst or max(1.0, 10 * self.texts_per_second))
        return Caller(self.name, frozenset(self.scopes), rate)

    def is_over(self, now: float) -> bool:
        """Whether its time is over at *now*, seconds since 1970."""
        if self.expires is None:
            return False
        expires = self.expires if self.expires.tzinfo else self.expires.replace(tzinfo=UTC)
        return expires.timestamp() <= now


class _KeyList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[KeyEntry, ...] = ()


class KeysFile:
    """The keys in *path*, read again when the file has changed.

    Args:
        path: the file.
        clock: seconds since 1970.
        look_seconds: how long a change may go unseen; 0: the file's state is asked for with each key.

    Raises:
        KeysError: it cannot be read, or is no file of keys.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, look_seconds: float = LOOK_SECONDS) -> None:
        self._path = path
        self._clock = clock
        self._look_seconds = look_seconds
        self._looked = clock()
        self._seen = _stamp(path)
        self._entries = {entry.id: entry for entry in read_keys(path)}
        self._known: dict[bytes, tuple[KeyEntry, Caller]] = {}

    def caller_of(self, authorization: bytes) -> Caller | None:
        """Who sent this Authorization header (b"" where there was none); None: nobody known.

        A header that was right before is looked up as a whole, which takes a microsecond: by Python's keyed hash of it, so
        that time tells nothing of the keys that are there.
        """
        now = self._clock()
        if not 0 <= now - self._looked < self._look_seconds:
            self._refresh(now)
        entry, caller = self._known.get(authorization) or self._verified(authorization)
        return None if entry is None or entry.is_over(now) else caller

    def _verified(self, authorization: bytes) -> tuple[KeyEntry, Caller] | tuple[None, None]:
        match = _HEADER.fullmatch(authorization)
        if match is None:
            return None, None
        entry = self._entries.get(match[2].decode())
        # The comparison takes place for unknown ids too, so that time does not tell them apart.
        is_right = hmac.compare_digest(_hash(match[1]), entry.sha256 if entry else _NOBODY)
        if entry is None or not is_right:
            return None, None
        if len(self._known) >= MAX_CACHED_KEYS:
            self._known.clear()
        found = self._known[authorization] = entry, entry.caller
        return found

    def _refresh(self, now: float) -> None:
        """A file that is gone or broken leaves the keys as they were: a slip of an editor locks nobody out and lets nobody in."""
        self._looked = now
        with contextlib.suppress(KeysError):
            stamp = _stamp(self._path)
            if stamp != self._seen:
                self._entries = {entry.id: entry for entry in read_keys(self._path)}
                self._known.clear()
                self._seen = stamp


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise KeysError(f"the keys in {path} cannot be read: {error.strerror}") from None
    return found.st_mtime_ns, found.st_ino, found.st_size


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The entries of the file at *path*.

    Raises:
        KeysError: it cannot be read, or is no file of keys.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=_KeyList).keys
    except OSError as error:
        raise KeysError(f"the keys in {path} cannot be read: {error.strerror}") from None
    except NOT_DECODED:
        raise KeysError(f"{path} is not a file of keys; make one with `trunkline keys add`") from None


def add_key(
    path: Path,
    name: str,
    scopes: Iterable[Scope],
    expires: datetime | None = None,
    *,
    texts_per_second: float | None = None,
    burst: float | None = None,
) -> str:
    """A new key, its hash added to the file at *path*, which is made where there is none. It is told this once and never again.

    Raises:
        KeysError: the name, the scopes or the quota cannot be, or the file is no file of keys.
    """
    entries = read_keys(path) if path.exists() else ()
    key_id = secrets.token_hex(8)
    key = f"tlk_{key_id}_{secrets.token_urlsafe(32)}"
    fields = {
        "id": key_id,
        "name": name,
        "sha256": _hash(key.encode()),
        "scopes": tuple(scopes),
        "expires": expires,
        "texts_per_second": texts_per_second,
        "burst": burst,
    }
    try:
        entry = msgspec.convert(fields, type=KeyEntry, strict=False)
    except msgspec.ValidationError as error:
        raise KeysError(_what_is_wrong(str(error))) from None
    _write(path, (*entries, entry))
    return key


def revoke_keys(path: Path, name_or_id: str) -> int:
    """Take the key with this id, or all keys of this name, out of the file at *path*; how many these were.

    Raises:
        KeysError: it is no file of keys.
    """
    entries = read_keys(path)
    left = tuple(entry for entry in entries if name_or_id not in {entry.id, entry.name})
    if len(left) < len(entries):
        _write(path, left)
    return len(entries) - len(left)


def _what_is_wrong(told: str) -> str:
    if "$.scopes" in told:
        return f"a key's scopes are some of {', '.join(get_args(Scope))}"
    if "$.texts_per_second" in told or "$.burst" in told:
        return "a key's quota is more than 0 texts a second, with a burst of at least 1"
    return "a key's name is 1 to 64 of a-z, 0-9, _ and -, a letter or digit first"


def _write(path: Path, entries: tuple[KeyEntry, ...]) -> None:
    """All of it or nothing, and only its owner may read it: a service that looks meanwhile sees the one or the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(_KeyList(entries)), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _hash(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
