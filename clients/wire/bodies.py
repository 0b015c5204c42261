"""How many bytes of bodies a server holds, of all requests together: what one may have times the open connections is no bound."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

FULL: Final = "the service holds as many bytes of requests as it may"
RETRY_SECONDS: Final = 0.5

_HELD: Final = "trunkline.body_bytes"
_BODIES: Final = "trunkline.bodies"


class Bodies:
    """At most *max_bytes*, from when they arrive until the request is answered. Owner of its count; used from the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def take(self, scope: Scope, count: int) -> bool:
        """Hold *count* more for the request of *scope*; False where there is no room. What is held alone is always let in."""
        held = scope.get(_HELD, 0)
        if self.num_bytes + count > self._max_bytes and self.num_bytes > held:
            return False
        scope[_HELD] = held + count
        self.num_bytes += count
        return True

    def give(self, scope: Scope) -> None:
        """The request of *scope* is answered."""
        self.num_bytes -= scope.pop(_HELD, 0)


class WithBodies:
    """*app*, an ASGI application, whose routes find *bodies* by `bodies_of`, and need not give back."""

    def __init__(self, app: ASGIApp, bodies: Bodies) -> None:
        self._app = app
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        scope[_BODIES] = self._bodies
        try:
            await self._app(scope, receive, send)
        finally:
            self._bodies.give(scope)


def bodies_of(scope: Scope) -> Bodies:
    """Those of `WithBodies`."""
    found: Bodies = scope[_BODIES]
    return found
