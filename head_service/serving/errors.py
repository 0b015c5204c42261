"""TensorFlow Serving's answers to what cannot be done, and the table from gRPC codes to HTTP ones (http_server.cc)."""

from typing import Final

import grpc

MAX_MESSAGE_CHARACTERS: Final = 1_024
"""grpc_status_util.cc cuts here; so do we over HTTP, where the reference answers with as much as was sent."""

MAX_ECHO_CHARACTERS: Final = 64
"""Of what a caller sent, at most this much comes back in a message."""


class ServingError(Exception):
    """A call that ends with *code* and *message*, worded as TensorFlow Serving words them."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        cut = len(message) > MAX_MESSAGE_CHARACTERS
        self.message = f"{message[:MAX_MESSAGE_CHARACTERS]}...TRUNCATED" if cut else message


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """NOT_FOUND."""
    return ServingError(grpc.StatusCode.NOT_FOUND, message)


def too_late() -> ServingError:
    """DEADLINE_EXCEEDED."""
    return ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the model had answered")


def queue_full(detail: str = "") -> ServingError:
    """UNAVAILABLE: more waits than may."""
    what = "The batch scheduling queue to which this task was submitted is full"
    return ServingError(grpc.StatusCode.UNAVAILABLE, f"{what}; {detail}" if detail else what)


def echo(name: str) -> str:
    """As much of a caller's *name* as a message may hold."""
    return name[:MAX_ECHO_CHARACTERS]


HTTP_STATUS: Final[dict[grpc.StatusCode, int]] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
