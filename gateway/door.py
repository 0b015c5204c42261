"""Refusing while the gateway is full, before a byte of the body is read: most of what a refusal costs is what is done before it.

Only the bound that any request would meet is looked at here; what a request's own size or class makes of it is told later.
"""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from clients import Overloaded
from clients.wire.http_errors import error_body, retry_headers
from clients.wire.metadata import REQUEST_ID
from gateway.exchange import current_request_id
from gateway.guarding import secured
from gateway.routes import State


class Door:
    """*app*, but for what is POSTed to *paths* while not even one text would be let in."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http" or scope["path"] not in self._paths or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        state: State = scope["state"]["gateway"]
        seconds = state.admission.seconds_until_room(1)
        if seconds is None:
            await self._app(scope, receive, send)
            return
        state.telemetry.refused(429, Overloaded.code)
        request_id = current_request_id()
        body = error_body(Overloaded.code, "the gateway is full", request_id)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            REQUEST_ID: request_id,
            **retry_headers(seconds),
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 429, "headers": secured(raw)})
        await send({"type": "http.response.body", "body": body})
