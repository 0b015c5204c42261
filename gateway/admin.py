"""What operators read, on a port of its own that only this machine reaches: no key is asked for there."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Final

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from clients.wire.asgi import header_of
from clients.wire.guard import is_loopback
from clients.wire.http_server import http_config

ADMIN_HOST: Final = "127.0.0.1"
ADMIN_PATHS: Final = frozenset({"/metrics", "/info", "/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"})
ADMIN_PREFIX: Final = "/static-offline-docs/"


class Admin:
    """What of *api* operators read; its requests find *state* as those of the other port do."""

    def __init__(self, api: ASGIApp, state: Mapping[str, object]) -> None:
        self._api = api
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if not _is_for_us(scope):
            await PlainTextResponse("Not Found", 404)(scope, receive, send)
            return
        scope["state"] = dict(self._state)
        await self._api(scope, receive, send)


@contextlib.asynccontextmanager
async def on_admin_port(api: ASGIApp, state: Mapping[str, object], listener: socket.socket | None) -> AsyncIterator[None]:
    """Serve `Admin` on *listener* for as long as the context lasts; None: not at all."""
    if listener is None:
        yield
        return
    server = uvicorn.Server(http_config(Admin(api, state), drain_seconds=1, lifespan="off"))
    # Signals are the other port's business.
    serving = asyncio.create_task(server._serve([listener]))  # noqa: SLF001
    try:
        yield
    finally:
        server.should_exit = True
        await serving
        listener.close()


def _is_for_us(scope: Scope) -> bool:
    """Whether it is a request for what is here, by a name of this machine: a site whose name is made to mean it is refused."""
    if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"}:
        return False
    host = header_of(scope["headers"], b"host") or ""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    path: str = scope["path"]
    return is_loopback(name) and (path in ADMIN_PATHS or path.startswith(ADMIN_PREFIX))
