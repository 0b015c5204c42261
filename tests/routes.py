"""The routes of an ASGI application, found in the application itself: what a test of every route begins with."""

from collections.abc import Iterable, Iterator

from starlette.routing import BaseRoute, Mount, Route


def routes_of(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """All (method, path), those of mounted applications and included routers too. What is none of these fails the test."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if isinstance(route, Mount):
            inner = list(getattr(route.app, "routes", ()))
            yield from routes_of(inner, prefix + route.path) if inner else [("GET", f"{prefix}{route.path}/{{path:path}}")]
        elif included is not None:
            yield from routes_of(included.routes, prefix + route.include_context.prefix)  # type: ignore[attr-defined]
        else:
            assert isinstance(route, Route), route
            yield from ((method, prefix + route.path) for method in sorted(route.methods or {"GET"}))
