"""What is known, or under way already, is not computed again. Stands between those who ask and the batcher.

Vectors are kept by token ids and view, for one trunk and engine: the same ids always give the same vectors, to the last places
that the company in a batch may change. Equal inputs that meet before they are answered share one entry of the queue. What other
services know (`SharedVectors`) is looked up before an entry is queued, by nobody who has less time than that may take.
"""

import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, cast
from weakref import WeakValueDictionary

import numpy as np

from embedding_service.backend import FloatArray, View
from embedding_service.batching import Batcher, Outcome, Row, Waiter, run_rows
from embedding_service.errors import EmbedError
from embedding_service.queue import Entry
from embedding_service.telemetry import TrunkTelemetry

_Ids = tuple[int, ...]
Wanted = tuple[_Ids, tuple[View, ...]]
"""What decides the vectors of a row: its ids (where a pair divides behind them, as a negative number), and its views."""
Found = list[FloatArray] | None
"""One vector a view, or nothing."""

ENTRY_OVERHEAD: Final = 400
"""Bytes a cached vector costs beside itself and 8 bytes a token id: the objects around it."""


class VectorCache:
    """The last used pooled vectors, at most *max_bytes* of them. A vector whose checksum fails is forgotten."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._rows: OrderedDict[tuple[_Ids, View], tuple[FloatArray, int]] = OrderedDict()
        self.num_bytes = 0

    def __repr__(self) -> str:
        return f"<VectorCache [{len(self._rows)} vectors, {self.num_bytes} bytes]>"

    def find(self, ids: _Ids, views: Sequence[View]) -> list[FloatArray] | None:
        """The vectors of *ids* by all *views*, or None when one is missing. For reading only."""
        found = []
        for view in views:
            row = self._rows.get((ids, view))
            if row is None:
                return None
            vector, checksum = row
            if zlib.crc32(vector.data) != checksum:
                self._forget((ids, view))
                return None
            self._rows.move_to_end((ids, view))
            found.append(vector)
        return found

    def keep(self, ids: _Ids, views: Sequence[View], vectors: Sequence[FloatArray]) -> None:
        """Remember *vectors*; those of tokens are too large to be worth it."""
        for view, vector in zip(views, vectors, strict=True):
            size = _size(ids, vector)
            if view.pooling == "tokens" or size > self.max_bytes or (ids, view) in self._rows:
                continue
            own = np.array(vector)  # a row of a batch would keep the whole batch
            self._rows[ids, view] = own, zlib.crc32(own.data)
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self._forget(next(iter(self._rows)))

    def _forget(self, key: tuple[_Ids, View]) -> None:
        vector, _ = self._rows.pop(key)
        self.num_bytes -= _size(key[0], vector)


def _size(ids: _Ids, vector: FloatArray) -> int:
    return vector.nbytes + 8 * len(ids) + ENTRY_OVERHEAD


class SharedVectors(Protocol):
    """What several services know of one trunk run by one engine. May fail or be slow at any time and must not show it."""

    def look_up(self, wanted: Sequence[Wanted], deadline: float, tell: Callable[[list[Found]], None]) -> bool:
        """Whether *wanted* is looked up; *tell* is then called once, in a later turn of the loop and before *deadline*."""
        ...

    def keep(self, ids: _Ids, views: Sequence[View], vectors: Sequence[FloatArray]) -> None:
        """Remember *vectors*, when there is time for it."""
        ...


class Reuse:
    """Single owner of the cache and of what is under way. All methods belong to the event loop's thread."""

    def __init__(
        self, batcher: Batcher, cache: VectorCache, telemetry: TrunkTelemetry, shared: SharedVectors | None = None
    ) -> None:
        self._batcher = batcher
        self._cache = cache
        self._telemetry = telemetry
        self._shared = shared
        # Weak: a flight nobody waits for leaves the queue without a word.
        self._flights: WeakValueDictionary[Wanted, _Flight] = WeakValueDictionary()

    @property
    def remembers(self) -> bool:
        """Whether an answer may be known without a forward pass."""
        return self._shared is not None or self._cache.max_bytes > 0

    async def run(self, rows: Sequence[Row], *, deadline: float, is_bulk: bool = False) -> Outcome:
        """See `batching.Batcher.run`, errors included."""
        return await run_rows(self.admit, rows, deadline=deadline, is_bulk=is_bulk)

    def admit(self, entries: list[Entry]) -> None:
        """See `batching.Batcher.admit`, errors included: where it refuses what is new, nothing of *entries* is answered.

        What is looked up elsewhere first is refused later, by failing its waiters.
        """
        known: list[tuple[Entry, list[FloatArray]]] = []
        joining: list[tuple[Entry, _Flight]] = []
        fresh: dict[Wanted, _Flight] = {}
        for entry in entries:
            key = _key(entry)
            vectors = self._cache.find(*key)
            flight = fresh.get(key) or self._flights.get(key)
            if vectors is not None:
                known.append((entry, vectors))
            elif flight is not None and flight.takes(entry):
                joining.append((entry, flight))
            else:
                fresh[key] = _Flight(entry, self)
        if fresh and not self._is_looked_up(fresh):
            try:
                self._batcher.admit([flight.entry for flight in fresh.values()])
            except EmbedError:
                # Each knows its entry, and that knows it: refusals are too many to be left to the collector.
                for flight in fresh.values():
                    flight.let_go()
                raise
        self._flights.update(fresh)
        for entry, flight in joining:
            flight.join(entry)
        for entry, vectors in known:
            _waiter(entry).put(entry.index, vectors, 0.0, 0.0)
        self._count(known=len(known), joined=len(joining))

    def _is_looked_up(self, fresh: dict[Wanted, "_Flight"]) -> bool:
        if self._shared is None:
            return False
        deadline = min(flight.entry.deadline for flight in fresh.values())
        return self._shared.look_up(list(fresh), deadline, partial(self._looked_up, list(fresh.values())))

    def _looked_up(self, flights: list["_Flight"], found: list[Found]) -> None:
        now, missing, num_found = time.monotonic(), [], 0
        for flight, vectors in zip(flights, found, strict=True):
            if vectors is not None:
                num_found += 1
                self._cache.keep(*_key(flight.entry), vectors)
                self.ended(flight)
                flight.tell(vectors, now - flight.entry.arrived, 0.0)
            elif flight.is_settled:
                self.ended(flight)
            else:
                missing.append(flight)
        if num_found:
            self._telemetry.entries_reused("shared", num_found)
        if missing:
            self._admit_late(missing)

    def _admit_late(self, flights: list["_Flight"]) -> None:
        """Queue all of one caller's *flights* or fail it; whoever joined one of them meanwhile need not share its fate."""
        try:
            self._batcher.admit([flight.entry for flight in flights])
        except EmbedError as error:
            if len(flights) == 1:
                flights[0].fail(error)
                return
            for flight in flights:
                if flight.fail_first(error):
                    self._admit_late([flight])
                else:
                    self.ended(flight)

    def landed(self, flight: "_Flight", vectors: list[FloatArray]) -> None:
        """*flight* has its *vectors*; whoever comes now finds them in the cache."""
        ids, views = _key(flight.entry)
        self._cache.keep(ids, views, vectors)
        if self._shared is not None:
            self._shared.keep(ids, views, vectors)
        self.ended(flight)

    def ended(self, flight: "_Flight") -> None:
        """*flight* can no longer be joined."""
        key = _key(flight.entry)
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _count(self, *, known: int, joined: int) -> None:
        if known:
            self._telemetry.entries_reused("cached", known)
        if joined:
            self._telemetry.entries_reused("joined", joined)


class _Flight:
    """One entry of the queue and all who wait for its vectors; a `batching.Waiter` itself."""

    __slots__ = ("__weakref__", "_members", "_reuse", "entry")

    def __init__(self, first: Entry, reuse: Reuse) -> None:
        self.entry = Entry(first.token_ids, first.views, self, 0, first.arrived, first.deadline, first.is_bulk, first.pair_at)
        self._members = [first]
        self._reuse = reuse

    @property
    def is_settled(self) -> bool:
        """Nobody waits any more."""
        return all(member.ticket.is_settled for member in self._members)

    def takes(self, entry: Entry) -> bool:
        """Whether *entry* may join: not where nobody is left or in time, since that is not executed, nor in a lower class."""
        is_executed = not self.is_settled and self.entry.deadline > entry.arrived
        return is_executed and (entry.is_bulk or not self.entry.is_bulk)

    def join(self, entry: Entry) -> None:
        """*entry* waits for the same vectors; the most patient decides how long they may take."""
        self._members.append(entry)
        self.entry.deadline = max(self.entry.deadline, entry.deadline)

    def put(self, index: int, vectors: list[FloatArray], queue_seconds: float, inference_seconds: float) -> None:
        """See `batching.Waiter`."""
        del index
        self._reuse.landed(self, vectors)
        self.tell(vectors, queue_seconds, inference_seconds)

    def tell(self, vectors: list[FloatArray], queue_seconds: float, inference_seconds: float) -> None:
        """All who wait get *vectors*."""
        for member in self.let_go():
            # Who joined late has queued for less.
            queued = max(0.0, queue_seconds - (member.arrived - self.entry.arrived))
            _waiter(member).put(member.index, vectors, queued, inference_seconds)

    def fail_first(self, error: EmbedError) -> bool:
        """The one it was made for cannot have the vectors; whether somebody else still waits for them."""
        _waiter(self._members[0]).fail(error)
        return not self.is_settled

    def fail(self, error: EmbedError) -> None:
        """See `batching.Waiter`."""
        self._reuse.ended(self)
        for member in self.let_go():
            _waiter(member).fail(error)

    def let_go(self) -> list[Entry]:
        """All who waited. Their vectors would otherwise live until the collector finds flight and entry in a circle."""
        members, self._members = self._members, []
        self.entry.ticket = _LANDED
        return members


class _Landed:
    """Where nobody waits."""

    is_settled = True


_LANDED: Final = _Landed()


def _key(entry: Entry) -> Wanted:
    """What decides the vectors; no id is a negative number."""
    ids = (*entry.token_ids, -entry.pair_at) if entry.pair_at else entry.token_ids
    return ids, entry.views


def _waiter(entry: Entry) -> Waiter:
    return cast("Waiter", entry.ticket)
