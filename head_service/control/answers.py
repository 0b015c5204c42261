"""From what went wrong to what a caller of the API is told: one table, one shape."""

import re
import uuid
from typing import Final

import msgspec
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
from clients.wire.metadata import REQUEST_ID, RETRY_AFTER, RETRY_AFTER_MS
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

MAX_MESSAGE_CHARACTERS: Final = 1_000
MAX_MESSAGE_BYTES: Final = 1_700
"""As JSON: a character may take six."""

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
        headers |= {RETRY_AFTER: str(max(1, round(seconds))), RETRY_AFTER_MS: str(round(seconds * 1000))}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return error_response(status, error.code, error.message, request_id, headers)


def error_response(status: int, code: str, message: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """An error in the one shape."""
    body = {"error": {"code": code, "message": _clipped(message), "request_id": request_id}}
    return Response(msgspec.json.encode(body), status, (headers or {}) | {REQUEST_ID: request_id}, media_type="application/json")


def request_id_of(request: Request) -> str:
    """The caller's own, when it is one, or a new one; the same for the whole request."""
    found: str | None = request.scope.get("trunkline.request_id")
    if found is None:
        given = request.headers.get(REQUEST_ID, "")
        found = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        request.scope["trunkline.request_id"] = found
    return found


def _clipped(message: str) -> str:
    message = message[:MAX_MESSAGE_CHARACTERS]
    while len(msgspec.json.encode(message)) > MAX_MESSAGE_BYTES:
        message = message[: len(message) * 3 // 4]
    return message
