"""What is counted, in Prometheus' terms; metric names stand here alone. Counts over runs and rows are read from the database."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily

from head_service.control.runs import RunStatistics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Telemetry:
    """A registry of its own. Labels are bounded: routes, statuses and states are ours, heads those that have ever been live."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "trunkline_control_requests_total", "Requests by route and status.", ["route", "status"], registry=self._registry
        )
        self._commits = Histogram(
            "trunkline_control_feedback_seconds",
            "From a row of feedback to its acknowledgement.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def answered(self, route: str, status: int) -> None:
        """A request was; *route* as it is declared, never as it was asked."""
        self._requests.labels(route, str(status)).inc()

    def kept(self, seconds: float) -> None:
        """A row was acknowledged."""
        self._commits.observe(seconds)

    def render(self, runs: RunStatistics, num_messages: int, num_feedback: dict[str, int]) -> bytes:
        """Prometheus text."""
        once = CollectorRegistry()
        once.register(_Once(list(_kept_facts(runs, num_messages, num_feedback))))
        return generate_latest(self._registry) + generate_latest(once)


class _Once:
    """A collector of metrics that are known already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """See prometheus_client."""
        return self._metrics


def _kept_facts(runs: RunStatistics, num_messages: int, num_feedback: dict[str, int]) -> Iterator[Metric]:
    states = GaugeMetricFamily("trunkline_control_runs", "Runs by state.", labels=["state"])
    for state, count in runs.by_state.items():
        states.add_metric([state], count)
    yield states
    yield GaugeMetricFamily(
        "trunkline_control_oldest_queued_seconds", "How long the oldest queued run has waited.", value=runs.oldest_queued_seconds
    )
    yield GaugeMetricFamily("trunkline_control_queue_messages", "Messages in the queue that wakes workers.", value=num_messages)
    took = SummaryMetricFamily("trunkline_control_run_seconds", "From the first attempt to the end.", labels=["state"])
    for state, (count, seconds) in runs.finished.items():
        took.add_metric([state], count_value=count, sum_value=seconds)
    yield took
    rows = GaugeMetricFamily("trunkline_control_feedback_rows", "Rows of feedback by head.", labels=["head"])
    for head, count in num_feedback.items():
        rows.add_metric([head], count)
    yield rows
