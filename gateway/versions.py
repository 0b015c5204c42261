"""What each version of each head did, counted for Prometheus; series of versions that are gone end with them."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from clients.wire.catalogue import Catalogue, Manifest
from gateway.ports import FloatArray
from gateway.shadow import Comparison

Labels = tuple[str, ...]
"""Head and version, and what else a series is told apart by."""

_VERSION: Final = ("head", "version")


class VersionCounts(Collector):
    """Owner of the counts: an `AnswerWatcher`, a `ShadowTelemetry` and a `CatalogueFollower`.

    All methods but `collect` belong to the event loop's thread. The mean difference of a shadow's scores is the one counter of
    them divided by that of its texts.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._live: frozenset[Labels] = frozenset()
        self._answered: Counter[Labels] = Counter()
        self._compared: Counter[Labels] = Counter()
        self._apart: Counter[Labels] = Counter()
        self._left_out: Counter[Labels] = Counter()
        registry.register(self)

    def follow(self, catalogue: Catalogue) -> None:
        """See `gateway.ports.CatalogueFollower`."""
        live = frozenset((name, str(version)) for name, head in catalogue.heads.items() for version in head.versions)
        for counts in (self._answered, self._compared, self._apart, self._left_out):
            for labels in [labels for labels in counts if labels[:2] not in live]:
                del counts[labels]
        self._live = live

    def answered(self, manifest: Manifest, scores: FloatArray) -> None:
        """See `gateway.ports.AnswerWatcher`."""
        self._add(self._answered, (manifest.name, str(manifest.version)), len(scores))

    def shadow_compared(self, head: str, version: int, comparison: Comparison) -> None:
        """See `gateway.shadow.ShadowTelemetry`."""
        key = head, str(version)
        self._add(self._compared, (*key, "agreed"), comparison.num_agreed)
        self._add(self._compared, (*key, "differed"), comparison.num_texts - comparison.num_agreed)
        self._add(self._apart, key, comparison.difference)

    def shadow_left_out(self, head: str, version: int, reason: str, num_texts: int) -> None:
        """See `gateway.shadow.ShadowTelemetry`."""
        self._add(self._left_out, (head, str(version), reason), num_texts)

    def collect(self) -> Iterable[CounterMetricFamily]:
        """All of it, as it is now."""
        families = self._families()
        # One step each: a scrape may come from another thread.
        for family, counts in zip(families, (self._answered, self._compared, self._apart, self._left_out), strict=True):
            for labels, count in sorted(dict(counts).items()):
                family.add_metric(labels, count)
        return families

    def describe(self) -> Iterable[CounterMetricFamily]:
        """The families without values: registering asks for them."""
        return self._families()

    def _add(self, counts: Counter[Labels], labels: Labels, count: float) -> None:
        """What ends after its version is gone makes no series again."""
        if labels[:2] in self._live:
            counts[labels] += count  # type: ignore[assignment]  # typeshed knows counters of whole numbers alone

    @staticmethod
    def _families() -> list[CounterMetricFamily]:
        told = (
            ("answered_texts", "Texts answered by a version, now or before.", ()),
            ("shadow_texts", "Texts a shadow was compared on, by whether it gave the same labels.", ("outcome",)),
            ("shadow_score_difference", "Sum over texts of the mean absolute difference of a shadow's scores.", ()),
            ("shadow_left_out_texts", "Texts a shadow was not asked, or had no answer for.", ("reason",)),
        )
        return [CounterMetricFamily(f"trunkline_gateway_{name}", words, labels=(*_VERSION, *more)) for name, words, more in told]
