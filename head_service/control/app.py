"""The API's application: what lives as long as it does, and what every request goes through before a route sees it."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypedDict

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients import Overloaded, TrunklineError
from clients.wire.http_errors import place_of
from clients.wire.rates import Rates
from head_service.control.answers import error_response, request_id_of, response_of, status_of
from head_service.control.api import State, router
from head_service.control.errors import ControlError
from head_service.control.feedback import FeedbackWriter
from head_service.control.keep import Kept
from head_service.control.keys import Authenticator, Everybody, KeysFile
from head_service.control.schemas import openapi_parts
from head_service.control.settings import ServeSettings
from head_service.control.telemetry import Telemetry
from head_service.errors import RepositoryError

_log = logging.getLogger(__name__)


class Lifespan(TypedDict):
    """What `request.state` holds."""

    control: State


def create_app(settings: ServeSettings, kept: Kept, authenticator: Authenticator | None = None) -> ASGIApp:
    """The ASGI application. *authenticator* absent: the settings' keys."""
    who = authenticator or (KeysFile(settings.keys) if settings.keys else Everybody())
    telemetry = Telemetry()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Lifespan]:
        writer = FeedbackWriter(kept.feedback.keep)
        try:
            yield Lifespan(
                control=State(
                    settings,
                    kept,
                    writer,
                    who,
                    telemetry,
                    Rates(settings.feedback_per_second, 10 * settings.feedback_per_second),
                    Rates(settings.auth_failures_per_minute / 60, settings.auth_failures_per_minute),
                )
            )
        finally:
            await writer.close()

    api = _api(settings)(
        title="Trunkline control plane",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    api.include_router(router)
    api.add_exception_handler(TrunklineError, _on_refusal)
    api.add_exception_handler(HTTPException, _on_http_error)
    api.add_exception_handler(RequestValidationError, _on_bad_query)
    api.add_exception_handler(RepositoryError, _on_broken_catalogue)
    api.add_exception_handler(ClientDisconnect, _on_left)
    api.add_exception_handler(Exception, _on_fault)
    original = api.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        schema.setdefault("components", {}).setdefault("schemas", {}).update(openapi_parts())
        return schema

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way of extending the schema
    return Gate(api, telemetry, settings.max_concurrent_requests)


class Gate:
    """Outermost: bounds what is inside at once, counts what comes out, and lets no browser guess a type."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, max_inside: int) -> None:
        self._app = app
        self._telemetry = telemetry
        self._max_inside = max_inside
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        request_id = request_id_of(request)
        status = _LEFT

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    *_HEADERS,
                    *([] if _has_id(message) else [(b"x-request-id", request_id.encode())]),
                ]
            await send(message)

        if self._inside >= self._max_inside and request.url.path not in {"/healthz", "/readyz"}:
            await response_of(Overloaded("too many requests at once", retry_after=1.0), request_id)(scope, receive, sent)
            self._telemetry.answered("", status)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            # Answered by now; it goes no further, because whoever logs it would log its words, and they may quote a text.
            _log.error("request %s failed unexpectedly: %s%s", request_id, type(error).__name__, place_of(error))
        finally:
            self._inside -= 1
            route = scope.get("route")
            self._telemetry.answered(getattr(route, "path", ""), status)


_LEFT: Final = 499
"""The status of a request that got no answer, because its caller left."""

_HEADERS: Final = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


def _has_id(message: Message) -> bool:
    return any(name == b"x-request-id" for name, _ in message.get("headers", []))


def _api(settings: ServeSettings) -> Callable[..., FastAPI]:
    if not settings.docs:
        return FastAPI
    try:
        from fastapi_offline import FastAPIOffline  # noqa: PLC0415 (only where the API page is wanted)
    except ImportError:
        raise ControlError("--docs needs the package fastapi-offline; install trunkline[gateway], or leave --docs out") from None
    return FastAPIOffline


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, TrunklineError)
    request_id = request_id_of(request)
    if status_of(error) >= 500:
        _log.warning("request %s ended with %s: %s", request_id, error.code, error.message)
    return response_of(error, request_id)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: ("not_found", "there is no such route"), 405: ("method_not_allowed", "that method is not for this route")}
    code, message = codes.get(error.status_code, ("invalid_argument", "the request cannot be read"))
    return error_response(error.status_code, code, message, request_id_of(request), dict(error.headers or {}))


async def _on_bad_query(request: Request, error: Exception) -> Response:
    """FastAPI's own answer would echo what was given."""
    assert isinstance(error, RequestValidationError)
    names = sorted({str(problem["loc"][-1]) for problem in error.errors() if len(problem["loc"]) > 1})
    message = f"{', '.join(names) or 'the request'} is not what this route takes"
    return error_response(400, "invalid_argument", message, request_id_of(request))


async def _on_broken_catalogue(request: Request, error: Exception) -> Response:
    _log.error("%s", error)
    return error_response(503, "unavailable", "the catalogue of heads cannot be read just now", request_id_of(request))


async def _on_left(_: Request, __: Exception) -> Response:
    return Response(status_code=_LEFT)


async def _on_fault(request: Request, _: Exception) -> Response:
    return error_response(500, "internal", "the control plane failed in a way it should not", request_id_of(request))
