"""The facts worth counting, as one Protocol, and Prometheus as its only implementation. Metric names stand here alone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client import CollectorRegistry

from clients.wire.series import Counts, Gauges, Histograms, Labels, Series


@dataclass(frozen=True, slots=True)
class Timings:
    """The four durations of one request, in seconds; queue and inference are of its slowest entry."""

    tokenization: float
    queue: float
    inference: float
    total: float


def longest(timings: Sequence[Timings]) -> Timings:
    """Of parts that went side by side, each duration of the one that took longest."""
    return Timings(
        max(timing.tokenization for timing in timings),
        max(timing.queue for timing in timings),
        max(timing.inference for timing in timings),
        max(timing.total for timing in timings),
    )


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """One forward pass: *num_tokens* were wanted, *computed_tokens* computed, padding counted by what it costs the engine."""

    num_rows: int
    num_tokens: int
    computed_tokens: int
    seconds: float
    failed: bool = False


class Telemetry(Protocol):
    """Told of what happened to requests; must be quick and never raise."""

    def request_ended(self, outcome: str, num_texts: int, timings: Timings | None) -> None:
        """A request was answered; *outcome* is "ok" or an error's code."""
        ...


class TrunkTelemetry(Protocol):
    """Told of what happened inside one trunk; must be quick and never raise."""

    def batch_ended(self, facts: BatchFacts) -> None:
        """A forward pass ended."""
        ...

    def entries_dropped(self, reason: str, count: int) -> None:
        """Entries left the queue unexecuted: "departed" or "expired"."""
        ...

    def entries_reused(self, how: str, count: int) -> None:
        """Inputs without a forward pass of their own: "cached" here, "shared" by another service, "joined" to one under way."""
        ...


class SharedCacheTelemetry(Protocol):
    """Told of what the shared cache was good for; must be quick and never raise."""

    def shared_looked_up(self, result: str, count: int) -> None:
        """Inputs and the shared cache: "hit", "miss", "error", or "skipped" while it is left alone or has no room."""
        ...

    def shared_written(self, result: str, count: int) -> None:
        """Inputs whose vectors the shared cache should keep: "ok", "error" or "dropped"."""
        ...


class WatchedQueue(Protocol):
    """A trunk's queue as it is now; asked whenever metrics are read."""

    @property
    def num_entries(self) -> int:
        """Entries waiting."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens waiting."""
        ...

    def oldest_age(self, now: float) -> float:
        """Seconds the oldest entry has waited at *now* of `time.monotonic`."""
        ...


_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class PrometheusTelemetry:
    """Telemetry into a Prometheus registry. Belongs to the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counts("trunkline_embedding_requests_total", "Requests by outcome.", ["outcome"])
        self._texts = Counts("trunkline_embedding_texts_total", "Texts answered.")
        self._stages = Histograms("trunkline_embedding_duration_seconds", "Durations of answered requests.", ["stage"])
        self._stage = {name: self._stages.of((name,)) for name in ("tokenization", "queue", "inference", "total")}
        self._shared = Counts("trunkline_embedding_shared_cache_total", "Inputs looked up in the shared cache.", ["result"])
        self._shared_writes = Counts(
            "trunkline_embedding_shared_cache_writes_total", "Inputs kept in the shared cache.", ["result"]
        )
        self._trunks = _TrunkMetrics()
        self._queues: dict[str, WatchedQueue] = {}
        # Series that are there from the start show a rate of zero, not nothing.
        self._texts.add((), 0)
        self.families: Final[list[Counts | Histograms | Gauges]] = [
            self._requests,
            self._texts,
            self._stages,
            self._shared,
            self._shared_writes,
            *self._trunks.families,
            self._gauge("entries", "Entries waiting.", lambda queue: queue.num_entries),
            self._gauge("tokens", "Tokens waiting.", lambda queue: queue.num_tokens),
            self._gauge("age_seconds", "How long the oldest entry waits.", lambda queue: queue.oldest_age(time.monotonic())),
        ]
        """In the order they are shown."""
        Series(registry, self.families)

    def of_trunk(self, name: str) -> TrunkTelemetry:
        """Where trunk *name* tells what happens in it."""
        return _PrometheusTrunk(self._trunks, name)

    def watch_queue(self, name: str, queue: WatchedQueue) -> None:
        """The queue of trunk *name* is *queue*."""
        self._queues[name] = queue

    def request_ended(self, outcome: str, num_texts: int, timings: Timings | None) -> None:
        """See `Telemetry`."""
        self._requests.add((outcome,))
        if timings is None:
            return
        self._texts.add((), num_texts)
        self._stage["tokenization"].observe(timings.tokenization)
        self._stage["queue"].observe(timings.queue)
        self._stage["inference"].observe(timings.inference)
        self._stage["total"].observe(timings.total)

    def shared_looked_up(self, result: str, count: int) -> None:
        """See `SharedCacheTelemetry`."""
        self._shared.add((result,), count)

    def shared_written(self, result: str, count: int) -> None:
        """See `SharedCacheTelemetry`."""
        self._shared_writes.add((result,), count)

    def _gauge(self, what: str, help_text: str, read: Callable[[WatchedQueue], float]) -> Gauges:
        def values() -> list[tuple[Labels, float]]:
            return [((name,), read(queue)) for name, queue in self._queues.items()]

        return Gauges(f"trunkline_embedding_queue_{what}", help_text, ["trunk"], values)


class _TrunkMetrics:
    """The families of metrics that have a label for the trunk."""

    def __init__(self) -> None:
        self.batches = Counts("trunkline_embedding_batches_total", "Forward passes by outcome.", ["trunk", "outcome"])
        self.rows = Histograms("trunkline_embedding_batch_rows", "Rows a batch.", ["trunk"], bounds=_ROWS)
        self.tokens = Counts("trunkline_embedding_tokens_total", "Tokens wanted.", ["trunk"])
        self.computed = Counts("trunkline_embedding_computed_tokens_total", "Tokens computed, padding by its cost.", ["trunk"])
        self.busy = Counts("trunkline_embedding_inference_seconds_total", "Time in the backend.", ["trunk"])
        self.dropped = Counts("trunkline_embedding_dropped_total", "Entries that left unexecuted.", ["trunk", "reason"])
        self.reused = Counts("trunkline_embedding_reused_total", "Inputs without a pass of their own.", ["trunk", "how"])

    @property
    def families(self) -> list[Counts | Histograms]:
        """In the order they are shown."""
        return [self.batches, self.rows, self.tokens, self.computed, self.busy, self.dropped, self.reused]


class _PrometheusTrunk:
    """Telemetry of one trunk."""

    def __init__(self, metrics: _TrunkMetrics, name: str) -> None:
        self._metrics = metrics
        self._name = name
        self._rows = metrics.rows.of((name,))
        for outcome in ("ok", "failed"):
            metrics.batches.add((name, outcome), 0)
        for reason in ("departed", "expired"):
            metrics.dropped.add((name, reason), 0)
        for how in ("cached", "shared", "joined"):
            metrics.reused.add((name, how), 0)
        for family in (metrics.tokens, metrics.computed, metrics.busy):
            family.add((name,), 0)

    def batch_ended(self, facts: BatchFacts) -> None:
        """See `TrunkTelemetry`."""
        metrics, name = self._metrics, self._name
        metrics.batches.add((name, "failed" if facts.failed else "ok"))
        self._rows.observe(facts.num_rows)
        metrics.tokens.add((name,), facts.num_tokens)
        metrics.computed.add((name,), facts.computed_tokens)
        metrics.busy.add((name,), facts.seconds)

    def entries_dropped(self, reason: str, count: int) -> None:
        """See `TrunkTelemetry`."""
        self._metrics.dropped.add((self._name, reason), count)

    def entries_reused(self, how: str, count: int) -> None:
        """See `TrunkTelemetry`."""
        self._metrics.reused.add((self._name, how), count)
