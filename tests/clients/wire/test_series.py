from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from clients.wire.series import SECONDS_BOUNDS, Counts, Gauges, Histogram, Histograms, Series


def exposed(*families: Counts | Histograms | Gauges) -> dict[tuple[str, ...], float]:
    """What Prometheus would read: by sample name and sorted label values."""
    registry = CollectorRegistry()
    Series(registry, families)
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_counts_are_exposed_by_their_labels() -> None:
    counts = Counts("hits_total", "Hits.", ["head", "result"])
    counts.add(("spam", "hit"))
    counts.add(("spam", "hit"), 2)
    counts.add(('od"d\n', "miss"))

    assert {("hits_total", "head=spam", "result=hit"): 3, ("hits_total", 'head=od"d\n', "result=miss"): 1} == exposed(counts)


def test_what_is_too_much_is_counted_together() -> None:
    counts = Counts("n_total", "N.", ["a", "b"], max_series=2)
    seconds = Histograms("s_seconds", "S.", ["a"], max_series=2)
    for number in range(5):
        counts.add((str(number), "x"))
        seconds.of((str(number),)).observe(0.1)

    assert 3 == exposed(counts)["n_total", "a=other", "b=other"]
    assert 3 == len(exposed(counts))
    assert 3 == exposed(seconds)["s_seconds_count", "a=other"]


def test_series_that_are_not_kept_end() -> None:
    counts, seconds = Counts("n_total", "N.", ["a"]), Histograms("s_seconds", "S.", ["a"])
    for name in ("old", "new"):
        counts.add((name,))
        seconds.of((name,)).observe(1)
    for family in (counts, seconds):
        family.keep(lambda labels: labels[0] == "new")

    assert {("n_total", "a=new"): 1} == exposed(counts)
    assert not [key for key in exposed(seconds) if "a=old" in key]


@given(st.lists(st.floats(0, 100, allow_nan=False), max_size=50))
def test_a_histogram_counts_what_is_at_most_each_bound(values: Sequence[float]) -> None:
    found = Histogram()
    for value in values:
        found.observe(value)
    buckets, total = found.cumulative()

    assert [*map(str, SECONDS_BOUNDS), "+Inf"] == [bound for bound, _ in buckets]
    assert [sum(value <= float(bound) for value in values) for bound, _ in buckets] == [count for _, count in buckets]
    assert abs(total - sum(values)) < 1e-6


def test_gauges_are_asked_when_they_are_read() -> None:
    value = [1.0]
    gauges = Gauges("g", "G.", ["q"], lambda: [(("a",), value[0])])
    value[0] = 7.0

    assert {("g", "q=a"): 7} == exposed(gauges)
