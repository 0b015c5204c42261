"""Everything that can go wrong when a service is called.

- TrunklineError
  - InvalidRequest       the request can never be served as it is
    - NotFound           it names a trunk, head, version or route that does not exist
  - Refused              the service will not serve it
    - Unauthenticated
    - PermissionDenied
    - FailedPrecondition the service is in a state that rules it out: another trunk's fingerprint, for one
  - Unavailable          the service could not be reached, is starting, draining or broken; trying again may help
    - Overloaded         it is full; *retry_after* says when to come back
  - DeadlineExceeded     no answer within the timeout
  - Cancelled            the call was cancelled before it ended, or its client is closed
  - ServerFault          the service failed in a way it should not
  - InvalidResponse      the service answered something that is not its contract
"""

from typing import Final

import grpc


class TrunklineError(Exception):
    """The root of the tree. *code* is the error's name on the wire, lower snake case."""

    code: str = "internal"

    def __init__(self, message: str, *, retry_after: float | None = None, request_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        """Seconds the service asked to be left alone, where it said so."""
        self.request_id = request_id


class InvalidRequest(TrunklineError):
    """The request can never be served as it is."""

    code = "invalid_argument"


class NotFound(InvalidRequest):
    """It names a trunk, head, version or route that does not exist."""

    code = "not_found"


class Refused(TrunklineError):
    """The service will not serve it."""

    code = "refused"


class Unauthenticated(Refused):
    """No valid credentials."""

    code = "unauthenticated"


class PermissionDenied(Refused):
    """The credentials do not cover this."""

    code = "permission_denied"


class FailedPrecondition(Refused):
    """The service is in a state that rules the request out."""

    code = "failed_precondition"


class Unavailable(TrunklineError):
    """The service could not be reached, is starting, draining or broken."""

    code = "unavailable"


class Overloaded(Unavailable):
    """The service is full."""

    code = "overloaded"


class DeadlineExceeded(TrunklineError):
    """No answer within the timeout."""

    code = "deadline_exceeded"


class Cancelled(TrunklineError):
    """The call was cancelled before it ended, or its client is closed."""

    code = "cancelled"


class ServerFault(TrunklineError):
    """The service failed in a way it should not."""

    code = "internal"


class InvalidResponse(TrunklineError):
    """The service answered something that is not its contract."""

    code = "invalid_response"


GRPC_ERRORS: Final[dict[grpc.StatusCode, type[TrunklineError]]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: ServerFault,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: FailedPrecondition,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: FailedPrecondition,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: ServerFault,
    grpc.StatusCode.INTERNAL: ServerFault,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: ServerFault,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}

HTTP_ERRORS: Final[dict[int, type[TrunklineError]]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    408: DeadlineExceeded,
    409: FailedPrecondition,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: Overloaded,
    499: Cancelled,
    500: ServerFault,
    501: ServerFault,
    502: InvalidResponse,
    503: Unavailable,
    504: DeadlineExceeded,
}


def error_for_http(status: int) -> type[TrunklineError]:
    """The error of an HTTP *status* of 400 or more; one that is not listed counts as its class (4xx, 5xx)."""
    return HTTP_ERRORS.get(status, InvalidRequest if status < 500 else ServerFault)
