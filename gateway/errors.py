"""From what went wrong to what the caller is told: one table, one shape."""

from typing import Final

from starlette.responses import Response

from clients import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    Overloaded,
    PermissionDenied,
    Refused,
    ServerFault,
    TrunklineError,
    Unauthenticated,
    Unavailable,
)
from clients.wire.http_errors import error_body, retry_headers
from clients.wire.metadata import REQUEST_ID

STATUS: Final[dict[type[TrunklineError], int]] = {
    TrunklineError: 500,
    InvalidRequest: 400,
    NotFound: 404,
    Refused: 403,
    Unauthenticated: 401,
    PermissionDenied: 403,
    FailedPrecondition: 503,
    Unavailable: 503,
    Overloaded: 429,
    DeadlineExceeded: 504,
    Cancelled: 499,
    ServerFault: 502,
    InvalidResponse: 502,
}

DEFAULT_RETRY_AFTER: Final = 0.5
"""Seconds, for a refusal that may pass and came without a time of its own."""


class TooLarge(InvalidRequest):
    """The body is longer than this gateway reads."""


class WrongMediaType(InvalidRequest):
    """The body is compressed, or not JSON by its own account."""


HTTP_ONLY: Final[dict[type[TrunklineError], int]] = {TooLarge: 413, WrongMediaType: 415}
_STATUS: Final = STATUS | HTTP_ONLY


def status_of(error: TrunklineError) -> int:
    """The HTTP status of *error*."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def response_of(error: TrunklineError, request_id: str) -> Response:
    """`{"error": {"code", "message", "request_id"}}`, below 2 KB, with Retry-After where trying again may help."""
    status = status_of(error)
    return error_response(status, error.code, error.message, request_id, headers_of(error, request_id))


def headers_of(error: TrunklineError, request_id: str) -> dict[str, str]:
    """The request's id and, where trying again may help, when."""
    headers = {REQUEST_ID: request_id}
    if status_of(error) in {429, 503}:
        seconds = DEFAULT_RETRY_AFTER if error.retry_after is None else error.retry_after
        headers |= retry_headers(seconds)
    return headers


def error_response(status: int, code: str, message: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """An error in the one shape."""
    return Response(error_body(code, message, request_id), status, headers, media_type="application/json")


def fault_response(request_id: str) -> Response:
    """For what failed in a way it should not."""
    return error_response(500, "internal", "the gateway failed in a way it should not", request_id, {REQUEST_ID: request_id})
