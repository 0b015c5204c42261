"""Refusing while the gateway is full, before a byte of the body is read: most of what a refusal costs is what is done before it.

Only the bound that any request would meet is looked at here; what a request's own size or class makes of it is told later.

There are two doors. `outer_door` stands before the application, where a refusal costs half; `Door` stands behind the
application's layers, for where one of them has something to tell of a request or to add to its answer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from clients import Overloaded, TrunklineError
from clients.wire import http_server
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


def outer_door(tells: Mapping[str, Tell]) -> http_server.Door:
    """The same, before the application.

    It asks for no key: who has none, or a wrong one, learns that the gateway is full until it is not, and spends nothing of it.
    """

    def door(path: str, headers: Sequence[tuple[bytes, bytes]], app_state: Mapping[str, Any]) -> Response | None:
        tell = tells.get(path)
        if tell is None:
            return None
        state: State = app_state["gateway"]
        seconds = state.admission.seconds_until_room(1)
        if seconds is None:
            return None
        request_id = request_id_in(dict(headers).get(REQUEST_ID_KEY, b"")) or new_request_id()
        answer = tell(_refused(state, seconds), request_id)
        answer.raw_headers = secured(answer.raw_headers)
        return answer

    return door


def _refused(state: State, seconds: float) -> Overloaded:
    """Counted, and why: there is room for a text only in *seconds*."""
    state.telemetry.refused(429, Overloaded.code)
    return Overloaded("the gateway is full", retry_after=seconds)
