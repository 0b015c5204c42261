"""What happens between the gateway and its backends, for whoever counts it."""

from typing import Protocol

from gateway.backends.breaker import BreakerState
from gateway.backends.replicas import Reason


class BackendFacts(Protocol):
    """Told as it happens, on the event loop; must return at once. *backend* is "embedding" or "heads"; replicas have numbers."""

    def ejected(self, backend: str, replica: int, reason: Reason) -> None:
        """A replica gets no calls for a while."""
        ...

    def readmitted(self, backend: str, replica: int) -> None:
        """It gets calls again."""
        ...

    def retried(self, backend: str) -> None:
        """A call that failed is tried once more, elsewhere."""
        ...

    def retry_refused(self, backend: str) -> None:
        """It could have been tried elsewhere, but the budget had no permit before its deadline."""
        ...

    def hedged(self, backend: str) -> None:
        """A call that takes long is made a second time, elsewhere."""
        ...

    def breaker(self, head: str, version: int, state: BreakerState) -> None:
        """A head version's breaker changed."""
        ...


class NoFacts:
    """Nobody counts."""

    def ejected(self, backend: str, replica: int, reason: Reason) -> None:
        """See `BackendFacts`."""

    def readmitted(self, backend: str, replica: int) -> None:
        """See `BackendFacts`."""

    def retried(self, backend: str) -> None:
        """See `BackendFacts`."""

    def retry_refused(self, backend: str) -> None:
        """See `BackendFacts`."""

    def hedged(self, backend: str) -> None:
        """See `BackendFacts`."""

    def breaker(self, head: str, version: int, state: BreakerState) -> None:
        """See `BackendFacts`."""
