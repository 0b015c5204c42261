"""Counters and histograms for a service's hot path, which belong to its event loop: no locks, a look-up and an addition each.

prometheus_client's own take a lock and walk their buckets one by one, ten times the cost; it still writes what is exposed.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

OTHER: Final = "other"
"""The label of what is not known, or too much."""

MAX_SERIES: Final = 1_000
"""Of one family; what comes beyond is counted together."""

SECONDS_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Labels = tuple[str, ...]


class Counts:
    """A family of counters, one for each tuple of label values."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = (), *, max_series: int = MAX_SERIES) -> None:
        self._name = name
        self._help = help_text
        self._labels = tuple(labels)
        self._max_series = max_series
        self._counts: dict[Labels, float] = {}

    def add(self, values: Labels = (), count: float = 1.0) -> None:
        """*count* more of *values*."""
        counts = self._counts
        if values not in counts:
            if len(counts) >= self._max_series:
                values = (OTHER,) * len(self._labels)
            counts.setdefault(values, 0.0)
        counts[values] += count

    def keep(self, wanted: Callable[[Labels], bool]) -> None:
        """Forget the others: a series that ends is no loss, one for each version that ever was would be."""
        self._counts = {values: count for values, count in self._counts.items() if wanted(values)}

    def family(self) -> Metric:
        """As it is now."""
        found = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, count in sorted(self._counts.items()):
            found.add_metric(values, count)
        return found


class Histogram:
    """One histogram. *bounds* ascend; buckets here are not cumulative."""

    __slots__ = ("_bounds", "_buckets", "_sum")

    def __init__(self, bounds: Sequence[float] = SECONDS_BOUNDS) -> None:
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self._buckets[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """As Prometheus wants it: (upper bound, how many are at most that), and the sum."""
        total, found = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._buckets, strict=True):
            total += count
            found.append((bound, float(total)))
        return found, self._sum


class Histograms:
    """A family of histograms, one for each tuple of label values. *bounds* are seconds unless others are given."""

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str],
        *,
        bounds: Sequence[float] = SECONDS_BOUNDS,
        max_series: int = MAX_SERIES,
    ) -> None:
        self._name = name
        self._help = help_text
        self._labels = tuple(labels)
        self._max_series = max_series
        self._bounds = tuple(map(float, bounds))
        self._found: dict[Labels, Histogram] = {}

    def of(self, values: Labels) -> Histogram:
        """That of *values*; a caller on the hot path may keep it."""
        found = self._found.get(values)
        if found is None:
            if len(self._found) >= self._max_series:
                values = (OTHER,) * len(self._labels)
            found = self._found.setdefault(values, Histogram(self._bounds))
        return found

    def keep(self, wanted: Callable[[Labels], bool]) -> None:
        """See `Counts.keep`."""
        self._found = {values: found for values, found in self._found.items() if wanted(values)}

    def family(self) -> Metric:
        """As it is now."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for values, found in sorted(self._found.items(), key=lambda pair: pair[0]):
            buckets, total = found.cumulative()
            family.add_metric(values, buckets, total)
        return family


class Gauges:
    """A family of gauges that is asked for its values whenever metrics are read."""

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], read: Callable[[], Iterable[tuple[Labels, float]]]
    ) -> None:
        self._name = name
        self._help = help_text
        self._labels = tuple(labels)
        self._read = read

    def family(self) -> Metric:
        """As it is now."""
        found = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for values, value in self._read():
            found.add_metric(values, value)
        return found


class Series(Collector):
    """What Prometheus' registry collects: all families of *families*, in their order."""

    def __init__(self, registry: CollectorRegistry, families: Sequence[Counts | Histograms | Gauges]) -> None:
        self._families = families
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        return [family.family() for family in self._families]

    def describe(self) -> Iterable[Metric]:
        """The names alone: registering asks for them, before there is anything to read."""
        return []
