"""The order that other servers use, to be measured beside ours on the same engine: strictly first come, first served."""

from collections import deque

from embedding_service.backend import PassCost
from embedding_service.queue import BatchShape, Entry, QueueLimits, Rows, Taken


class FifoQueue:
    """Entries in the order they came; a batch is as many from the front as the token budget takes. Else like `Queue`.

    *limits* gives the budget (`max_batch_tokens`), the bound on rows, and the room, *cost* what padding counts in the budget.
    No entry overtakes another, bulk or not. As ours it shares what waits among batches that can start at once. With *is_cut* a
    batch also ends where its padding would cost more than another pass, as ours does: the best that strict order allows.
    """

    def __init__(self, limits: QueueLimits, cost: PassCost, *, is_cut: bool = False) -> None:
        self.limits = limits
        self._cost = limits.price_of(cost)
        self._most_padding = self._cost.overhead if is_cut else float("inf")
        self.num_tokens = 0
        self.num_entries = 0
        self._entries: deque[Entry] = deque()

    def __repr__(self) -> str:
        return f"<FifoQueue [{self.num_entries} entries, {self.num_tokens} tokens]>"

    @property
    def rows(self) -> Rows:
        """What waits, the dead included that were not met yet. All count as interactive, since none goes before another."""
        return Rows(self.num_entries, self.num_entries, num_tokens=self.num_tokens)

    def has_room(self, entries: list[Entry]) -> bool:
        """Whether *entries* may be appended, all of them. An empty queue takes any list."""
        tokens = sum(entry.num_tokens for entry in entries)
        return not self.num_entries or self.num_tokens + tokens <= self.limits.max_queued_tokens

    @property
    def interactive_tokens(self) -> int:
        """Of what waits, the part that is not bulk; strict order knows no classes."""
        return self.num_tokens

    def late_classes(self, now: float) -> frozenset[bool]:
        """Both, once the oldest entry has waited too long."""
        return frozenset({True, False}) if self.oldest_age(now) > self.limits.max_queue_seconds else frozenset()

    def oldest_age(self, now: float) -> float:
        """Seconds the longest-waiting entry has waited; 0 when nothing waits."""
        return now - self._entries[0].arrived if self._entries else 0.0

    def append(self, entries: list[Entry]) -> None:
        """Queue all *entries*. The caller has asked `has_room`."""
        self._entries.extend(entries)
        self.num_entries += len(entries)
        self.num_tokens += sum(entry.num_tokens for entry in entries)

    def take_ahead(self, now: float, *, has_long_room: bool | None = None) -> Taken:
        """Cut the next batch if all that a batch may carry waits: in strict order nothing that comes could make it better."""
        del has_long_room
        is_full = self.num_tokens >= self.limits.max_batch_tokens or self.num_entries >= self.limits.max_batch_requests
        return self.take(now) if is_full else Taken()

    def take(self, now: float, *, free_slots: int = 1, has_long_room: bool | None = None) -> Taken:
        """Cut the next batch: from the front until the next would not fit; at least one. Empty when nothing runnable waits."""
        del has_long_room
        taken = Taken()
        share = self.num_tokens // free_slots if free_slots > 1 else self.limits.max_batch_tokens
        budget = min(self.limits.max_batch_tokens, share)
        shape = BatchShape(self._cost)
        while self._drop_dead_head(now, taken) and len(taken.batch) < self.limits.max_batch_requests:
            shape.add(self._entries[0].num_tokens)
            if taken.batch and (shape.computed > budget or shape.padding > self._most_padding):
                break
            taken.batch.append(self._pop())
        return taken

    def take_all(self) -> list[Entry]:
        """Empty the queue."""
        entries = list(self._entries)
        self._entries.clear()
        self.num_tokens = self.num_entries = 0
        return entries

    def _drop_dead_head(self, now: float, taken: Taken) -> bool:
        """Let entries leave that need not run; whether one that must is at the front."""
        while self._entries and taken.set_aside(self._entries[0], now):
            self._pop()
        return bool(self._entries)

    def _pop(self) -> Entry:
        entry = self._entries.popleft()
        self.num_entries -= 1
        self.num_tokens -= entry.num_tokens
        return entry
