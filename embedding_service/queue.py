"""The queue as pure data: what waits, in which order it leaves, and when it is full. No clock, no waiting, no settling.

Entries are kept by length, because rows of one length need no padding. A batch is cut around a *seed*, the entry of lowest
rank: `rank = tokens + penalty(priority) - ageing * waited`. Short texts therefore overtake long ones, but an entry that has
waited long enough outranks any other, so nothing starves. With several threads, half of them go to long rows first
(`long_room`). Around the seed the batch takes the nearest lengths for as long as padding costs less than another pass would
(`cut`). Whether a pass starts beside a running one is `may_start`, and `joins_next` where that one has all cores.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from embedding_service.backend import PassCost, View


class Ticket(Protocol):
    """The request an entry belongs to, as far as the queue is concerned."""

    @property
    def is_settled(self) -> bool:
        """Nobody waits for it any more: answered, failed, or its caller has left."""
        ...


@dataclass(slots=True, eq=False)
class Entry:
    """One queued input. *arrived* and *deadline* are seconds of the same monotonic clock; *index* is its place in the ticket.

    *pair_at* as in `backend.Batch`.
    """

    token_ids: tuple[int, ...]
    views: tuple[View, ...]
    ticket: Ticket
    index: int
    arrived: float
    deadline: float
    is_bulk: bool = False
    pair_at: int = 0

    @property
    def num_tokens(self) -> int:
        """Special tokens included."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The few numbers everything else follows from.

    *max_batch_tokens* bounds one batch: its tokens and what its padding costs (a single longer entry still runs, alone).
    *pass_overhead* takes the place of the engine's own (`backend.PassCost`); None: it stays. *ageing* is in tokens a second:
    how fast waiting makes an entry look shorter. *bulk_penalty* in tokens: how much longer a bulk entry looks than it is.
    *side_pass_share*: how many rows must wait for another pass to start beside a running one, as a share of that one's rows.
    *ahead_share*: how much of *max_batch_tokens* a batch must carry, or else all the rows it may, to be cut before a thread is
    free for it; None: none is. *lone_tokens* takes the place of the engine's own
    (`backend.EngineSpec`): up to so many make one pass; None: it stays. *bulk_queue_share* is how much of *max_queued_tokens* may
    be taken when a bulk list is to be added, so that interactive ones find room. *max_wait_seconds*: nothing interactive is added
    behind more work than runs in that time. *max_queue_seconds*: nothing is added to a class whose oldest entry has waited
    longer than that. Rows of *long_tokens* and more keep a thread for long: see `long_room`.
    """

    max_batch_tokens: int = 512
    max_batch_requests: int = 32
    pass_overhead: float | None = None
    max_queued_tokens: int = 65_536
    bulk_queue_share: float = 0.75
    max_wait_seconds: float = 2.5
    max_queue_seconds: float = 10.0
    ageing: float = 2_048.0
    bulk_penalty: float = 4_096.0
    side_pass_share: float = 0.5
    ahead_share: float | None = 0.25
    lone_tokens: int | None = None
    long_tokens: int = 128

    def price_of(self, cost: PassCost) -> PassCost:
        """*cost*, an engine's, by which batches are to be cut."""
        return cost if self.pass_overhead is None else replace(cost, overhead=self.pass_overhead)


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows wait, or are in a batch; *num_interactive* are not bulk, the *longest* in a batch has so many tokens.

    *num_tokens* are those of all rows.
    """

    num_all: int = 0
    num_interactive: int = 0
    longest: int = 0
    num_tokens: int = 0


@dataclass(slots=True)
class Taken:
    """What left the queue in one cut: *batch* is to be run, *expired* to be told so; the departed need nothing."""

    batch: list[Entry] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)
    num_departed: int = 0

    def set_aside(self, entry: Entry, now: float) -> bool:
        """Take note of *entry* if it need not be run: its caller has left or its deadline has passed. Whether that is so."""
        if entry.ticket.is_settled:
            self.num_departed += 1
            return True
        if entry.deadline <= now:
            self.expired.append(entry)
            return True
        return False

    @property
    def rows(self) -> Rows:
        """Of *batch*."""
        lengths = [entry.num_tokens for entry in self.batch]
        return Rows(len(lengths), sum(not entry.is_bulk for entry in self.batch), max(lengths, default=0), sum(lengths))

    def computed_tokens(self, cost: PassCost) -> int:
        """Tokens computed for *batch*, its padding counted by what it costs."""
        return round(BatchShape(cost, [entry.num_tokens for entry in self.batch]).computed)


class BatchShape:
    """The rows of a batch as it grows, and what they cost in tokens. *lengths* are those it begins with."""

    __slots__ = ("_cost", "_longest", "_num_rows", "_squares", "wanted")

    def __init__(self, cost: PassCost, lengths: Iterable[int] = ()) -> None:
        self._cost = cost
        self._num_rows = self._longest = self._squares = 0
        self.wanted = 0
        """Tokens of the rows themselves."""
        for length in lengths:
            self.add(length)

    def add(self, length: int) -> None:
        """One row more."""
        self._num_rows += 1
        self._longest = max(self._longest, length)
        self._squares += length * length
        self.wanted += length

    @property
    def padding(self) -> float:
        """What the rows cost together beyond what they would by themselves, the pass's overhead aside."""
        area = self._num_rows * self._longest
        return self._cost.padding * (area - self.wanted) + self._cost.cell * (area * self._longest - self._squares)

    @property
    def computed(self) -> float:
        """`wanted` and `padding`."""
        return self.wanted + self.padding


def cut(lengths: Sequence[int], *, budget: float, cost: PassCost) -> int:
    """How many of *lengths*, taken in order, make a batch; at least one, if there is one.

    It grows until its padding would cost more than the pass that cutting it in two would add: for lengths spread evenly,
    n rows cost overhead / n + c * n each, least where both terms are equal. Beyond a single row a batch costs no more than
    *budget* tokens.
    """
    shape = BatchShape(cost)
    for num_before, length in enumerate(lengths):
        shape.add(length)
        padding = shape.padding
        if num_before and (shape.wanted + padding > budget or padding > cost.overhead):
            return num_before
    return len(lengths)


def may_start(waiting: Rows, running: Sequence[Rows], share: float) -> bool:
    """Whether a pass may start beside those *running*, as far as their rows go, or should gather more until one of them ends.

    Passes that start one by one as rows trickle in carry few rows each, and each pays its overhead. How many rows the largest
    running pass got together tells how busy the service is, so *share* of that many must wait: one beside one starts at once.
    Interactive rows are also weighed by themselves, so that they never wait for bulk ones.
    """
    enough = waiting.num_all >= share * max((rows.num_all for rows in running), default=0)
    urgent = waiting.num_interactive >= share * max((rows.num_interactive for rows in running), default=0)
    return waiting.num_all > 0 and (enough or (waiting.num_interactive > 0 and urgent))


def is_for_one_pass(waiting: Rows, lone_tokens: int) -> bool:
    """Whether what waits, while no pass is under way, is done sooner by one pass on all cores than by several side by side.

    A second pass costs its overhead once more. Of interactive and bulk rows together, the ones would wait for the others.
    """
    return waiting.num_tokens <= lone_tokens and waiting.num_interactive in {0, waiting.num_all}


def joins_next(waiting: Rows, lone: Rows, lone_tokens: int) -> bool:
    """Whether what waits is left for the end of *lone*, a pass on all cores and the only one, and is then the next such pass.

    Beside it, it would share the cores with it, and end later than after it, as long as *lone* is small. Where more than
    *lone_tokens* have come together passes side by side do more with the cores. No interactive row waits for bulk ones.
    """
    is_little = max(waiting.num_tokens, lone.num_tokens) <= lone_tokens
    return is_little and (lone.num_interactive == lone.num_all or not waiting.num_interactive)


def still_wanted(entries: Sequence[Entry], now: float) -> Taken:
    """*entries* sorted into those to be run, those whose deadline has passed, and those whose caller has left."""
    taken = Taken()
    taken.batch = [entry for entry in entries if not taken.set_aside(entry, now)]
    return taken


def long_room(running: Sequence[Rows], concurrency: int, long_tokens: int) -> bool | None:
    """Whether a pass of long rows should start now, given those *running*, where short rows wait as well.

    A long row keeps its thread for many times as long as a short one, and short ones that meet all threads so taken wait for
    all of them. So half of the threads, and no more, are for long rows while short ones wait: those then neither pile up
    behind short ones until they are old, nor come all at once. None where there is one thread: rank alone decides.
    """
    if concurrency < 2:
        return None
    return sum(rows.longest >= long_tokens for rows in running) < concurrency // 2


class EntryQueue(Protocol):
    """What a batcher needs of a queue; `Queue` is the one the service runs on."""

    limits: QueueLimits
    num_tokens: int
    num_entries: int

    @property
    def rows(self) -> Rows:
        """What waits."""
        ...

    @property
    def interactive_tokens(self) -> int:
        """Of what waits, the part that is not bulk."""
        ...

    def has_room(self, entries: list[Entry]) -> bool:
        """Whether *entries* may be appended, all of them."""
        ...

    def late_classes(self, now: float) -> frozenset[bool]:
        """The classes, bulk or not, whose oldest entry has waited too long for more to be added."""
        ...

    def oldest_age(self, now: float) -> float:
        """Seconds the longest-waiting entry has waited."""
        ...

    def append(self, entries: list[Entry]) -> None:
        """Queue all *entries*."""
        ...

    def take(self, now: float, *, free_slots: int = 1, has_long_room: bool | None = None) -> Taken:
        """Cut the next batch."""
        ...

    def take_ahead(self, now: float, *, has_long_room: bool | None = None) -> Taken:
        """Cut the next batch for a thread that is not free yet, if it would not get better by waiting.

        *has_long_room* as it will be when that thread is free.
        """
        ...

    def take_all(self) -> list[Entry]:
        """Empty the queue."""
        ...


class Queue:
    """Entries by (priority, length), first come first served within. Owned by one batcher, used from one thread.

    *cost* is the engine's, by which batches are cut.
    """

    def __init__(self, limits: QueueLimits, cost: PassCost) -> None:
        self.limits = limits
        self._cost = limits.price_of(cost)
        self.num_tokens = 0
        self.num_entries = 0
        self._num_bulk = self._bulk_tokens = 0
        # Interactive ones below `QueueLimits.long_tokens`.
        self._num_short = self._short_tokens = 0
        self._lanes: dict[tuple[bool, int], deque[Entry]] = {}

    def __repr__(self) -> str:
        return f"<Queue [{self.num_entries} entries, {self.num_tokens} tokens, {len(self._lanes)} lanes]>"

    def __iter__(self) -> Iterator[Entry]:
        return (entry for lane in self._lanes.values() for entry in lane)

    @property
    def rows(self) -> Rows:
        """What waits, the dead included that were not met yet."""
        return Rows(self.num_entries, self.num_entries - self._num_bulk, num_tokens=self.num_tokens)

    @property
    def interactive_tokens(self) -> int:
        """Of what waits, the part that is not bulk."""
        return self.num_tokens - self._bulk_tokens

    def has_room(self, entries: list[Entry]) -> bool:
        """Whether *entries*, of one class, may be appended, all of them. An empty queue takes any list, so none starves."""
        if not self.num_entries:
            return True
        tokens = sum([entry.num_tokens for entry in entries])
        share = self.limits.bulk_queue_share if entries and entries[0].is_bulk else 1.0
        # Not even nothing fits into a full queue.
        return self.num_tokens + max(tokens, 1) <= share * self.limits.max_queued_tokens

    def late_classes(self, now: float) -> frozenset[bool]:
        """The classes, bulk or not, whose oldest entry has waited longer than `max_queue_seconds`."""
        latest = now - self.limits.max_queue_seconds
        return frozenset(is_bulk for (is_bulk, _), lane in self._lanes.items() if lane[0].arrived < latest)

    def append(self, entries: list[Entry]) -> None:
        """Queue all *entries*. The caller has asked `has_room`."""
        for entry in entries:
            self._lanes.setdefault((entry.is_bulk, entry.num_tokens), deque()).append(entry)
            self.num_tokens += entry.num_tokens
            self._num_bulk += entry.is_bulk
            self._bulk_tokens += entry.num_tokens * entry.is_bulk
            if self._is_short(entry):
                self._num_short += 1
                self._short_tokens += entry.num_tokens
        self.num_entries += len(entries)

    def oldest_age(self, now: float) -> float:
        """Seconds the longest-waiting entry has waited; 0 when nothing waits."""
        return max((now - lane[0].arrived for lane in self._lanes.values()), default=0.0)

    def take(self, now: float, *, free_slots: int = 1, has_long_room: bool | None = None) -> Taken:
        """Cut the next batch, fairly sized when *free_slots* batches can start now. Empty when nothing runnable waits.

        *has_long_room* as `long_room` has it.
        """
        taken = Taken()
        self._drop_dead_heads(now, taken)
        if self._lanes:
            budget, seed = self.limits.max_batch_tokens, self._seed(now, has_long_room)
            if free_slots > 1:
                budget = min(budget, max(self.num_tokens // free_slots, seed[1]))
            self._move(self._around(seed, budget, self._lanes), taken, now)
        return taken

    def take_ahead(self, now: float, *, has_long_room: bool | None = None) -> Taken:
        """Cut the next batch for a thread that is not free yet, where nothing that may come would make a better one.

        That is a full one of short rows, where as many wait as a batch may carry; without bulk rows, which may be overtaken to
        the last moment, and in no long row's turn, nor in that of a bulk row which has waited until it outranks all: a thread
        that always has its next batch never asks whose turn it is. *has_long_room* as it will be when the thread is free. The
        dead that were not met yet count as well.
        """
        taken = Taken()
        if self._num_short < self.limits.max_batch_requests and self._short_tokens < self.limits.max_batch_tokens:
            return taken
        self._drop_dead_heads(now, taken)
        if self._num_bulk and self._is_bulks_turn(now):
            return taken
        waiting = [lane for lane in self._lanes if not lane[0]]
        short = [lane for lane in waiting if lane[1] < self.limits.long_tokens]
        if short and (has_long_room is False or len(short) == len(waiting)):
            seed = min(short, key=lambda lane: self._rank(lane, now))
            lanes = self._around(seed, self.limits.max_batch_tokens, short)
            if self._is_full(lanes):
                self._move(lanes, taken, now)
        return taken

    def _is_bulks_turn(self, now: float) -> bool:
        return min(self._lanes, key=lambda lane: self._rank(lane, now))[0]

    def _seed(self, now: float, has_long_room: bool | None) -> tuple[bool, int]:
        """The lane of lowest rank; of its class the lowest of the long or of the short ones, where there are both."""
        ranks = {lane: self._rank(lane, now) for lane in self._lanes}
        best = min(ranks, key=ranks.__getitem__)
        alike = [lane for lane in ranks if lane[0] == best[0]]
        chosen = [lane for lane in alike if (lane[1] >= self.limits.long_tokens) == has_long_room]
        if has_long_room is None or not chosen:
            return best
        return min(chosen, key=ranks.__getitem__)

    def take_all(self) -> list[Entry]:
        """Empty the queue."""
        entries = list(self)
        self._lanes.clear()
        self.num_tokens = self.num_entries = self._num_bulk = self._bulk_tokens = self._num_short = self._short_tokens = 0
        return entries

    def _is_short(self, entry: Entry) -> bool:
        return not entry.is_bulk and entry.num_tokens < self.limits.long_tokens

    def _rank(self, lane: tuple[bool, int], now: float) -> float:
        is_bulk, length = lane
        waited = now - self._lanes[lane][0].arrived
        return length + self.limits.bulk_penalty * is_bulk - self.limits.ageing * waited

    def _around(self, seed: tuple[bool, int], budget: int, wanted: Iterable[tuple[bool, int]]) -> list[tuple[bool, int]]:
        """For each row of a batch around *seed*, of *budget* tokens at most, the lane it is in: one of *wanted*."""
        # The seed first, whatever else is as long: it is its turn.
        nearest = sorted(wanted, key=lambda key: (abs(key[1] - seed[1]), key != seed, key[0]))
        lanes = list(islice((lane for lane in nearest for _ in self._lanes[lane]), self.limits.max_batch_requests))
        return lanes[: cut([length for _, length in lanes], budget=budget, cost=self._cost)]

    def _is_full(self, lanes: Sequence[tuple[bool, int]]) -> bool:
        limits = self.limits
        if limits.ahead_share is None:
            return False
        tokens = sum(length for _, length in lanes)
        return len(lanes) >= limits.max_batch_requests or tokens >= limits.ahead_share * limits.max_batch_tokens

    def _move(self, lanes: Sequence[tuple[bool, int]], taken: Taken, now: float) -> None:
        for lane in lanes:
            # The dead behind a lane's head are seen only now, so a lane may end before its turn.
            if lane in self._lanes:
                taken.batch.append(self._pop(lane))
                self._drop_dead_head(lane, now, taken)

    def _drop_dead_heads(self, now: float, taken: Taken) -> None:
        for lane in list(self._lanes):
            self._drop_dead_head(lane, now, taken)

    def _drop_dead_head(self, lane: tuple[bool, int], now: float, taken: Taken) -> None:
        """Entries of departed callers and passed deadlines leave without being run."""
        while lane in self._lanes and taken.set_aside(self._lanes[lane][0], now):
            self._pop(lane)

    def _pop(self, key: tuple[bool, int]) -> Entry:
        lane = self._lanes[key]
        entry = lane.popleft()
        if not lane:
            del self._lanes[key]
        self.num_tokens -= entry.num_tokens
        self.num_entries -= 1
        self._num_bulk -= entry.is_bulk
        self._bulk_tokens -= entry.num_tokens * entry.is_bulk
        if self._is_short(entry):
            self._num_short -= 1
            self._short_tokens -= entry.num_tokens
        return entry
