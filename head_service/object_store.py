"""A repository in S3, or what speaks its protocol. A version exists when its manifest does, which is put last.

Nothing is renamed and nobody is locked out by the system, so two things keep writers apart: puts that hold only when the object
is still the one that was read (If-Match) or not there yet (If-None-Match), and a lock that is an object with an end.
See https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html.
"""

import asyncio
import contextlib
import hashlib
import socket
import tempfile
import time
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from clients.wire.catalogue import MANIFEST_PATH
from head_service.errors import BusyError, ConflictError, ManifestError, RepositoryError, StorageError
from head_service.store import LOCK_SECONDS, NAME, Clock, Stored, busy, holder, is_version

LEASE_SECONDS: Final = 60.0
"""Whoever dies with the lock is waited for so long; the work below it is a few small puts."""

CALL_SECONDS: Final = 120.0
T = TypeVar("T")
_LOCK: Final = ".lock"
_LOCK_POLL_SECONDS: Final = 0.1
_CHANGED: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})


class _Lease(msgspec.Struct, frozen=True):
    """Who holds the lock, and until when, in seconds since the epoch."""

    holder: str
    until: float
    id: str = ""


class ObjectStore:
    """The objects below *prefix*, bucket/and/more, of *filesystem*, an `s3fs.S3FileSystem` without a cache of listings."""

    def __init__(self, filesystem: Any, prefix: str, *, lock_seconds: float = LOCK_SECONDS, clock: Clock = time.time) -> None:
        self._fs = filesystem
        self._bucket, _, below = prefix.strip("/").partition("/")
        self._below = f"{below}/" if below else ""
        self._lock_seconds = lock_seconds
        self._clock = clock
        if not self._bucket:
            raise RepositoryError("an S3 repository is named s3://bucket/prefix")

    @property
    def url(self) -> str:
        """See `Store`, like all others."""
        return f"s3://{self._bucket}/{self._below}".rstrip("/")

    def heads(self) -> list[str]:
        """See `Store`."""
        return sorted({key.split("/")[0] for key in self._list("") if "/" in key and NAME.fullmatch(key.split("/")[0])})

    def versions(self, name: str) -> list[int]:
        """See `Store`."""
        ending = f"/{MANIFEST_PATH}"
        found = (key.removesuffix(ending) for key in self._list(f"{name}/") if key.endswith(ending))
        return sorted(int(number) for number in found if is_version(number))

    def files(self, name: str) -> list[str]:
        """See `Store`."""
        return sorted(key for key in self._list(f"{name}/") if "/" not in key)

    def read(self, key: str) -> Stored | None:
        """See `Store`. The tag is the object's ETag."""
        return self._sync(self._get(key))

    def create(self, key: str, content: bytes) -> bool:
        """See `Store`."""
        try:
            self._put(key, content, IfNoneMatch="*")
        except ConflictError:
            return False
        return True

    def write(self, key: str, content: bytes, *, before: Stored | None) -> None:
        """See `Store`."""
        condition = {"IfMatch": before.tag} if before else {"IfNoneMatch": "*"}
        self._put(key, content, **condition)

    def delete(self, key: str) -> None:
        """See `Store`."""
        self._call("delete_object", key)

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """See `Store`."""
        with tempfile.TemporaryDirectory(prefix=f"trunkline-{name}-") as staged:
            yield Path(staged)

    def prepare(self, name: str, version: int, staged: Path) -> None:
        """See `Store`. What an upload that broke off left under this number is replaced."""
        if version in self.versions(name):
            raise ConflictError(f"{name} has a version {version} already")
        self._remove_files(name, version)
        for path in sorted(staged.rglob("*")):
            file = path.relative_to(staged).as_posix()
            if path.is_file() and file != MANIFEST_PATH:
                self._put(f"{name}/{version}/{file}", path.read_bytes(), IfNoneMatch="*")

    def publish(self, name: str, version: int, staged: Path) -> None:
        """See `Store`. Until the manifest is there, readers see no version."""
        self._put(f"{name}/{version}/{MANIFEST_PATH}", (staged / MANIFEST_PATH).read_bytes(), IfNoneMatch="*")

    def discard(self, name: str, version: int) -> None:
        """See `Store`."""
        if version not in self.versions(name):
            self._remove_files(name, version)

    def hashes(self, name: str, version: int) -> dict[str, str]:
        """See `Store`."""
        found = {}
        for file in self._version_files(name, version):
            if file != MANIFEST_PATH:
                found[file] = f"sha256:{hashlib.sha256(self._content(f'{name}/{version}/{file}')).hexdigest()}"
        return found

    def fetch(self, name: str, version: int, directory: Path) -> None:
        """See `Store`. The names of files come from a bucket that others may write, so each must stay below *directory*."""
        for file in self._version_files(name, version):
            target = directory / file
            if ".." in Path(file).parts or not target.is_relative_to(directory):
                raise ManifestError("it has a file whose name leads outside")
            content = self._content(f"{name}/{version}/{file}")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            except OSError as error:
                raise StorageError(f"version {version} of {name} cannot be written here: {error.strerror}") from error

    def remove(self, name: str, version: int) -> None:
        """See `Store`."""
        self.delete(f"{name}/{version}/{MANIFEST_PATH}")
        self._remove_files(name, version)

    def sweep(self, name: str) -> None:
        """See `Store`: an upload that died goes with the mark that reserved its number."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See `Store`. A holder that died is waited for until its lease ends, if that is soon enough."""
        mine = self._acquire()
        try:
            yield
        finally:
            # Whoever took over an ended lease has it now; it is not ours to give up.
            with contextlib.suppress(ConflictError):
                self._put(_LOCK, msgspec.json.encode(_Lease(holder(), 0.0)), IfMatch=mine.tag)

    def _acquire(self) -> Stored:
        give_up = time.monotonic() + self._lock_seconds
        while True:
            found = self.read(_LOCK)
            lease = _decode_lease(found.content) if found else None
            if lease is None or lease.until <= self._clock():
                who = f"{holder()} on {socket.gethostname()}"
                content = msgspec.json.encode(_Lease(who, self._clock() + LEASE_SECONDS, uuid.uuid4().hex))
                with contextlib.suppress(ConflictError):
                    return Stored(
                        content, self._put(_LOCK, content, **({"IfMatch": found.tag} if found else {"IfNoneMatch": "*"}))
                    )
            if time.monotonic() >= give_up:
                raise BusyError(busy(self.url, lease.holder if lease else ""))
            # An object store tells nobody when an object changes.
            time.sleep(_LOCK_POLL_SECONDS)

    def _version_files(self, name: str, version: int) -> list[str]:
        # Some tools put an empty object where a folder begins.
        return [file for file in self._list(f"{name}/{version}/") if file and not file.endswith("/")]

    def _remove_files(self, name: str, version: int) -> None:
        for file in self._version_files(name, version):
            self.delete(f"{name}/{version}/{file}")

    def _content(self, key: str) -> bytes:
        stored = self.read(key)
        if stored is None:
            raise ManifestError(f"{key} went away while it was read")
        return stored.content

    def _list(self, below: str) -> list[str]:
        """The keys below *below*, relative to it."""
        start = f"{self._below}{below}"
        return [key.removeprefix(start) for key in self._sync(self._keys(start))]

    async def _keys(self, start: str) -> list[str]:
        keys: list[str] = []
        page: dict[str, Any] = {"IsTruncated": True}
        token: dict[str, str] = {}
        while page["IsTruncated"]:
            page = await self._fs._call_s3("list_objects_v2", Bucket=self._bucket, Prefix=start, **token)  # noqa: SLF001
            keys += [one["Key"] for one in page.get("Contents", ())]
            token = {"ContinuationToken": page.get("NextContinuationToken", "")}
        return keys

    async def _get(self, key: str) -> Stored | None:
        # The synchronous wrapper would hand out a body that only its own loop can read.
        try:
            answer = await self._fs._call_s3("get_object", Bucket=self._bucket, Key=self._below + key)  # noqa: SLF001
        except FileNotFoundError:
            return None
        async with answer["Body"] as body:
            return Stored(await body.read(), answer["ETag"])

    def _put(self, key: str, content: bytes, **condition: str) -> str:
        """Its new ETag.

        Raises:
            ConflictError: *condition* does not hold.
        """
        try:
            tag: str = self._call("put_object", key, Body=content, **condition)["ETag"]
        except ConflictError:
            # An answer that was lost on the way makes the retry meet our own put.
            found = self.read(key)
            if found is None or found.content != content:
                raise
            return found.tag
        return tag

    def _call(self, method: str, key: str, **arguments: Any) -> Any:
        return self._sync(self._fs._call_s3(method, Bucket=self._bucket, Key=self._below + key, **arguments))  # noqa: SLF001

    def _sync(self, call: Coroutine[Any, Any, T]) -> T:
        """Run *call* on the file system's own loop, from any thread but that one."""
        try:
            return asyncio.run_coroutine_threadsafe(call, self._fs.loop).result(CALL_SECONDS)
        except TimeoutError:
            raise StorageError(f"{self.url} did not answer within {CALL_SECONDS:.0f} s; what is live stays live") from None
        except Exception as error:  # what botocore and aiohttp raise is passed on, and most of it is no OSError
            raise self._told(error) from error

    def _told(self, error: Exception) -> StorageError | ConflictError:
        answer = getattr(error.__cause__, "response", None) or {}
        code = str(answer.get("Error", {}).get("Code", ""))
        if code in _CHANGED or isinstance(error, FileExistsError):
            return ConflictError(
                f"something in {self.url} was changed by somebody else meanwhile; look again and repeat the command"
            )
        if isinstance(error, FileNotFoundError):
            return StorageError(f"there is no bucket {self._bucket!r}; make it first")
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            return StorageError(f"{self.url} cannot be used with these credentials; what is live stays live")
        return StorageError(f"{self.url} cannot be reached or does not answer in order ({code or type(error).__name__})")


def open_s3(prefix: str) -> ObjectStore:
    """The store at s3://*prefix*; credentials, region and AWS_ENDPOINT_URL as the AWS tools take them.

    Raises:
        RepositoryError: s3fs is not installed.
    """
    try:
        import s3fs  # type: ignore[import-untyped]  # noqa: PLC0415 (an extra)
    except ImportError:
        raise RepositoryError("a repository in S3 takes the extra `s3`: pip install 'trunkline[s3]'") from None
    # One per process is enough; what another thread cached of a listing must never be believed.
    return ObjectStore(s3fs.S3FileSystem(use_listings_cache=False), prefix)


def _decode_lease(content: bytes) -> _Lease | None:
    """The lease; what is none is nobody's."""
    try:
        return msgspec.json.decode(content, type=_Lease)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None
