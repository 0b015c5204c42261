"""A guard in front of an ASGI application. Pure ASGI: it does not stand between a request and the caller's hanging up."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from clients.wire.guard import NO_METHOD, NO_ROUTE, Guard, Refusal
from clients.wire.keys import Caller, Scope
from clients.wire.metadata import API_KEY, AUTHORIZATION, RETRY_AFTER, RETRY_AFTER_MS

AsgiScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[AsgiScope, Receive, Send], Awaitable[None]]

ENTRY: Final = "trunkline.entry"
"""Where a request's `Entry` is in its ASGI scope, when it came by a guard."""

STATUS: Final = {
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "overloaded": 429,
}

_AUTHORIZATION: Final = AUTHORIZATION.encode()
_CREDENTIALS: Final = (_AUTHORIZATION, API_KEY.encode())


@dataclass(frozen=True, slots=True)
class Entry:
    """Who came in, and by which guard."""

    caller: Caller
    guard: Guard

    def charge(self, num_texts: int) -> Refusal | None:
        """See `Guard.charge`."""
        return self.guard.charge(self.caller, num_texts)


class Unguarded:
    """The type of `OPEN`."""


OPEN: Final = Unguarded()
"""In a table of routes, in place of a scope: no key is asked for."""

Needed = Scope | Unguarded


class RouteTable:
    """What each route takes. What is not in it is refused.

    Args:
        rules: by path, as Starlette writes it (`{name}` is one segment, `{name:path}` all that follows), a scope by method. GET
            stands for HEAD too.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, Needed]]) -> None:
        expanded = {path: _with_head(methods) for path, methods in rules.items()}
        self._exact = {path: methods for path, methods in expanded.items() if "{" not in path}
        self._patterns = [(_pattern(path), methods) for path, methods in expanded.items() if "{" in path]

    def needed(self, method: str, path: str) -> Needed | Refusal:
        """What the request takes, or that there is no such route."""
        methods = self._exact.get(path)
        if methods is None:
            methods = next((methods for pattern, methods in self._patterns if pattern.fullmatch(path)), None)
        if methods is None:
            return NO_ROUTE
        return methods.get(method, NO_METHOD)


Needs = Callable[[str, str], Needed | Refusal]
"""(method, path) -> what it takes, or why nobody may."""


RefusalBody = Callable[[Refusal, AsgiScope], tuple[bytes, dict[str, str]]]
"""A refusal as the protocol tells it: JSON, and headers beside those of all refusals."""


class GuardedHttp:
    """*app*, with a key asked for.

    Args:
        app: the application.
        guard: who may.
        needs: `RouteTable.needed`, or a rule like it.
        body_of: how refusals are told.
    """

    def __init__(self, app: AsgiApp, guard: Guard, needs: Needs, body_of: RefusalBody) -> None:
        self._app = app
        self._guard = guard
        self._needs = needs
        self._body_of = body_of

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            # There are no routes for websockets; what is not in the table is refused.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        needed = self._needs(scope["method"], scope["path"])
        if needed is OPEN:
            await self._app(scope, receive, send)
            return
        # Which routes there are is told to those alone who have a key, whatever it is for.
        wanted: Scope | None = needed if isinstance(needed, str) else None
        found = self._guard.caller_of(credentials_of(scope["headers"]), wanted)
        refusal = needed if isinstance(needed, Refusal) and isinstance(found, Caller) else found
        if isinstance(refusal, Caller):
            scope[ENTRY] = Entry(refusal, self._guard)
            await self._app(scope, receive, send)
            return
        assert isinstance(refusal, Refusal)
        await self._refuse(self._guard.failed(refusal, _address(scope)), scope, send)

    async def _refuse(self, refusal: Refusal, scope: AsgiScope, send: Send) -> None:
        body, more = self._body_of(refusal, scope)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in {**refusal_headers(refusal), **more}.items()]
        await send({"type": "http.response.start", "status": STATUS[refusal.code], "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def credentials_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The Authorization header, or the one that `x-api-key` stands for; b"" when there is none, or more than one of them."""
    found = b""
    for name, value in headers:
        if name in _CREDENTIALS:
            if found:
                return b""
            found = value if name == _AUTHORIZATION else b"Bearer " + value
    return found


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """What belongs to a refusal beside its body: when to come back, or how to say who one is."""
    if refusal.retry_after is not None:
        after = refusal.retry_after
        return {RETRY_AFTER: str(max(1, round(after))), RETRY_AFTER_MS: str(max(1, round(after * 1000)))}
    return {"www-authenticate": "Bearer"} if refusal.code == "unauthenticated" else {}


def charge(scope: AsgiScope, num_texts: int) -> Refusal | None:
    """Take *num_texts* from the quota of whoever sent the request; None where there is enough, or no guard."""
    entry: Entry | None = scope.get(ENTRY)
    return None if entry is None else entry.charge(num_texts)


def _with_head(methods: Mapping[str, Needed]) -> dict[str, Needed]:
    return {**({"HEAD": methods["GET"]} if "GET" in methods else {}), **methods}


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)(:path)?\}", path)
    written = [re.escape(part) for part in parts[::3]]
    kinds = [".*" if kind else "[^/]+" for kind in parts[2::3]]
    return re.compile("".join(text + kind for text, kind in zip(written, [*kinds, ""], strict=True)), re.DOTALL)


def _address(scope: AsgiScope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
