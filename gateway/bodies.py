"""How many bytes of bodies are held, of all requests together: what one may have times the open connections is no bound."""

from typing import Final

from starlette.types import Scope

from clients import Overloaded

_HELD: Final = "trunkline.body_bytes"


class Bodies:
    """At most *max_bytes*, from when they arrive until the request is answered. Owner of its count; used from the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def take(self, scope: Scope, count: int) -> None:
        """Hold *count* more for the request of *scope*.

        Raises:
            Overloaded: there is no room; what the request holds alone is let in.
        """
        held = scope.get(_HELD, 0)
        if self.num_bytes + count > self._max_bytes and self.num_bytes > held:
            raise Overloaded("the gateway holds as many bytes as it may", retry_after=0.5)
        scope[_HELD] = held + count
        self.num_bytes += count

    def give(self, scope: Scope) -> None:
        """The request of *scope* is answered."""
        self.num_bytes -= scope.pop(_HELD, 0)
