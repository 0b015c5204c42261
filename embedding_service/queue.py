"""The queue as pure data: what waits, in which order it leaves, and when it is full. No clock, no waiting, no settling.

Entries are kept by length, because rows of one length need no padding. A batch is cut around a *seed*, the entry of lowest
rank: `rank = tokens + penalty(priority) - ageing * waited`. Short texts therefore overtake long ones, but an entry that has
waited long enough outranks any other, so nothing starves. Around the seed the batch takes the nearest lengths for as long
as padding stays within bounds.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from embedding_service.backend import View


class Ticket(Protocol):
    """The request an entry belongs to, as far as the queue is concerned."""

    @property
    def is_settled(self) -> bool:
        """Nobody waits for it any more: answered, failed, or its caller has left."""
        ...


@dataclass(slots=True, eq=False)
class Entry:
    """One queued input. *arrived* and *deadline* are seconds of the same monotonic clock; *index* is its place in the ticket."""

    token_ids: tuple[int, ...]
    views: tuple[View, ...]
    ticket: Ticket
    index: int
    arrived: float
    deadline: float
    is_bulk: bool = False

    @property
    def num_tokens(self) -> int:
        """Special tokens included."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The few numbers everything else follows from.

    *max_batch_tokens* bounds the computed tokens of one batch, padding included (a single longer entry still runs, alone).
    *max_padding* is the share of computed tokens that may be padding. *ageing* is in tokens a second: how fast waiting
    makes an entry look shorter. *bulk_penalty* in tokens: how much longer a bulk entry looks than it is.
    """

    max_batch_tokens: int = 512
    max_batch_requests: int = 32
    max_padding: float = 0.15
    max_queued_tokens: int = 65_536
    ageing: float = 2_048.0
    bulk_penalty: float = 4_096.0


@dataclass(slots=True)
class Taken:
    """What left the queue in one cut: *batch* is to be run, *expired* to be told so; the departed need nothing."""

    batch: list[Entry] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)
    num_departed: int = 0

    @property
    def padded_tokens(self) -> int:
        """Tokens computed for *batch* when each row is padded to the longest."""
        return max((entry.num_tokens for entry in self.batch), default=0) * len(self.batch)


class Queue:
    """Entries by (priority, length), first come first served within. Owned by one batcher, used from one thread."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.num_tokens = 0
        self.num_entries = 0
        self._lanes: dict[tuple[bool, int], deque[Entry]] = {}

    def __repr__(self) -> str:
        return f"<Queue [{self.num_entries} entries, {self.num_tokens} tokens, {len(self._lanes)} lanes]>"

    def __iter__(self) -> Iterator[Entry]:
        return (entry for lane in self._lanes.values() for entry in lane)

    def has_room(self, entries: list[Entry]) -> bool:
        """Whether *entries* may be appended, all of them. An empty queue takes any list, so none is refused for ever."""
        tokens = sum(entry.num_tokens for entry in entries)
        return not self.num_entries or self.num_tokens + tokens <= self.limits.max_queued_tokens

    def append(self, entries: list[Entry]) -> None:
        """Queue all *entries*. The caller has asked `has_room`."""
        for entry in entries:
            self._lanes.setdefault((entry.is_bulk, entry.num_tokens), deque()).append(entry)
            self.num_tokens += entry.num_tokens
        self.num_entries += len(entries)

    def oldest_age(self, now: float) -> float:
        """Seconds the longest-waiting entry has waited; 0 when nothing waits."""
        return max((now - lane[0].arrived for lane in self._lanes.values()), default=0.0)

    def take(self, now: float, *, free_slots: int = 1) -> Taken:
        """Cut the next batch, fairly sized when *free_slots* batches can start now. Empty when nothing runnable waits."""
        taken = Taken()
        self._drop_dead_heads(now, taken)
        seed = min(self._lanes, key=lambda key: self._rank(key, now), default=None)
        if seed is not None:
            self._fill(taken, seed, now, free_slots)
        return taken

    def take_all(self) -> list[Entry]:
        """Empty the queue."""
        entries = list(self)
        self._lanes.clear()
        self.num_tokens = self.num_entries = 0
        return entries

    def _rank(self, lane: tuple[bool, int], now: float) -> float:
        is_bulk, length = lane
        waited = now - self._lanes[lane][0].arrived
        return length + self.limits.bulk_penalty * is_bulk - self.limits.ageing * waited

    def _fill(self, taken: Taken, seed: tuple[bool, int], now: float, free_slots: int) -> None:
        budget = self.limits.max_batch_tokens
        if free_slots > 1:
            budget = min(budget, max(self.num_tokens // free_slots, seed[1]))
        longest = real = 0
        for lane in sorted(self._lanes, key=lambda key: (abs(key[1] - seed[1]), key[0])):
            while lane in self._lanes and len(taken.batch) < self.limits.max_batch_requests:
                length = lane[1]
                computed = max(longest, length) * (len(taken.batch) + 1)
                padding = 1 - (real + length) / computed
                if taken.batch and (computed > budget or padding > self.limits.max_padding):
                    break
                taken.batch.append(self._pop(lane))
                longest, real = max(longest, length), real + length
                self._drop_dead_head(lane, now, taken)

    def _drop_dead_heads(self, now: float, taken: Taken) -> None:
        for lane in list(self._lanes):
            self._drop_dead_head(lane, now, taken)

    def _drop_dead_head(self, lane: tuple[bool, int], now: float, taken: Taken) -> None:
        """Entries of departed callers and passed deadlines leave without being run."""
        while lane in self._lanes:
            head = self._lanes[lane][0]
            if head.ticket.is_settled:
                taken.num_departed += 1
            elif head.deadline <= now:
                taken.expired.append(head)
            else:
                return
            self._pop(lane)

    def _pop(self, key: tuple[bool, int]) -> Entry:
        lane = self._lanes[key]
        entry = lane.popleft()
        if not lane:
            del self._lanes[key]
        self.num_tokens -= entry.num_tokens
        self.num_entries -= 1
        return entry
