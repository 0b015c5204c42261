"""The live catalogue: polled from a file or a URL, the last good one kept, judged against the live trunk."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Protocol

import httpx
import msgspec

from clients.wire.catalogue import Catalogue, CatalogueHead, decode_catalogue
from gateway.ports import LiveHead

_log = logging.getLogger(__name__)


class CatalogueFetch(Protocol):
    """Where a catalogue comes from."""

    async def fetch(self) -> bytes | None:
        """Its bytes, or None when they are what the last call returned. Raises OSError or httpx.HTTPError."""
        ...

    async def close(self) -> None:
        """End what connections there are."""
        ...


class FileFetch:
    """A file that is replaced by renaming."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    async def fetch(self) -> bytes | None:
        """See `CatalogueFetch`."""
        stat = self._path.stat()
        tag = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if tag == self._seen:
            return None
        content = self._path.read_bytes()
        self._seen = tag
        return content

    async def close(self) -> None:
        """See `CatalogueFetch`."""


class UrlFetch:
    """A URL, asked with the ETag of what it said last."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(timeout=2.0)
        self._url = url
        self._etag = ""

    async def fetch(self) -> bytes | None:
        """See `CatalogueFetch`."""
        answer = await self._http.get(self._url, headers={"if-none-match": self._etag} if self._etag else {})
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            return None
        answer.raise_for_status()
        self._etag = answer.headers.get("etag", "")
        return answer.content

    async def close(self) -> None:
        """See `CatalogueFetch`."""
        await self._http.aclose()


class CataloguePoller:
    """Owner of the live catalogue; everybody else reads snapshots."""

    def __init__(self, source: CatalogueFetch, *, poll_seconds: float) -> None:
        self._source = source
        self._poll_seconds = poll_seconds
        self._catalogue: Catalogue | None = None
        self._judged: dict[str, dict[str, LiveHead]] = {}
        self._checked = time.monotonic()
        self._is_in_order = False

    @property
    def is_loaded(self) -> bool:
        """Whether there has been a good one."""
        return self._catalogue is not None

    @property
    def age(self) -> float:
        """Seconds since the source was last seen in order."""
        return time.monotonic() - self._checked

    def heads(self, fingerprint: str) -> dict[str, LiveHead]:
        """See `gateway.ports.CatalogueSource`."""
        if fingerprint not in self._judged:
            heads = self._catalogue.heads if self._catalogue else {}
            self._judged[fingerprint] = {name: judge(name, head, fingerprint) for name, head in sorted(heads.items())}
        return self._judged[fingerprint]

    async def refresh(self) -> None:
        """Take what the source has now; what is broken is logged, and the last good one stays."""
        try:
            content = await self._source.fetch()
            if content is not None:
                self._is_in_order = False
                self._catalogue = decode_catalogue(content)
                self._judged = {}
                self._is_in_order = True
            if self._is_in_order:
                self._checked = time.monotonic()
        except (OSError, httpx.HTTPError, msgspec.ValidationError, msgspec.DecodeError) as error:
            _log.warning("the catalogue cannot be read (%s); the last good one stays in force", error)

    async def run(self) -> None:
        """Refresh until cancelled, then close the source."""
        try:
            while True:
                await self.refresh()
                await asyncio.sleep(self._poll_seconds)
        finally:
            await self._source.close()


def source_of(catalogue: str) -> CatalogueFetch:
    """A file's path or an http(s) URL as a source."""
    return UrlFetch(catalogue) if catalogue.startswith(("http://", "https://")) else FileFetch(Path(catalogue))


def judge(name: str, head: CatalogueHead, fingerprint: str) -> LiveHead:
    """*head*'s stable version, refused when it was trained on another trunk than *fingerprint*'s."""
    manifest = head.versions[head.stable]
    if manifest.trunk.fingerprint == fingerprint:
        return LiveHead(manifest, head.default)
    refused = f"head {name!r} was trained on another trunk ({manifest.trunk.name}); train it again on this one"
    return LiveHead(manifest, head.default, refused)
