"""Refusing while the gateway is full, before a byte of the body is read: most of what a refusal costs is what is done before it.

Only the bound that any request would meet is looked at here; what a request's own size or class makes of it is told later.

There are two doors. `OuterDoor` stands before the application, where a refusal costs less; `Door` stands behind the
application's layers, for where one of them has something to tell of a request or to add to its answer.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from clients import Overloaded, TrunklineError
from gateway.exchange import REQUEST_ID_KEY, current_request_id, new_request_id, request_id_in
from gateway.guarding import secured
from gateway.routes import State

Tell = Callable[[TrunklineError, str], Response]
"""An error, and its request's id, in a protocol's own shape."""


class Door:
    """*app*, but for what is POSTed to a path of *tells* while not even one text would be let in."""

    def __init__(self, app: ASGIApp, tells: Mapping[str, Tell]) -> None:
        self._app = app
        self._tells = tells

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        tell = self._tells.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if tell is None:
            await self._app(scope, receive, send)
            return
        state: State = scope["state"]["gateway"]
        seconds = state.admission.seconds_until_room(1)
        if seconds is None:
            await self._app(scope, receive, send)
            return
        answer = tell(_refused(state, seconds), current_request_id())
        await answer(scope, receive, send)


class OuterDoor:
    """The same, before the application: an `http_server.Door`. Owner of the count of whom it let in; used from the event loop.

    It asks for no key: who has none, or a wrong one, learns that the gateway is full until it is not, and spends nothing of it.
    """

    def __init__(self, tells: Mapping[str, Tell]) -> None:
        self._tells = tells
        self._num_let_in = 0
        """In this turn of the loop. They take their permits after it: a thousand would find room for one."""

    def __call__(self, path: str, headers: Sequence[tuple[bytes, bytes]], app_state: Mapping[str, Any]) -> Response | None:
        """See `http_server.Door`."""
        tell = self._tells.get(path)
        if tell is None:
            return None
        state: State = app_state["gateway"]
        seconds = state.admission.seconds_until_room(self._num_let_in + 1)
        if seconds is None:
            self._let_in()
            return None
        request_id = request_id_in(dict(headers).get(REQUEST_ID_KEY, b"")) or new_request_id()
        answer = tell(_refused(state, seconds), request_id)
        answer.raw_headers = secured(answer.raw_headers)
        return answer

    def _let_in(self) -> None:
        if not self._num_let_in:
            # Before the work on the first of them, and so before anybody else is looked at.
            asyncio.get_running_loop().call_soon(self._forget)
        self._num_let_in += 1

    def _forget(self) -> None:
        self._num_let_in = 0


def _refused(state: State, seconds: float) -> Overloaded:
    """Counted, and why: there is room for a text only in *seconds*."""
    state.telemetry.refused(429, Overloaded.code)
    return Overloaded("the gateway is full", retry_after=seconds)
