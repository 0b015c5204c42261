"""Two results side by side: what is better, what is worse, and what is the same within the spread of the rounds."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from rich.console import Console

from perf.reporting.digest import Line, Measured, heads_words, is_more_better, lines_of, number, with_spread
from perf.reporting.tables import Cell, Kind, Table
from perf.reporting.terminal import print_tables
from perf.results import Load, Results

Verdict = Literal["worse", "better", "same within spread", "one round: not judged", "other rates"]

SMALL_CHANGE: Final = 0.05
"""Of a value: less is the same, however little the rounds differ."""

RATES_DIFFER: Final = 0.05
"""By more than this, both rates of an open loop are shown."""

OTHER_RATES: Final = 0.1
"""By more than this, open loops at rates that each result chose by itself are not compared."""

_KINDS: Final[dict[Verdict, Kind]] = {
    "worse": "worse",
    "better": "better",
    "same within spread": "",
    "one round: not judged": "",
    "other rates": "",
}
"""In the order of the rows."""

_ALWAYS_COUNTED: Final = ("worse", "better", "same within spread")

MOST_UNMATCHED: Final = 12
"""Lines of what only one run has: a quick one beside a whole one lacks most of it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One value *what* of *where* in both results; *ratio* is B over A by their medians. *loads* are those of open loops."""

    where: str
    what: str
    before: Measured
    after: Measured
    loads: tuple[Load, Load] | None = None

    @property
    def ratio(self) -> float:
        """B over A; infinite where A is nothing and B is something."""
        if self.before.median == 0:
            return 1.0 if self.after.median == 0 else float("inf")
        return self.after.median / self.before.median

    @property
    def verdict(self) -> Verdict:
        """Better and worse are said of ranges that lie apart, by more than `SMALL_CHANGE` and than either spread."""
        one, two = self.before, self.after
        if self.loads and _apart(*(load.rate for load in self.loads)) > OTHER_RATES:
            return "other rates"
        if min(one.num_rounds, two.num_rounds) == 1:
            return "one round: not judged"
        do_overlap = one.least <= two.most and two.least <= one.most
        if do_overlap or _apart(one.median, two.median) <= max(SMALL_CHANGE, _spread(one), _spread(two)):
            return "same within spread"
        return "better" if (two.median > one.median) == is_more_better(self.what) else "worse"


def _apart(one: float, two: float) -> float:
    """By what share of the smaller one they differ."""
    if one == two:
        return 0.0
    least = min(one, two)
    return abs(one - two) / least if least > 0 else math.inf


def _spread(value: Measured) -> float:
    """From the least to the most, as a share of the median."""
    if value.least == value.most:
        return 0.0
    return (value.most - value.least) / value.median if value.median > 0 else math.inf


@dataclass(frozen=True, slots=True)
class _Value:
    """*load* is that of an open loop: its rate is no part of the key."""

    measured: Measured
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """*changes* of what both have, *warnings* why they may mean little, *unmatched* what only one of them has.

    *lost* is what B tried to measure and could not, where A says nothing like it.
    """

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    unmatched: tuple[str, ...]
    lost: tuple[str, ...] = ()

    @property
    def is_worse(self) -> bool:
        """Whether anything is, or B has nothing of what A has, or could not be measured where A was."""
        return bool(self.lost) or not self.changes or any(change.verdict == "worse" for change in self.changes)


def compare(before: Results, after: Results) -> Comparison:
    """What changed from *before* (A) to *after* (B)."""
    one, two = _values_of(before), _values_of(after)
    changes = tuple(_change(key, one[key], two[key]) for key in one if key in two)
    only = [f"only in A: {where}" for where in _places(one) - _places(two)]
    only += [f"only in B: {where}" for where in _places(two) - _places(one)]
    not_before = {missing.what for missing in before.missing}
    lost = tuple(f"{missing.what}: {missing.why}" for missing in after.missing if missing.what not in not_before)
    return Comparison(changes, tuple(warnings_of(before, after)), tuple(sorted(only)), lost)


def _change(key: tuple[str, str], one: _Value, two: _Value) -> Change:
    loads = (one.load, two.load) if one.load and two.load else None
    return Change(*key, one.measured, two.measured, loads)


def warnings_of(before: Results, after: Results) -> list[str]:
    """Machine, versions and settings that are not the same, and rounds that did not count or were disturbed."""
    found = []
    for name in ("cpu", "num_cores", "memory_bytes", "features", "kernel", "python"):
        one, two = getattr(before.machine, name), getattr(after.machine, name)
        if one != two:
            found.append(f"machine, {name.replace('_', ' ')}: {_words(one)} in A, {_words(two)} in B")
    for title, mine, other in (
        ("version of", before.versions, after.versions),
        ("setting", before.settings, after.settings),
    ):
        for key in sorted(set(mine) | set(other)):
            one, two = mine.get(key, "none"), other.get(key, "none")
            if one != two:
                found.append(f"{title} {key}: {one} in A, {two} in B")
    for name, results in (("A", before), ("B", after)):
        voids = sum(bool(run.void) for run in results.runs)
        disturbed = sum(run.is_disturbed for run in results.runs)
        if voids:
            found.append(f"{name}: {voids} of {len(results.runs)} runs are void and left out")
        if disturbed:
            found.append(f"{name}: {disturbed} of {len(results.runs)} runs were beside other processes")
    return found


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _places(values: Iterable[tuple[str, str]]) -> set[str]:
    return {where for where, _ in values}


def _values_of(results: Results) -> dict[tuple[str, str], _Value]:
    """By (where, what)."""
    found: dict[tuple[str, str], _Value] = {}
    lines = lines_of(results)
    counts = Counter(map(_where, lines))
    for line in lines:
        # Older results do not say where a rate is from: of several open loops the rate alone tells which is which.
        where = _where(line) if counts[_where(line)] == 1 else _where_with_rate(line)
        for what, value in _values_of_line(line):
            found.setdefault((where, what), _Value(value, line.load if _is_open(line.load) else None))
    for bound in results.bounds:
        where = f"{bound.system}, {heads_words(bound.num_heads)}, {bound.workload}, p99 within {number(bound.bound_ms)} ms"
        found[where, "texts/s"] = _Value(Measured(bound.throughput, bound.throughput, bound.throughput, 1))
    for each in results.micro:
        for what, values in (("µs a call", each.microseconds), ("CPU µs a call", each.cpu_microseconds)):
            if values:
                value = Measured(statistics.median(values), min(values), max(values), len(values))
                found[f"micro: {each.name}", what] = _Value(value)
    return found


def _values_of_line(line: Line) -> list[tuple[str, Measured]]:
    named = [("texts/s", line.throughput), ("CPU ms/text", line.cpu_ms)]
    named += [(f"{key} ms", line.latency_ms.get(key)) for key in ("p50", "p99")]
    # What is offered decides the throughput of an open loop, and says nothing of the system.
    return [(what, value) for what, value in named if value is not None and not (_is_open(line.load) and what == "texts/s")]


def _is_open(load: Load) -> bool:
    return load.kind in {"poisson", "bursts"}


def _where(line: Line) -> str:
    """Rates follow from what was measured, and differ from run to run: they are no part of it."""
    return f"{_place(line)}, {_open_words(line.load) if _is_open(line.load) else line.load}"


def _where_with_rate(line: Line) -> str:
    return f"{_place(line)}, {line.load}"


def _place(line: Line) -> str:
    return f"{line.system}, {heads_words(line.num_heads)}, {line.workload}"


def _open_words(load: Load) -> str:
    kind = "Poisson" if load.kind == "poisson" else "bursts"
    rate = {"": "", "common": " at one rate for all", "own": " at a share of its own best"}[load.share]
    return f"{kind}{rate}" if load.texts_a_request == 1 else f"{kind}{rate}, {load.texts_a_request} texts a request"


def table_of(comparison: Comparison) -> Table:
    """A row a value; what got worse first, then what got better."""
    columns = (
        Cell("Where"),
        Cell("What"),
        Cell("A", "number"),
        Cell("B", "number"),
        Cell("B / A", "number"),
        Cell("Verdict"),
    )
    order = list(_KINDS)
    rows = tuple(_row(change) for change in sorted(comparison.changes, key=lambda change: order.index(change.verdict)))
    return Table("B beside A", columns, rows)


def _row(change: Change) -> tuple[Cell, ...]:
    return (
        Cell(f"{change.where}{_rates_words(change)}"),
        Cell(change.what),
        Cell(with_spread(change.before), "number"),
        Cell(with_spread(change.after), "number"),
        Cell(f"{number(change.ratio)}×", "number"),
        Cell(change.verdict, _KINDS[change.verdict]),
    )


def _rates_words(change: Change) -> str:
    rates = [load.rate for load in change.loads or ()]
    return f" ({number(rates[0])}/s in A, {number(rates[1])}/s in B)" if rates and _apart(*rates) > RATES_DIFFER else ""


def summary_of(comparison: Comparison) -> str:
    """How many of each, in one line."""
    verdicts = [change.verdict for change in comparison.changes]
    if not verdicts:
        return "the two have nothing in common: there is nothing to compare"
    counts = ", ".join(
        f"{verdicts.count(verdict)} {verdict}" for verdict in _KINDS if verdict in verdicts or verdict in _ALWAYS_COUNTED
    )
    return f"{len(verdicts)} values in both: {counts}"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Warnings first: they decide how the rest is read."""
    for warning in comparison.warnings:
        console.print(f"differs: {warning}", markup=False, style="yellow")
    if comparison.changes:
        print_tables([table_of(comparison)], console)
    for words in comparison.lost:
        console.print(f"not measured in B: {words}", markup=False, style="red")
    for words in comparison.unmatched[:MOST_UNMATCHED]:
        console.print(words, markup=False, style="dim")
    if left := comparison.unmatched[MOST_UNMATCHED:]:
        console.print(f"and {len(left)} more that only one of them has", markup=False, style="dim")
    console.print(summary_of(comparison), markup=False)
