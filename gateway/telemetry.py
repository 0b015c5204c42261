"""What is counted, in Prometheus' terms; metric names stand here alone."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.backends.breaker import BreakerState
from gateway.backends.pool import Pool
from gateway.backends.replicas import Reason
from gateway.classification import Answer

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Telemetry:
    """A registry of its own. Labels are bounded: route and status are ours, heads are those of the catalogue."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "trunkline_gateway_requests_total", "Classify requests by status.", ["status"], registry=self._registry
        )
        self._texts = Counter("trunkline_gateway_texts_total", "Texts answered.", registry=self._registry)
        self._heads = Counter(
            "trunkline_gateway_head_results_total", "Texts by head and outcome.", ["head", "outcome"], registry=self._registry
        )
        self._stages = Histogram(
            "trunkline_gateway_stage_seconds",
            "Stages of answered requests.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._inside = Gauge("trunkline_gateway_texts_in_flight", "Texts inside.", registry=self._registry)
        self._age = Gauge(
            "trunkline_gateway_catalogue_age_seconds", "Since the catalogue was last seen in order.", registry=self._registry
        )
        self._lookups = Counter(
            "trunkline_gateway_cache_lookups_total", "Texts looked up by head.", ["head", "result"], registry=self._registry
        )
        self._dropped = Counter(
            "trunkline_gateway_cache_dropped_total", "Cached outputs that left, by reason.", ["reason"], registry=self._registry
        )
        self._entries = Gauge("trunkline_gateway_cache_entries", "Outputs kept.", registry=self._registry)
        self._bytes = Gauge("trunkline_gateway_cache_bytes", "Memory of the outputs kept.", registry=self._registry)
        stages = ("preprocess", "embed", "heads", "total")
        self._observe = {stage: self._stages.labels(stage).observe for stage in stages}
        self._ok = self._requests.labels("200").inc

    @property
    def registry(self) -> CollectorRegistry:
        """What `render` renders; for those who count by themselves."""
        return self._registry

    def cache_looked_up(self, head: str, *, hits: int, misses: int) -> None:
        """See `gateway.outputs.OutputTelemetry`."""
        if hits:
            self._lookups.labels(head, "hit").inc(hits)
        if misses:
            self._lookups.labels(head, "miss").inc(misses)

    def cache_dropped(self, reason: str, count: int) -> None:
        """See `gateway.outputs.OutputTelemetry`."""
        self._dropped.labels(reason).inc(count)

    def watch_cache(self, *, entries: Callable[[], float], num_bytes: Callable[[], float]) -> None:
        """Both are asked whenever metrics are read."""
        self._entries.set_function(entries)
        self._bytes.set_function(num_bytes)

    def answered(self, answer: Answer) -> None:
        """A request was answered."""
        self._ok()
        self._texts.inc(len(answer.texts))
        for stage, observe in self._observe.items():
            observe(getattr(answer.timings, stage))
        for name, outcome in answer.outcomes.items():
            said = "ok" if isinstance(outcome, list) else outcome.code
            self._heads.labels(name, said).inc(len(answer.texts))

    def refused(self, status: int) -> None:
        """A request ended with an error's *status*."""
        self._requests.labels(str(status)).inc()

    def render(self, *, inside: int, catalogue_age: float) -> bytes:
        """Prometheus text."""
        self._inside.set(inside)
        self._age.set(catalogue_age)
        return generate_latest(self._registry)


class BackendMetrics:
    """`gateway.backends.facts.BackendFacts`, counted. Replicas have the numbers of their places in the settings."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._replicas = Gauge(
            "trunkline_gateway_backend_replicas_left_alone",
            "Replicas that get no calls now: ejected, draining, or not to be reached.",
            ["backend"],
            registry=registry,
        )
        self._outstanding = Gauge(
            "trunkline_gateway_backend_outstanding_texts",
            "Texts under way at a replica, where there are several.",
            ["backend", "replica"],
            registry=registry,
        )
        self._ejections = Counter(
            "trunkline_gateway_backend_ejections_total", "Ejections.", ["backend", "replica", "reason"], registry=registry
        )
        self._retries = Counter(
            "trunkline_gateway_backend_retries_total",
            "Calls tried elsewhere, by outcome.",
            ["backend", "outcome"],
            registry=registry,
        )
        self._hedges = Counter("trunkline_gateway_backend_hedges_total", "Calls made twice.", ["backend"], registry=registry)
        self._breakers = Gauge(
            "trunkline_gateway_head_breaker_state", "0 closed, 1 half open, 2 open.", ["head"], registry=registry
        )

    def show(self, pool: Pool) -> None:
        """Read *pool* whenever the metrics are."""
        self._replicas.labels(pool.backend).set_function(
            lambda: sum(state in {"ejected", "draining"} for state, _ in pool.snapshot)
        )
        for number in range(len(pool)):
            self._outstanding.labels(pool.backend, number).set_function(partial(pool.outstanding, number))

    def ejected(self, backend: str, replica: int, reason: Reason) -> None:
        """See `BackendFacts`."""
        self._ejections.labels(backend, replica, reason).inc()

    def readmitted(self, backend: str, replica: int) -> None:
        """See `BackendFacts`."""

    def retried(self, backend: str) -> None:
        """See `BackendFacts`."""
        self._retries.labels(backend, "made").inc()

    def retry_refused(self, backend: str) -> None:
        """See `BackendFacts`."""
        self._retries.labels(backend, "no permit").inc()

    def hedged(self, backend: str) -> None:
        """See `BackendFacts`."""
        self._hedges.labels(backend).inc()

    def breaker(self, head: str, state: BreakerState) -> None:
        """See `BackendFacts`."""
        self._breakers.labels(head).set({"closed": 0, "half_open": 1, "open": 2}[state])
