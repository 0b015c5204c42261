"""Vectors that embedding services share through one Redis, behind each process's own cache, and never waited for long.

A vector is kept under a digest of all that decides it: the trunk's fingerprint, the engine's label (bfloat16, float32 and int8
give different numbers for the same ids), token ids and view. What cannot be had in time, or does not check out, is a miss.

Single owner of the connections and of what waits for them. Look-ups share one connection: those that arrive while one is under
way make the next. Writes have another, and wait until the answers are out. Redis Cluster is not supported: a look-up's keys
belong to many slots.
"""

import asyncio
import contextlib
import hashlib
import logging
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import numpy as np
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from embedding_service.backend import FloatArray, View
from embedding_service.reuse import Found, Wanted
from embedding_service.telemetry import SharedCacheTelemetry

_log = logging.getLogger(__name__)

PREFIX: Final = b"trunkline:vector:1:"
"""The number is of the format: of the key's digest and of `encode`."""

MAX_WAITING: Final = 1_024
"""Inputs that may wait for a look-up, and as many vectors for being written: about 1.5 MB each, for 384 numbers a vector."""

WRITE_AFTER: Final = 0.005
"""Seconds. The answers go out first, and what more has landed by then shares the pipeline."""

_MAX_PIPELINE: Final = 128
_CHECKSUM_BYTES: Final = 8
_HEAD: Final = struct.Struct("<I")


def encode(key: bytes, vector: FloatArray) -> bytes:
    """*vector*, float32 [width], as kept under *key*: checksum, width (uint32), numbers; all little-endian."""
    body = _HEAD.pack(len(vector)) + vector.astype("<f4", copy=False).tobytes()
    return _checksum(key, body) + body


def decode(key: bytes, value: object) -> FloatArray | None:
    """The vector *encode* made for *key*, for reading only; None for anything else, such as the value of another key."""
    if not isinstance(value, bytes) or len(value) < _CHECKSUM_BYTES + _HEAD.size:
        return None
    body = value[_CHECKSUM_BYTES:]
    [width] = _HEAD.unpack_from(body)
    if len(body) != _HEAD.size + 4 * width or value[:_CHECKSUM_BYTES] != _checksum(key, body):
        return None
    return np.frombuffer(body, dtype="<f4", offset=_HEAD.size).astype(np.float32, copy=False)


def _checksum(key: bytes, body: bytes) -> bytes:
    # With the key in it, an answer that belongs to another question is never taken for this one's.
    return hashlib.blake2b(key + body, digest_size=_CHECKSUM_BYTES).digest()


class Circuit:
    """How long to leave a failing thing alone: *first* seconds, then twice as long each time, at most *most*.

    Pure: it is told the time. It begins open and may be tried at once. What happened to it answers whether that is news.
    """

    def __init__(self, *, first: float = 1.0, most: float = 30.0) -> None:
        self._first = first
        self._most = most
        self._wait = 0.0
        self._until = 0.0
        self._was_tried = False
        self.is_open = True

    def __repr__(self) -> str:
        return f"<Circuit [{'open' if self.is_open else 'closed'}, {self._wait:g} s]>"

    def may_try(self, now: float) -> bool:
        """Whether it has been left alone for long enough."""
        return not self.is_open or now >= self._until

    def failed(self, now: float) -> bool:
        """It failed, and is left alone."""
        self._wait = min(max(self._first, 2 * self._wait), self._most)
        self._until = now + self._wait
        return self._turn(is_open=True)

    def answered(self) -> bool:
        """A trial went well. The next failure still counts as one more in a row."""
        return self._turn(is_open=False)

    def worked(self) -> bool:
        """It did what it is for."""
        self._wait = 0.0
        return self._turn(is_open=False)

    def _turn(self, *, is_open: bool) -> bool:
        is_news = self.is_open != is_open or not self._was_tried
        self.is_open, self._was_tried = is_open, True
        return is_news


@dataclass(frozen=True, slots=True)
class _Question:
    keys: list[list[bytes]]
    tell: Callable[[list[Found]], None]
    asked: float


@dataclass(frozen=True, slots=True)
class _Unwritten:
    keys: Callable[[], list[bytes]]
    vectors: Sequence[FloatArray]


class SharedVectorCache:
    """A Redis at *url*. All methods belong to the event loop.

    Nothing waits longer than *timeout* seconds for it, connecting included. A vector is forgotten *expiry* seconds after it was
    written. After a failure the cache is left alone for a while, and then tried by a look-up of its own that nobody waits for.
    """

    def __init__(self, url: str, telemetry: SharedCacheTelemetry, *, timeout: float, expiry: int) -> None:
        """Connects to nothing yet.

        Raises:
            ValueError: *url* is not one.
        """
        self._telemetry = telemetry
        self._timeout = timeout
        self._expiry = expiry
        self._address = _address(url)
        self._reader, self._writer = _client(url, timeout), _client(url, timeout)
        self._reads, self._writes = Circuit(), Circuit()
        self._writes.worked()
        self._questions: list[_Question] = []
        self._unwritten: list[_Unwritten] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<SharedVectorCache {self._address} [reads {self._reads!r}, writes {self._writes!r}]>"

    def of(self, fingerprint: str, engine_label: str) -> "TrunkVectors":
        """The part of the trunk of *fingerprint* as run by the engine of *engine_label*."""
        return TrunkVectors(self, fingerprint, engine_label)

    async def start(self) -> None:
        """Connect, so that the first caller need not wait for it. A cache that cannot be reached is no error."""
        await self._try()

    async def aclose(self) -> None:
        """Answer what was asked, write what waits if that is quick, and disconnect. May be called again."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))
        await self._disconnect(self._reader)
        await self._disconnect(self._writer)

    def will_look_up(self, count: int, deadline: float) -> bool:
        """Whether *count* more inputs may be asked for: the cache works, has room, and leaves time to compute what it lacks."""
        now = time.monotonic()
        if self._reads.is_open and self._reads.may_try(now):
            self._begin("try", self._try)
        waiting = sum(len(question.keys) for question in self._questions)
        fits = waiting + count <= MAX_WAITING and deadline - now > self._timeout
        if self._closed or self._reads.is_open or not fits:
            self._telemetry.shared_looked_up("skipped", count)
            return False
        return True

    def look_up(self, keys: list[list[bytes]], tell: Callable[[list[Found]], None]) -> None:
        """Find each input's vectors by all of its *keys*; *tell* is called later, once, after *timeout* seconds at most."""
        self._questions.append(_Question(keys, tell, time.monotonic()))
        self._begin("read", self._read)

    def write(self, keys: Callable[[], list[bytes]], vectors: Sequence[FloatArray]) -> None:
        """Keep *vectors* under what *keys* gives, later; dropped where too many wait or the cache does not work."""
        may_write = not self._closed and not self._reads.is_open and self._writes.may_try(time.monotonic())
        if not may_write or len(self._unwritten) >= MAX_WAITING:
            self._telemetry.shared_written("dropped", 1)
            return
        self._unwritten.append(_Unwritten(keys, vectors))
        self._begin("write", self._write)

    def _begin(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have one task, and no more, do *work*."""
        if name not in self._tasks and not self._closed:
            self._tasks[name] = asyncio.create_task(self._do(name, work))

    async def _do(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        finally:
            # Here, and not in a callback: between the last look at what waits and this nothing else may run.
            del self._tasks[name]

    async def _try(self) -> None:
        try:
            await self._mget([PREFIX + b"none"], self._timeout)
        except Exception as fault:  # whatever the client makes of a broken server's bytes
            self._reads_failed(fault)
            await self._disconnect(self._reader)
        else:
            if self._reads.answered():
                _log.info("the shared cache at %s answers", self._address)

    async def _read(self) -> None:
        while self._questions:
            questions, self._questions = self._questions, []
            keys = [key for question in questions for keys in question.keys for key in keys]
            try:
                values = await self._mget(keys, questions[0].asked + self._timeout - time.monotonic())
            except Exception as fault:
                self._reads_failed(fault)
                self._give_up(questions)
                await self._disconnect(self._reader)
            else:
                self._reads.worked()
                self._tell(questions, dict(zip(keys, values, strict=True)))

    async def _mget(self, keys: list[bytes], seconds: float) -> Sequence[object]:
        async with asyncio.timeout(seconds):
            values = await self._reader.mget(keys)
        if not isinstance(values, list) or len(values) != len(keys):
            raise ValueError("another number of values than of keys")
        return values

    def _reads_failed(self, fault: Exception) -> None:
        if self._reads.failed(time.monotonic()):
            _log.warning("the shared cache at %s cannot be used and is left alone: %s", self._address, type(fault).__name__)

    def _give_up(self, questions: list[_Question]) -> None:
        """*questions* were asked in vain, and those behind them are not asked any more."""
        behind, self._questions = self._questions, []
        for result, unanswered in (("error", questions), ("skipped", behind)):
            for question in unanswered:
                self._telemetry.shared_looked_up(result, len(question.keys))
                self._answer(question, [None] * len(question.keys))

    def _tell(self, questions: list[_Question], values: dict[bytes, object]) -> None:
        for question in questions:
            found = [_all_of([decode(key, values[key]) for key in keys]) for keys in question.keys]
            hits = sum(vectors is not None for vectors in found)
            if hits:
                self._telemetry.shared_looked_up("hit", hits)
            if hits < len(found):
                self._telemetry.shared_looked_up("miss", len(found) - hits)
            self._answer(question, found)

    def _answer(self, question: _Question, found: list[Found]) -> None:
        # By the loop: a fault in there must not leave the other questions without an answer.
        asyncio.get_running_loop().call_soon(question.tell, found)

    async def _write(self) -> None:
        await asyncio.sleep(WRITE_AFTER)
        while self._unwritten:
            rows, self._unwritten = self._unwritten[:_MAX_PIPELINE], self._unwritten[_MAX_PIPELINE:]
            try:
                await self._set(rows)
            except Exception as fault:
                self._writes_failed(fault, len(rows))
                await self._disconnect(self._writer)
            else:
                if self._writes.worked():
                    _log.info("the shared cache at %s takes vectors again", self._address)
                self._telemetry.shared_written("ok", len(rows))

    async def _set(self, rows: list[_Unwritten]) -> None:
        pipeline = self._writer.pipeline(transaction=False)
        for row in rows:
            for key, vector in zip(row.keys(), row.vectors, strict=True):
                pipeline.set(key, encode(key, vector), ex=self._expiry)
        async with asyncio.timeout(self._timeout):
            await pipeline.execute()

    def _writes_failed(self, fault: Exception, count: int) -> None:
        if self._writes.failed(time.monotonic()):
            _log.warning("the shared cache at %s takes no vectors: %s", self._address, type(fault).__name__)
        self._telemetry.shared_written("error", count)
        self._telemetry.shared_written("dropped", len(self._unwritten))
        self._unwritten = []

    async def _disconnect(self, client: "redis.asyncio.Redis") -> None:
        """Have the next command begin on a new connection."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self._timeout):
                await client.connection_pool.disconnect()


class TrunkVectors:
    """One trunk's part of a shared cache; see `reuse.SharedVectors`."""

    def __init__(self, cache: SharedVectorCache, fingerprint: str, engine_label: str) -> None:
        self._cache = cache
        self._begun = hashlib.sha256(f"{fingerprint}\0{engine_label}\0".encode())

    def look_up(self, wanted: Sequence[Wanted], deadline: float, tell: Callable[[list[Found]], None]) -> bool:
        """See `reuse.SharedVectors`."""
        if any(view.pooling == "tokens" for _, views in wanted for view in views):
            return False
        if not self._cache.will_look_up(len(wanted), deadline):
            return False
        self._cache.look_up([self.keys(*each) for each in wanted], tell)
        return True

    def keep(self, ids: tuple[int, ...], views: Sequence[View], vectors: Sequence[FloatArray]) -> None:
        """See `reuse.SharedVectors`."""
        if not any(view.pooling == "tokens" for view in views):
            self._cache.write(lambda: self.keys(ids, views), vectors)

    def keys(self, ids: tuple[int, ...], views: Sequence[View]) -> list[bytes]:
        """What the vectors of *ids* by *views* are kept under."""
        packed = struct.pack(f"<{len(ids)}i", *ids)
        keys = []
        for view in views:
            digest = self._begun.copy()
            digest.update(f"{view.pooling} {view.layer} {view.normalize:d} {view.dims}\0".encode() + packed)
            keys.append(PREFIX + digest.hexdigest().encode())
        return keys


def _all_of(vectors: list[FloatArray | None]) -> Found:
    found = [vector for vector in vectors if vector is not None]
    return found if len(found) == len(vectors) else None


def _client(url: str, timeout: float) -> "redis.asyncio.Redis":
    # By default redis-py waits 5 s for a socket and then tries again. RESP2 spares a round trip at the beginning.
    return redis.asyncio.Redis.from_url(
        url,
        socket_connect_timeout=timeout,
        socket_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        max_connections=1,
        protocol=2,
    )


def _address(url: str) -> str:
    """*url* without its user, password and options."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6379}{parts.path}" if parts.hostname else parts.path
