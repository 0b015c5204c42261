"""From what went wrong to what a caller of the API is told: one table, one shape."""

import re
import uuid
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from clients import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    Refused,
    TrunklineError,
    Unauthenticated,
    Unavailable,
)
from clients.wire.http_errors import error_body, retry_headers
from clients.wire.metadata import REQUEST_ID
from head_service.control.errors import StorageFull, TooLarge, WrongMediaType

STATUS: Final[dict[type[TrunklineError], int]] = {
    TrunklineError: 500,
    InvalidRequest: 400,
    TooLarge: 413,
    WrongMediaType: 415,
    NotFound: 404,
    Refused: 403,
    Unauthenticated: 401,
    PermissionDenied: 403,
    FailedPrecondition: 409,
    Unavailable: 503,
    Overloaded: 429,
    StorageFull: 507,
    DeadlineExceeded: 408,
}

DEFAULT_RETRY_AFTER: Final = 1.0
"""Seconds, for a refusal that may pass and came without a time of its own."""

_REQUEST_ID: Final = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def status_of(error: TrunklineError) -> int:
    """The HTTP status of *error*."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def response_of(error: TrunklineError, request_id: str) -> Response:
    """`{"error": {"code", "message", "request_id"}}`, below 2 KB, with Retry-After where trying again may help."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if status in {429, 503, 507}:
        seconds = DEFAULT_RETRY_AFTER if error.retry_after is None else error.retry_after
        headers |= retry_headers(seconds)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return error_response(status, error.code, error.message, request_id, headers)


def error_response(status: int, code: str, message: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """An error in the one shape."""
    body = error_body(code, message, request_id)
    return Response(body, status, (headers or {}) | {REQUEST_ID: request_id}, media_type="application/json")


def request_id_of(request: Request) -> str:
    """The caller's own, when it is one, or a new one; the same for the whole request."""
    found: str | None = request.scope.get("trunkline.request_id")
    if found is None:
        given = request.headers.get(REQUEST_ID, "")
        found = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        request.scope["trunkline.request_id"] = found
    return found
