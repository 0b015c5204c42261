"""The facts worth counting, as one Protocol, and Prometheus as its only implementation. Metric names stand here alone."""

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


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """One forward pass: *padded_tokens* were computed, *num_tokens* of them were wanted."""

    num_rows: int
    num_tokens: int
    padded_tokens: int
    seconds: float
    failed: bool = False


class Telemetry(Protocol):
    """Told of what happened; must be quick and never raise."""

    def request_ended(self, outcome: str, num_texts: int, timings: Timings | None) -> None:
        """A request was answered; *outcome* is "ok" or an error's code."""
        ...

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
        """Inputs that needed no forward pass of their own: "cached", or "joined" to an equal one under way."""
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
        self._batches = Counter("trunkline_embedding_batches_total", "Forward passes by outcome.", ["outcome"], registry=registry)
        self._rows = Histogram("trunkline_embedding_batch_rows", "Rows a batch.", buckets=_ROWS, registry=registry)
        self._tokens = Counter("trunkline_embedding_tokens_total", "Tokens wanted.", registry=registry)
        self._padded = Counter(
            "trunkline_embedding_computed_tokens_total", "Tokens computed, padding included.", registry=registry
        )
        self._busy = Counter("trunkline_embedding_inference_seconds_total", "Time in the backend.", registry=registry)
        self._queue_entries = Gauge("trunkline_embedding_queue_entries", "Entries waiting.", registry=registry)
        self._queue_tokens = Gauge("trunkline_embedding_queue_tokens", "Tokens waiting.", registry=registry)
        self._dropped = Counter(
            "trunkline_embedding_dropped_total", "Entries that left unexecuted.", ["reason"], registry=registry
        )
        self._reused = Counter(
            "trunkline_embedding_reused_total", "Inputs without a pass of their own.", ["how"], registry=registry
        )

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

    def batch_ended(self, facts: BatchFacts) -> None:
        """See `Telemetry`."""
        self._batches.labels("failed" if facts.failed else "ok").inc()
        self._rows.observe(facts.num_rows)
        self._tokens.inc(facts.num_tokens)
        self._padded.inc(facts.padded_tokens)
        self._busy.inc(facts.seconds)

    def queue_changed(self, num_entries: int, num_tokens: int) -> None:
        """See `Telemetry`."""
        self._queue_entries.set(num_entries)
        self._queue_tokens.set(num_tokens)

    def entries_dropped(self, reason: str, count: int) -> None:
        """See `Telemetry`."""
        self._dropped.labels(reason).inc(count)

    def entries_reused(self, how: str, count: int) -> None:
        """See `Telemetry`."""
        self._reused.labels(how).inc(count)
