"""Two runs of the suite side by side, also of two days or two machines: in yardsticks, not in microseconds.

A yardstick is a fixed loop that is timed in the same rounds: one in pure Python, one over numpy arrays. A benchmark's time of a
round over the yardstick's of that round stays much the same when the whole machine is slower. A machine may be better at one
kind of work than another is, so a benchmark counts as slower only when it is so by both yardsticks.

Baselines are `perf.results.Results` in perf/baselines, each of one kind of machine.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from perf.results import Machine, Micro, Results, read

BASELINES: Final = Path(__file__).parents[1] / "baselines"
YARDSTICKS: Final = ("yardstick, Python", "yardstick, numpy")
TOLERANCE: Final = 0.25
"""By how much more than the spread of its rounds a benchmark must be slower to be told so."""

What = Literal["time", "CPU time"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One benchmark in two runs: medians in yardsticks, the *spread* of the rounds, as a share, of the run where it is larger."""

    name: str
    what: What
    before: float
    now: float
    spread: float

    @property
    def ratio(self) -> float:
        """How many times as long it takes now."""
        return self.now / self.before

    @property
    def is_worse(self) -> bool:
        """Whether it is slower by more than chance, and some, explains."""
        return self.ratio > 1 + TOLERANCE + self.spread


@dataclass(frozen=True, slots=True)
class Compared:
    """Two runs: what is in both, and the names of what is in one alone."""

    comparisons: tuple[Comparison, ...]
    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def worse(self) -> tuple[Comparison, ...]:
        """Those that are slower."""
        return tuple(one for one in self.comparisons if one.is_worse)


def compare(before: Sequence[Micro], now: Sequence[Micro]) -> Compared:
    """Each benchmark of both runs, by time and, where it was measured in both, by CPU time.

    Raises:
        ValueError: a run has no yardstick.
    """
    old, new = ({one.name: one for one in run} for run in (before, now))
    for run in (old, new):
        if missing := [name for name in YARDSTICKS if name not in run]:
            raise ValueError(f"a run without {missing[0]!r} cannot be compared")
    both = [name for name in new if name in old and name not in YARDSTICKS]
    found = [_by_time(name, old, new) for name in both]
    found += [_by_cpu(name, old, new) for name in both if old[name].cpu_microseconds and new[name].cpu_microseconds]
    return Compared(
        tuple(sorted(found, key=lambda one: both.index(one.name))),
        gone=tuple(name for name in old if name not in new),
        new=tuple(name for name in new if name not in old),
    )


def _by_time(name: str, old: Mapping[str, Micro], new: Mapping[str, Micro]) -> Comparison:
    old_times, new_times = ({key: one.microseconds for key, one in run.items()} for run in (old, new))
    return _kindest(name, "time", old_times, new_times)


def _by_cpu(name: str, old: Mapping[str, Micro], new: Mapping[str, Micro]) -> Comparison:
    old_times, new_times = ({key: one.cpu_microseconds for key, one in run.items()} for run in (old, new))
    return _kindest(name, "CPU time", old_times, new_times)


def _kindest(name: str, what: What, old: Mapping[str, Sequence[float]], new: Mapping[str, Sequence[float]]) -> Comparison:
    """By the yardstick that shows the benchmark in the better light."""
    found = []
    for yardstick in YARDSTICKS:
        before, now = in_yardsticks(old[name], old[yardstick]), in_yardsticks(new[name], new[yardstick])
        spread = max(spread_of(before), spread_of(now))
        found.append(Comparison(name, what, statistics.median(before), statistics.median(now), spread))
    return min(found, key=lambda one: one.ratio - one.spread)


def in_yardsticks(values: Sequence[float], yardstick: Sequence[float]) -> list[float]:
    """*values* over the yardstick's of the same rounds."""
    return [value / unit for value, unit in zip(values, yardstick, strict=True)]


def spread_of(values: Sequence[float]) -> float:
    """The middle half of *values* from its least to its most, over the median; 0 of a single one.

    One round in which somebody else was at work does not widen it.
    """
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / statistics.median(values)


def is_alike(one: Machine, other: Machine) -> bool:
    """Whether both are of one kind: processor and number of cores."""
    return (one.cpu, one.num_cores) == (other.cpu, other.num_cores)


def baseline_for(machine: Machine, baselines: Mapping[str, Results]) -> str | None:
    """The name of the baseline to compare with: the latest of this kind of machine, else the latest of any; None of none."""
    alike = {name: found for name, found in baselines.items() if is_alike(found.machine, machine)}
    among = alike or baselines
    return max(among, key=lambda name: among[name].started, default=None)


def baselines_in(folder: Path) -> dict[str, Results]:
    """All of *folder* by name.

    Raises:
        ValueError, OSError: a file cannot be read; see `perf.results.read`.
    """
    return {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
