"""The live catalogue: polled from a file or a URL, the last good one kept."""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import httpx

from clients.wire.catalogue import Catalogue, decode_catalogue
from clients.wire.decoding import NOT_DECODED
from gateway.ports import CatalogueFollower

_log = logging.getLogger(__name__)
_EMPTY: Final = Catalogue()


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
    """A URL, asked with the ETag of what it said last. A name and password in it are sent, and in no complaint."""

    def __init__(self, url: str) -> None:
        given = httpx.URL(url)
        self._url = given.copy_with(userinfo=b"")
        self._http = httpx.AsyncClient(timeout=2.0, auth=(given.username, given.password) if given.userinfo else None)
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
    """Owner of the live catalogue; everybody else reads snapshots. *followers* hear of each new one before anybody reads it."""

    def __init__(self, source: CatalogueFetch, *, poll_seconds: float, followers: Sequence[CatalogueFollower] = ()) -> None:
        self._source = source
        self._poll_seconds = poll_seconds
        self._followers = followers
        self._catalogue: Catalogue | None = None
        self._checked = time.monotonic()
        self._is_in_order = False
        self._complaint = ""

    @property
    def is_loaded(self) -> bool:
        """Whether there has been a good one."""
        return self._catalogue is not None

    @property
    def age(self) -> float:
        """Seconds since the source was last seen in order."""
        return time.monotonic() - self._checked

    @property
    def catalogue(self) -> Catalogue:
        """See `gateway.ports.CatalogueSource`; one without heads before the first good one."""
        return self._catalogue or _EMPTY

    async def refresh(self) -> None:
        """Take what the source has now; what is broken is logged, once until it changes, and the last good one stays."""
        try:
            content = await self._source.fetch()
            if content is not None:
                self._is_in_order = False
                self._take(decode_catalogue(content))
                self._is_in_order = True
            if self._is_in_order:
                self._checked = time.monotonic()
                self._complaint = ""
        except (OSError, httpx.HTTPError, *NOT_DECODED) as error:
            if self._complaint != str(error):
                self._complaint = str(error)
                _log.warning("the catalogue cannot be read (%s); the last good one stays in force", error)

    def _take(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        for follower in self._followers:
            follower.follow(catalogue)

    async def run(self) -> None:
        """Refresh until cancelled, then close the source."""
        try:
            while True:
                try:
                    await self.refresh()
                except Exception:  # whatever it was, the next catalogue is not to be missed
                    _log.exception("taking the catalogue failed unexpectedly")
                await asyncio.sleep(self._poll_seconds)
        finally:
            await self._source.close()


def source_of(catalogue: str) -> CatalogueFetch:
    """A file's path or an http(s) URL as a source."""
    return UrlFetch(catalogue) if catalogue.startswith(("http://", "https://")) else FileFetch(Path(catalogue))
