"""How long runs take, by what and how much is run: so that what is quick need not wake a thread."""

from collections.abc import Hashable
from typing import Final

QUICK_SECONDS: Final = 0.0003
"""A run that takes less is done sooner where it is than by waking a thread."""

QUICK_RUNS: Final = 3
"""Seen before a run counts as quick."""

MAX_KINDS: Final = 256
SMOOTHING: Final = 0.25


class Pace:
    """Smoothed seconds of runs by kind and, in powers of two, by size. From any thread: a lost update is no harm."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Hashable, int], tuple[int, float]] = {}

    def is_quick(self, kind: Hashable, size: int) -> bool:
        """Whether runs of *kind* with about *size* elements took next to no time, lately."""
        runs, seconds = self._seen.get((kind, size.bit_length()), (0, 0.0))
        return runs >= QUICK_RUNS and seconds < QUICK_SECONDS

    def ran(self, kind: Hashable, size: int, seconds: float) -> None:
        """One took *seconds*."""
        key = (kind, size.bit_length())
        if key not in self._seen and len(self._seen) >= MAX_KINDS:
            return
        runs, smoothed = self._seen.get(key, (0, seconds))
        self._seen[key] = (runs + 1, smoothed + SMOOTHING * (seconds - smoothed))
