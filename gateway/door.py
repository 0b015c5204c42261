"""Refusing while the gateway is full, before a byte of the body is read: most of what a refusal costs is what is done before it.

Only the bound that any request would meet is looked at here; what a request's own size or class makes of it is told later.
"""

from collections.abc import Callable, Mapping

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from clients import Overloaded, TrunklineError
from gateway.exchange import current_request_id
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
        state.telemetry.refused(429, Overloaded.code)
        answer = tell(Overloaded("the gateway is full", retry_after=seconds), current_request_id())
        await answer(scope, receive, send)
