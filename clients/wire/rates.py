"""How often somebody may do something: a token bucket a name, for a bounded number of names. Decided at once, nothing waits."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Rate(NamedTuple):
    """*per_second* on average, *burst* at once."""

    per_second: float
    burst: float


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Rates:
    """*per_second* on average, *burst* at once, for each of *max_names* names; the name unused for longest is forgotten.

    A name may have a rate of its own, by `spend`.
    """

    def __init__(
        self, per_second: float, burst: float, *, max_names: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = Rate(per_second, burst)
        self._max_names = max_names
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, name: str) -> float:
        """Take a token of *name*: 0, or the seconds until there is one."""
        return self.spend(name, 1.0, self._rate)

    def spend(self, name: str, count: float, rate: Rate) -> float:
        """Take *count* tokens of *name*, whose rate is *rate*, or none: 0, or the seconds until there are as many.

        More than a burst are given when the bucket is full, and have to be refilled before there are others.
        """
        bucket = self._filled(name, rate)
        wait = _wait(bucket, min(count, rate.burst), rate)
        if not wait:
            bucket.tokens -= count
        return wait

    def _filled(self, name: str, rate: Rate) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(rate.burst, now)
            if len(self._buckets) > self._max_names:
                self._buckets.popitem(last=False)
        bucket.tokens = min(rate.burst, bucket.tokens + (now - bucket.at) * rate.per_second)
        bucket.at = now
        self._buckets.move_to_end(name)
        return bucket


def _wait(bucket: _Bucket, count: float, rate: Rate) -> float:
    """Seconds. A token is counted as whole when only rounding keeps it from being so."""
    missing = count - bucket.tokens
    return 0.0 if missing <= 1e-9 else missing / rate.per_second
