"""How often somebody may do something: a token bucket a name, for a bounded number of names."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Rates:
    """*per_second* on average, *burst* at once, for each of *max_names* names; the name unused for longest is forgotten."""

    def __init__(
        self, per_second: float, burst: float, *, max_names: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._max_names = max_names
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_of(self, name: str) -> float:
        """Seconds until *name* has a token; 0: it has one. Takes none."""
        bucket = self._filled(name)
        return max(0.0, (1.0 - bucket.tokens) / self._per_second)

    def take(self, name: str) -> float:
        """Take a token of *name*: 0, or the seconds until there is one."""
        bucket = self._filled(name)
        if bucket.tokens >= 1.0:
            bucket.tokens -= 1.0
            return 0.0
        return (1.0 - bucket.tokens) / self._per_second

    def _filled(self, name: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(self._burst, now)
            if len(self._buckets) > self._max_names:
                self._buckets.popitem(last=False)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._per_second)
        bucket.at = now
        self._buckets.move_to_end(name)
        return bucket
