"""The facts worth counting, as one Protocol, and Prometheus as its only implementation. Metric names stand here alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


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

    def queue_changed(self, num_entries: int, num_tokens: int) -> None:
        """Entries came or left."""
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


_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class PrometheusTelemetry:
    """Telemetry into a Prometheus registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter("trunkline_embedding_requests_total", "Requests by outcome.", ["outcome"], registry=registry)
        self._texts = Counter("trunkline_embedding_texts_total", "Texts answered.", registry=registry)
        self._stages = Histogram(
            "trunkline_embedding_duration_seconds",
            "Durations of answered requests.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        # Looked up once: a labelled look-up takes longer than the count.
        self._stage = {name: self._stages.labels(name) for name in ("tokenization", "queue", "inference", "total")}
        self._shared = Counter(
            "trunkline_embedding_shared_cache_total", "Inputs looked up in the shared cache.", ["result"], registry=registry
        )
        self._shared_writes = Counter(
            "trunkline_embedding_shared_cache_writes_total", "Inputs kept in the shared cache.", ["result"], registry=registry
        )
        self._trunks = _TrunkMetrics(registry)

    def of_trunk(self, name: str) -> TrunkTelemetry:
        """Where trunk *name* tells what happens in it."""
        return _PrometheusTrunk(self._trunks, name)

    def watch_queue(self, name: str, age: Callable[[], float]) -> None:
        """*age* is asked how many seconds the oldest entry of trunk *name* has waited, whenever the metrics are read."""
        self._trunks.queue_age.labels(name).set_function(age)

    def request_ended(self, outcome: str, num_texts: int, timings: Timings | None) -> None:
        """See `Telemetry`."""
        self._requests.labels(outcome).inc()
        if timings is None:
            return
        self._texts.inc(num_texts)
        self._stage["tokenization"].observe(timings.tokenization)
        self._stage["queue"].observe(timings.queue)
        self._stage["inference"].observe(timings.inference)
        self._stage["total"].observe(timings.total)

    def shared_looked_up(self, result: str, count: int) -> None:
        """See `SharedCacheTelemetry`."""
        self._shared.labels(result).inc(count)

    def shared_written(self, result: str, count: int) -> None:
        """See `SharedCacheTelemetry`."""
        self._shared_writes.labels(result).inc(count)


class _TrunkMetrics:
    """The families of metrics that have a label for the trunk."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batches = Counter(
            "trunkline_embedding_batches_total", "Forward passes by outcome.", ["trunk", "outcome"], registry=registry
        )
        self.rows = Histogram("trunkline_embedding_batch_rows", "Rows a batch.", ["trunk"], buckets=_ROWS, registry=registry)
        self.tokens = Counter("trunkline_embedding_tokens_total", "Tokens wanted.", ["trunk"], registry=registry)
        self.computed = Counter(
            "trunkline_embedding_computed_tokens_total",
            "Tokens computed, padding by its cost.",
            ["trunk"],
            registry=registry,
        )
        self.busy = Counter("trunkline_embedding_inference_seconds_total", "Time in the backend.", ["trunk"], registry=registry)
        self.queue_entries = Gauge("trunkline_embedding_queue_entries", "Entries waiting.", ["trunk"], registry=registry)
        self.queue_tokens = Gauge("trunkline_embedding_queue_tokens", "Tokens waiting.", ["trunk"], registry=registry)
        self.queue_age = Gauge(
            "trunkline_embedding_queue_age_seconds", "How long the oldest entry waits.", ["trunk"], registry=registry
        )
        self.dropped = Counter(
            "trunkline_embedding_dropped_total", "Entries that left unexecuted.", ["trunk", "reason"], registry=registry
        )
        self.reused = Counter(
            "trunkline_embedding_reused_total", "Inputs without a pass of their own.", ["trunk", "how"], registry=registry
        )


class _PrometheusTrunk:
    """Telemetry of one trunk. Labelled metrics are looked up once: a look-up takes longer than the count."""

    def __init__(self, metrics: _TrunkMetrics, name: str) -> None:
        self._batches = {outcome: metrics.batches.labels(name, outcome) for outcome in ("ok", "failed")}
        self._rows = metrics.rows.labels(name)
        self._tokens = metrics.tokens.labels(name)
        self._computed = metrics.computed.labels(name)
        self._busy = metrics.busy.labels(name)
        self._queue_entries = metrics.queue_entries.labels(name)
        self._queue_tokens = metrics.queue_tokens.labels(name)
        self._dropped = {reason: metrics.dropped.labels(name, reason) for reason in ("departed", "expired")}
        self._reused = {how: metrics.reused.labels(name, how) for how in ("cached", "shared", "joined")}

    def batch_ended(self, facts: BatchFacts) -> None:
        """See `TrunkTelemetry`."""
        self._batches["failed" if facts.failed else "ok"].inc()
        self._rows.observe(facts.num_rows)
        self._tokens.inc(facts.num_tokens)
        self._computed.inc(facts.computed_tokens)
        self._busy.inc(facts.seconds)

    def queue_changed(self, num_entries: int, num_tokens: int) -> None:
        """See `TrunkTelemetry`."""
        self._queue_entries.set(num_entries)
        self._queue_tokens.set(num_tokens)

    def entries_dropped(self, reason: str, count: int) -> None:
        """See `TrunkTelemetry`."""
        self._dropped[reason].inc(count)

    def entries_reused(self, how: str, count: int) -> None:
        """See `TrunkTelemetry`."""
        self._reused[how].inc(count)
