"""Who is calling, and what they may do: the seam, and its implementation by the file of keys that all services share."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from clients import PermissionDenied, Unauthenticated
from clients.wire import keys
from clients.wire.keys import SCOPES, KeysError, Scope
from head_service.control.errors import ControlError

__all__ = ["SCOPES", "Authenticator", "Caller", "Everybody", "KeysFile", "Scope", "add_key"]


@dataclass(frozen=True, slots=True)
class Caller(keys.Caller):
    """Whose the runs and rows of a request are. The scope admin stands for all."""

    @property
    def owner(self) -> str | None:
        """Whose things it may see; None: everybody's."""
        return None if self.is_admin else self.name

    def require(self, scope: Scope) -> None:
        """Refuse who may not.

        Raises:
            PermissionDenied: it lacks *scope*.
        """
        if not self.may(scope):
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


class KeysFile:
    """The keys in *path*, read again when the file has changed. *clock*: seconds since 1970."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        try:
            self._keys = keys.KeysFile(path, clock=clock, look_seconds=0.0)
        except KeysError as error:
            raise ControlError(str(error)) from None

    def caller_of(self, authorization: str) -> Caller:
        """See `Authenticator`."""
        caller = self._keys.caller_of(authorization.encode("latin-1", "replace"))
        if caller is None:
            raise Unauthenticated("a valid key is needed: send it as `Authorization: Bearer tlk_…`")
        return Caller(caller.name, caller.scopes, caller.rate)


def add_key(path: Path, name: str, scopes: tuple[Scope, ...], expires: datetime | None) -> str:
    """A new key, its hash added to the file at *path*; it is told this once and never again.

    Raises:
        ControlError: the name cannot be one, or the file is no file of keys.
    """
    try:
        return keys.add_key(path, name, scopes, expires)
    except KeysError as error:
        raise ControlError(str(error)) from None
