"""The page for people at `/`, with its style and script, out of this package: nothing is fetched from anywhere else."""

import hashlib
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""For `Content-Security-Policy`: what is not a file of this page is not loaded, and nothing within it is run."""

_TYPES: Final = {
    "page.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)


class Asset:
    """One file as it is answered; read once."""

    def __init__(self, name: str) -> None:
        self._content = files(__name__).joinpath(name).read_bytes()
        self._headers = {
            "content-security-policy": POLICY,
            # A page of the last release must not speak to this one: asked each time, and sent only when it has changed.
            "cache-control": "no-cache",
            "etag": f'"{hashlib.sha256(self._content).hexdigest()[:32]}"',
        }
        self._media_type = _TYPES[name]

    def response(self, request: Request) -> Response:
        """The file, or 304 where the browser has it."""
        if request.headers.get("if-none-match") == self._headers["etag"]:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers, media_type=self._media_type)


_ASSETS: Final = {name: Asset(name) for name in _TYPES}


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return _ASSETS["page.html"].response(request)


@router.get("/ui/page.css")
async def style(request: Request) -> Response:
    """Its style."""
    return _ASSETS["page.css"].response(request)


@router.get("/ui/page.js")
async def script(request: Request) -> Response:
    """Its script."""
    return _ASSETS["page.js"].response(request)


@router.get("/ui/icon.svg")
async def icon(request: Request) -> Response:
    """Its picture."""
    return _ASSETS["icon.svg"].response(request)
