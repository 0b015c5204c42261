"""Who is calling, and what they may do: the seam, and its implementation by a file of hashed keys.

A key is `tlk_ID_SECRET`. The secret is 256 random bits, so a fast hash is enough: nobody can try them all. The file holds only
the SHA-256 of the whole key; two keys of one name may be valid at once, which is how one is exchanged for another.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import msgspec

from clients import PermissionDenied, Unauthenticated
from head_service.control.errors import ControlError
from head_service.repository import replace_file

Scope = Literal["feedback", "train", "admin"]
SCOPES: Final[frozenset[Scope]] = frozenset({"feedback", "train", "admin"})
_KEY: Final = re.compile("tlk_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_NOBODY: Final = hashlib.sha256(b"nobody").hexdigest()


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose the runs and rows of a request are. The scope admin stands for all."""

    name: str
    scopes: frozenset[Scope]

    @property
    def is_admin(self) -> bool:
        """Whether it may see what others own."""
        return "admin" in self.scopes

    @property
    def owner(self) -> str | None:
        """Whose things it may see; None: everybody's."""
        return None if self.is_admin else self.name

    def require(self, scope: Scope) -> None:
        """Refuse who may not.

        Raises:
            PermissionDenied: it lacks *scope*.
        """
        if not self.is_admin and scope not in self.scopes:
            raise PermissionDenied(f"this key may not do that; it takes one with the scope {scope}")


class Authenticator(Protocol):
    """Called once a request, on the event loop: it must not wait."""

    def caller_of(self, authorization: str) -> Caller:
        """Who sent this Authorization header ("" where there was none).

        Raises:
            Unauthenticated: nobody known.
        """
        ...


class Everybody:
    """No keys: whoever reaches the port may do all. For loopback."""

    def caller_of(self, authorization: str) -> Caller:
        """See `Authenticator`."""
        del authorization
        return Caller("local", SCOPES)


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key as the file has it. *expires*: seconds since 1970; None: never."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...]
    expires: datetime | None = None


class _KeyList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[KeyEntry, ...] = ()


class KeysFile:
    """The keys in *path*, read again when the file has changed. *clock*: seconds since 1970."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._seen: tuple[int, int] = (0, 0)
        self._entries: dict[str, KeyEntry] = {}
        self._read(self._stamp())

    def caller_of(self, authorization: str) -> Caller:
        """See `Authenticator`."""
        refusal = Unauthenticated("a valid key is needed: send it as `Authorization: Bearer tlk_…`")
        scheme, _, given = authorization.partition(" ")
        match = _KEY.fullmatch(given.strip())
        if scheme.lower() != "bearer" or match is None:
            raise refusal
        self._refresh()
        entry = self._entries.get(match[1])
        # The comparison takes place for unknown ids too, so that time does not tell them apart.
        is_right = hmac.compare_digest(_hash(match[0]), entry.sha256 if entry else _NOBODY)
        if entry is None or not is_right or _is_over(entry, self._clock()):
            raise refusal
        return Caller(entry.name, frozenset(entry.scopes))

    def _refresh(self) -> None:
        """A file that is gone or broken leaves the keys as they were: a slip of an editor locks nobody out and lets nobody in."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._read(stamp)
        except (OSError, ControlError):
            return

    def _stamp(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise ControlError(f"the keys in {self._path} cannot be read: {error.strerror}") from None
        return found.st_mtime_ns, found.st_ino

    def _read(self, stamp: tuple[int, int]) -> None:
        self._entries = {entry.id: entry for entry in read_keys(self._path)}
        self._seen = stamp


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The entries of the file at *path*.

    Raises:
        ControlError: it cannot be read, or is no file of keys.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=_KeyList).keys
    except OSError as error:
        raise ControlError(f"the keys in {path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ControlError(f"{path} is not a file of keys; make one with `python -m head_service.control key`") from None


def add_key(path: Path, name: str, scopes: tuple[Scope, ...], expires: datetime | None) -> str:
    """A new key, its hash added to the file at *path*; it is told this once and never again.

    Raises:
        ControlError: the name cannot be one, or the file is no file of keys.
    """
    entries = read_keys(path) if path.exists() else ()
    key_id = secrets.token_hex(8)
    key = f"tlk_{key_id}_{secrets.token_urlsafe(32)}"
    try:
        entry = msgspec.convert(
            {"id": key_id, "name": name, "sha256": _hash(key), "scopes": scopes, "expires": expires}, type=KeyEntry, strict=False
        )
    except msgspec.ValidationError:
        raise ControlError("a key's name is 1 to 64 of a-z, 0-9, _ and -, a letter or digit first") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, msgspec.json.format(msgspec.json.encode(_KeyList((*entries, entry))), indent=2))
    path.chmod(0o600)
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _is_over(entry: KeyEntry, now: float) -> bool:
    if entry.expires is None:
        return False
    expires = entry.expires if entry.expires.tzinfo else entry.expires.replace(tzinfo=UTC)
    return expires.timestamp() <= now
