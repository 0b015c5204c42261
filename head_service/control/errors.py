"""What the control plane refuses or fails with.

Errors of `clients` are used where one says it, so that a caller of the API meets the same tree everywhere.
"""

from clients import FailedPrecondition, InvalidRequest, Unavailable
from head_service.errors import HeadServiceError


class ControlError(HeadServiceError):
    """The control plane cannot start or go on; one sentence says why and what to do."""


class TooLarge(InvalidRequest):
    """The body is longer than what is read."""


class WrongMediaType(InvalidRequest):
    """The body is compressed, or of a kind that is not read here."""


class Conflict(FailedPrecondition):
    """An idempotency key was used before, for something else."""

    code = "conflict"


class Collision(FailedPrecondition):
    """Two writers at once wanted what only one can have; the other should look again."""

    code = "collision"


class StorageFull(Unavailable):
    """There is no room on the disk, or in what is allotted; nothing was kept."""

    code = "storage_full"
