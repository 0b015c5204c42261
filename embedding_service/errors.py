"""Everything the embedding service answers instead of vectors, and the one table an edge needs for it.

- EmbedError
  - InvalidInput        the request can never be served as it is
  - UnknownTrunk        no such trunk here
  - WrongTrunk          token ids made for another trunk
  - Overloaded          the queue is full; *retry_after* seconds is when to come back
  - DeadlineExceeded    the caller's deadline passed before the answer was there
  - Unavailable         starting, draining, or the forward pass failed
"""

from typing import Final

import grpc


class EmbedError(Exception):
    """The root of the tree. The message is for the caller: it says what to change and never echoes the input."""

    code: str = "internal"
    retry_after: float | None = None


class InvalidInput(EmbedError):
    """The request can never be served as it is."""

    code = "invalid_argument"


class UnknownTrunk(EmbedError):
    """No such trunk here."""

    code = "not_found"


class WrongTrunk(EmbedError):
    """The token ids were made for another trunk."""

    code = "failed_precondition"


class Overloaded(EmbedError):
    """The queue is full."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(EmbedError):
    """The caller's deadline passed before the answer was there."""

    code = "deadline_exceeded"


class Unavailable(EmbedError):
    """Starting, draining, or the forward pass failed."""

    code = "unavailable"
    retry_after = 1.0


GRPC_STATUS: Final[dict[type[EmbedError], grpc.StatusCode]] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownTrunk: grpc.StatusCode.NOT_FOUND,
    WrongTrunk: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}

HTTP_STATUS: Final[dict[type[EmbedError], int]] = {
    InvalidInput: 400,
    UnknownTrunk: 404,
    WrongTrunk: 409,
    Overloaded: 429,
    DeadlineExceeded: 504,
    Unavailable: 503,
}
