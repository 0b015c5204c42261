"""How the clients behave where the caller does not say otherwise."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to stay away from a service that is full: what it asks for, else *backoff* doubled up to *max_backoff*.

    Both in seconds. There is no count of attempts: the call's timeout ends them.
    """

    backoff: float = 0.05
    max_backoff: float = 2.0

    def delay(self, attempt: int, retry_after: float | None) -> float:
        """Seconds to wait before attempt number *attempt* + 1, the first being 0."""
        if retry_after is not None:
            return retry_after
        return min(self.max_backoff, self.backoff * 2.0 ** min(attempt, 32))


GATEWAY_TIMEOUT: Final = 10.0
EMBEDDING_TIMEOUT: Final = 10.0
HEAD_TIMEOUT: Final = 5.0
EMBED_ALL_RETRY: Final = Retry()
