"""Training data that came over HTTP, and where else training data may lie. Nothing outside the two folders is ever opened."""

import contextlib
import errno
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Final

import anyio.to_thread
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from clients import InvalidRequest, NotFound
from head_service.control.errors import StorageFull, TooLarge, WrongMediaType
from head_service.control.schema import Upload
from head_service.control.store import Store
from head_service.repository import sync

SUFFIXES: Final = {
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
}
_PART: Final = ".part"
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Uploads:
    """The files in *folder*, each with a row in the database. *max_bytes* bounds one, *max_total_bytes* all together."""

    def __init__(self, store: Store, folder: Path, *, max_bytes: int, max_total_bytes: int) -> None:
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._num_arriving = 0
        """Bytes of uploads that are under way; counted on the event loop."""

    async def receive(self, pieces: AsyncIterator[bytes], media_type: str, owner: str) -> Upload:
        """Keep what *pieces* bring; it is on the disk when this returns.

        Raises:
            WrongMediaType, TooLarge, StorageFull: it is not kept.
        """
        suffix = SUFFIXES.get(media_type.partition(";")[0].strip().lower())
        if suffix is None:
            raise WrongMediaType(f"the data's content-type is none of {', '.join(SUFFIXES)}")
        used = await anyio.to_thread.run_sync(self._used)
        upload_id = uuid.uuid4().hex
        path = self._folder / f"{upload_id}{suffix}"
        part = path.with_name(f"{upload_id}{_PART}")
        try:
            with _told_of_room():
                size, digest = await self._write(part, pieces, used)
                await anyio.to_thread.run_sync(_settle, part, path)
            upload = Upload(id=upload_id, owner=owner, suffix=suffix, size_bytes=size, sha256=digest)
            await anyio.to_thread.run_sync(self._record, upload)
        except BaseException:
            part.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        return upload

    def path(self, upload_id: str, owner: str | None = None) -> Path:
        """Where an upload, of *owner* only where one is given, lies.

        Raises:
            NotFound: there is none.
        """
        with self._store.read() as session:
            upload = session.get(Upload, upload_id)
        if upload is None or (owner is not None and upload.owner != owner):
            raise NotFound("there is no such upload; it may have been removed since")
        return self._folder / f"{upload.id}{upload.suffix}"

    def sweep(self, older_than_seconds: float, in_use: set[str]) -> None:
        """Remove uploads that old which no run will read, and what an interrupted upload left."""
        with self._store.write() as session:
            limit = self._store.now(session) - older_than_seconds
            old = [
                upload for upload in session.scalars(select(Upload).where(Upload.created_at < limit)) if upload.id not in in_use
            ]
            session.execute(delete(Upload).where(Upload.id.in_([upload.id for upload in old])))
        for upload in old:
            (self._folder / f"{upload.id}{upload.suffix}").unlink(missing_ok=True)
        # What a process left that ended between writing a file and recording it has no row.
        with self._store.read() as session:
            known = set(session.scalars(select(Upload.id)))
        ours = {_PART, *SUFFIXES.values()}
        left = [path for path in self._folder.glob("*") if path.suffix in ours and path.stem not in known]
        for path in left:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    path.unlink()

    def _used(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._store.read() as session:
            used = _bytes_of(session)
        if used >= self._max_total_bytes:
            raise _used_up()
        return used

    async def _write(self, path: Path, pieces: AsyncIterator[bytes], used: int) -> tuple[int, str]:
        """*used*: bytes of other uploads when this one began. Those that came meanwhile are counted when it is recorded."""
        size, digest = 0, hashlib.sha256()
        room = min(self._max_bytes, self._max_total_bytes - used)
        file: IO[bytes]
        try:
            with path.open("xb", buffering=0) as file:
                async for piece in pieces:
                    size += len(piece)
                    self._num_arriving += len(piece)
                    if size > room:
                        raise TooLarge(f"the data is longer than {room} bytes; put it below the data directory and name its path")
                    if used + self._num_arriving > self._max_total_bytes:
                        raise _used_up()
                    digest.update(piece)
                    await anyio.to_thread.run_sync(_write_all, file, piece)
                if size == 0:
                    raise InvalidRequest("there is no data in the body")
                await anyio.to_thread.run_sync(os.fsync, file.fileno())
        finally:
            self._num_arriving -= size
        return size, digest.hexdigest()

    def _record(self, upload: Upload) -> None:
        with self._store.write() as session:
            if _bytes_of(session) + upload.size_bytes > self._max_total_bytes:
                raise _used_up()
            upload.created_at = self._store.now(session)
            session.add(upload)


def _bytes_of(session: Session) -> int:
    """Of all uploads that are kept."""
    return int(session.scalars(select(func.coalesce(func.sum(Upload.size_bytes), 0))).one())


def _used_up() -> StorageFull:
    return StorageFull("the room for uploads is used up; old ones are removed in time", retry_after=3_600.0)


def data_file(root: Path | None, path: str) -> Path:
    """The file *path* below *root*, links followed.

    Raises:
        InvalidRequest: there is no such file there, or no data directory.
    """
    if root is None:
        raise InvalidRequest("no data directory is set here; upload the data with POST /v1/data")
    refusal = InvalidRequest("there is no such .csv, .tsv or .jsonl file below the data directory")
    if "\x00" in path:
        raise refusal
    try:
        inside = root.resolve(strict=True)
        found = (inside / path).resolve(strict=True)
    except (OSError, RuntimeError):
        raise refusal from None
    if not found.is_relative_to(inside) or not found.is_file() or found.suffix.lower() not in SUFFIXES.values():
        raise refusal
    return found


def _write_all(file: IO[bytes], piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


def _settle(part: Path, path: Path) -> None:
    part.rename(path)
    sync(path.parent)


@contextlib.contextmanager
def _told_of_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StorageFull("there is no room left on the disk; nothing was kept", retry_after=30.0) from None
        raise
