"""May this caller do that, now? One decision for HTTP and gRPC, for all services; nothing here waits.

A good key is always let in by its own right. Bad ones are counted by the address they come from, so that those behind one
address with a good key go on unharmed while somebody there tries keys.
"""

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from clients.wire.keys import Caller, KeysFile, Scope
from clients.wire.rates import Rates

MAX_FAILURES_PER_MINUTE: Final = 30.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not. *retry_after*: seconds after which it may be otherwise; None: asking again does not help."""

    code: Literal["unauthenticated", "permission_denied", "not_found", "method_not_allowed", "overloaded"]
    message: str
    retry_after: float | None = None


NO_KEY: Final = Refusal("unauthenticated", "a valid key is needed: send it as `Authorization: Bearer tlk_…`")
NO_ROUTE: Final = Refusal("not_found", "there is no such route")
NO_METHOD: Final = Refusal("method_not_allowed", "that method is not for this route")


class Guard:
    """The keys of one service, its bound on bad ones, and the quotas of its callers. Owner of both counts."""

    def __init__(
        self,
        keys: KeysFile,
        *,
        max_failures_per_minute: float = MAX_FAILURES_PER_MINUTE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._failures = Rates(max_failures_per_minute / 60, max_failures_per_minute, clock=clock)
        self._quotas = Rates(1.0, 1.0, clock=clock)

    def caller_of(self, authorization: bytes, scope: Scope | None) -> Caller | Refusal:
        """Who sent this Authorization header, if they may do what takes *scope*; None: what anybody with a key may."""
        caller = self._keys.caller_of(authorization)
        if caller is None:
            return NO_KEY
        if scope is not None and not caller.may(scope):
            return Refusal("permission_denied", f"this key may not do that; it takes one with the scope {scope}")
        return caller

    def failed(self, refusal: Refusal, address: str) -> Refusal:
        """What to tell *address* instead of *refusal*: to stay away, where it has sent too many bad keys."""
        if refusal is not NO_KEY:
            return refusal
        wait = self._failures.take(address)
        return Refusal("overloaded", "too many bad keys from this address", wait) if wait else refusal

    def charge(self, caller: Caller, num_texts: int) -> Refusal | None:
        """Take *num_texts*, all or none, from the caller's quota. Keys of one name share it."""
        if caller.rate is None or not num_texts:
            return None
        wait = self._quotas.spend(caller.name, num_texts, caller.rate)
        return Refusal("overloaded", "the quota of this key is used up for now", wait) if wait else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach *host*, a name or an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def why_not_listen(host: str, keys: Path | str | None, flag: str, *, insecure: bool) -> str:
    """Why a service must not listen on *host* with *keys*, whose setting is called *flag*; "" when it may."""
    if keys or insecure or is_loopback(host):
        return ""
    return f"host is beyond loopback and there are no keys; give {flag} FILE, or --insecure to let all in"
