"""Who may come in, and what a browser is told about what comes out. Pure ASGI, all of it.

The table below names what each route takes. A route that is not in it is refused to everybody, and a test compares it with the
routes there are.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients.wire import guarded_http
from clients.wire.guard import Guard, Refusal
from clients.wire.guarded_http import OPEN, STATUS, GuardedHttp, Needed, RefusalBody, RouteTable
from clients.wire.http_errors import error_body, place_of
from clients.wire.keys import KeysFile
from clients.wire.metadata import API_KEY, AUTHORIZATION, REQUEST_ID, REQUEST_TIMEOUT_MS, RETRY_AFTER, RETRY_AFTER_MS, STICKY_KEY
from gateway.errors import fault_response
from gateway.settings import Settings
from gateway.telemetry import RefusalTelemetry

_log = logging.getLogger(__name__)

ROUTES: Final[Mapping[str, Mapping[str, Needed]]] = {
    "/healthz": {"GET": OPEN},
    "/readyz": {"GET": OPEN},
    "/v1/classify": {"POST": "classify"},
    "/v1/classify/stream": {"POST": "classify"},
    "/v1/heads": {"GET": "classify"},
    "/v1/heads/{name}/classify": {"POST": "classify"},
    "/predict": {"POST": "classify"},
    "/heads/{name}/predict": {"POST": "classify"},
    "/v2": {"GET": "classify"},
    "/v2/health/live": {"GET": OPEN},
    "/v2/health/ready": {"GET": OPEN},
    "/v2/models/{name}": {"GET": "classify"},
    "/v2/models/{name}/ready": {"GET": "classify"},
    "/v2/models/{name}/infer": {"POST": "classify"},
    "/v2/models/{name}/versions/{version}": {"GET": "classify"},
    "/v2/models/{name}/versions/{version}/ready": {"GET": "classify"},
    "/v2/models/{name}/versions/{version}/infer": {"POST": "classify"},
    "/v1/embeddings": {"POST": "embed"},
    "/v1/models": {"GET": "embed"},
    # The page holds nothing; what it asks for takes a key, which a browser cannot bring along when it opens a page.
    "/": {"GET": OPEN},
    "/ui/page.css": {"GET": OPEN},
    "/ui/page.js": {"GET": OPEN},
    "/ui/icon.svg": {"GET": OPEN},
    "/metrics": {"GET": "admin"},
    "/info": {"GET": "admin"},
    "/docs": {"GET": "admin"},
    "/docs/oauth2-redirect": {"GET": "admin"},
    "/redoc": {"GET": "admin"},
    "/openapi.json": {"GET": "admin"},
    "/static-offline-docs/{path:path}": {"GET": "admin"},
}
"""What each route takes once keys are set, by path and method. HEAD goes with GET."""

_ALWAYS: Final = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_POLICY: Final = b"content-security-policy"
_FOR_DATA: Final[tuple[tuple[bytes, bytes], ...]] = (*_ALWAYS, (_POLICY, b"default-src 'none'; frame-ancestors 'none'"))
_FOR_PAGES: Final = (
    *_ALWAYS,
    (
        _POLICY,
        b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        b"font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
)
"""For a page that has all it needs in itself or beside it: nothing is loaded from, or sent to, anywhere else."""


RequestId = Callable[[Request], str]
TelemetryOf = Callable[[guarded_http.AsgiScope], RefusalTelemetry]
"""The telemetry of the application that a request is for: it lives as long as the application, and the layers longer."""


def layers(settings: Settings, request_id_of: RequestId, telemetry_of: TelemetryOf) -> list[Middleware]:
    """What a request goes through before the routes, the outermost first. Without keys nothing asks for one.

    Raises:
        KeysError: the file of keys cannot be used.
    """
    found = [Middleware(Outermost, request_id_of)]
    if settings.cors_origins:
        found.append(cross_origin(settings.cors_origins))
    if settings.keys_file is not None:
        guard = Guard(KeysFile(settings.keys_file), max_failures_per_minute=settings.auth_failures_per_minute)
        found.append(Middleware(GuardedHttp, guard, RouteTable(ROUTES).needed, refusals(request_id_of, telemetry_of)))
    return found


def cross_origin(origins: tuple[str, ...]) -> Middleware:
    """Scripts of *origins* may ask, and read the answers. A key is a header, so no browser's stored credentials are let in."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=[AUTHORIZATION, API_KEY, "content-type", "cache-control", REQUEST_ID, REQUEST_TIMEOUT_MS, STICKY_KEY],
        expose_headers=[REQUEST_ID, RETRY_AFTER, RETRY_AFTER_MS, "server-timing"],
    )


def refusals(request_id_of: RequestId, telemetry_of: TelemetryOf) -> RefusalBody:
    """How a refusal is told: in the gateway's one shape, and counted."""

    def told(refusal: Refusal, scope: guarded_http.AsgiScope) -> tuple[bytes, dict[str, str]]:
        telemetry_of(scope).refused(STATUS[refusal.code], refusal.code)
        request_id = request_id_of(Request(scope))
        return error_body(refusal.code, refusal.message, request_id), {REQUEST_ID: request_id}

    return told


class Outermost:
    """*app*, its answers with what keeps a browser from guessing types, framing pages and telling where it was.

    What fails in a way it should not ends here: whoever is further out would log its words, and they may quote a text.
    """

    def __init__(self, app: ASGIApp, request_id_of: RequestId) -> None:
        self._app = app
        self._request_id_of = request_id_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        def sent(message: Message) -> Awaitable[None]:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = secured(message.get("headers", ()))
            return send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            request_id = self._request_id_of(Request(scope))
            _log.error("request %s failed unexpectedly: %s%s", request_id, type(error).__name__, place_of(error))
            if not has_begun:
                await fault_response(request_id)(scope, receive, sent)


def secured(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """*headers* with ours; a policy that an answer brings along stays."""
    found, ours = list(headers), _FOR_DATA
    for name, value in found:
        if name == _POLICY:
            return [*found, *_ALWAYS]
        if name == b"content-type" and value.startswith(b"text/html"):
            ours = _FOR_PAGES
    return [*found, *ours]
