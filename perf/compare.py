"""Two results side by side: what is better, what is worse, and what is the same within the spread of the rounds."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from rich.console import Console

from perf.reporting.digest import Line, Measured, heads_words, is_more_better, lines_of, number, with_spread
from perf.reporting.tables import Cell, Kind, Table
from perf.reporting.terminal import print_tables
from perf.results import Results

Verdict = Literal["same within spread", "better", "worse"]

TOO_FEW_ROUNDS: Final = "(one round: no spread)"
_KINDS: Final[dict[Verdict, Kind]] = {"same within spread": "", "better": "better", "worse": "worse"}


@dataclass(frozen=True, slots=True)
class Change:
    """One value *what* of *where* in both results; *ratio* is B over A by their medians."""

    where: str
    what: str
    before: Measured
    after: Measured

    @property
    def ratio(self) -> float:
        """B over A; infinite where A is nothing and B is something."""
        if self.before.median == 0:
            return 1.0 if self.after.median == 0 else float("inf")
        return self.after.median / self.before.median

    @property
    def verdict(self) -> Verdict:
        """Ranges that overlap are the same; what lies apart is better or worse."""
        one, two = self.before, self.after
        if one.least <= two.most and two.least <= one.most:
            return "same within spread"
        return "better" if (two.median > one.median) == is_more_better(self.what) else "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """*changes* of what both have, *warnings* why they may mean little, *unmatched* what only one of them has."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    unmatched: tuple[str, ...]

    @property
    def is_worse(self) -> bool:
        """Whether anything is."""
        return any(change.verdict == "worse" for change in self.changes)


def compare(before: Results, after: Results) -> Comparison:
    """What changed from *before* (A) to *after* (B)."""
    one, two = _values_of(before), _values_of(after)
    changes = tuple(Change(*key, one[key], two[key]) for key in one if key in two)
    only = [f"only in A: {where}" for where in _places(one) - _places(two)]
    only += [f"only in B: {where}" for where in _places(two) - _places(one)]
    return Comparison(changes, tuple(warnings_of(before, after)), tuple(sorted(only)))


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


def _values_of(results: Results) -> dict[tuple[str, str], Measured]:
    """By (where, what). Rates differ a little from run to run when they follow from what was measured: they are no key then."""
    found: dict[tuple[str, str], Measured] = {}
    for line in lines_of(results):
        for what, value in _values_of_line(line):
            found.setdefault((_where(line), what), value)
    for bound in results.bounds:
        where = f"{bound.system}, {heads_words(bound.num_heads)}, {bound.workload}, p99 within {number(bound.bound_ms)} ms"
        found[where, "texts/s"] = Measured(bound.throughput, bound.throughput, bound.throughput, 1)
    for each in results.micro:
        for what, values in (("µs a call", each.microseconds), ("CPU µs a call", each.cpu_microseconds)):
            if values:
                found[f"micro: {each.name}", what] = Measured(statistics.median(values), min(values), max(values), len(values))
    return found


def _values_of_line(line: Line) -> list[tuple[str, Measured]]:
    named = [("texts/s", line.throughput), ("CPU ms/text", line.cpu_ms)]
    named += [(f"{key} ms", line.latency_ms.get(key)) for key in ("p50", "p99")]
    # What is offered decides the throughput of an open loop, and says nothing of the system.
    open_loop = line.load.kind in {"poisson", "bursts"}
    return [(what, value) for what, value in named if value is not None and not (open_loop and what == "texts/s")]


def _where(line: Line) -> str:
    return f"{line.system}, {heads_words(line.num_heads)}, {line.workload}, {line.load}"


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
    order = {"worse": 0, "better": 1, "same within spread": 2}
    rows = tuple(_row(change) for change in sorted(comparison.changes, key=lambda change: order[change.verdict]))
    return Table("B beside A", columns, rows)


def _row(change: Change) -> tuple[Cell, ...]:
    few = min(change.before.num_rounds, change.after.num_rounds) == 1 and change.verdict != "same within spread"
    words = f"{change.verdict} {TOO_FEW_ROUNDS}" if few else change.verdict
    return (
        Cell(change.where),
        Cell(change.what),
        Cell(with_spread(change.before), "number"),
        Cell(with_spread(change.after), "number"),
        Cell(f"{number(change.ratio)}×", "number"),
        Cell(words, _KINDS[change.verdict]),
    )


def summary_of(comparison: Comparison) -> str:
    """How many of each, in one line."""
    verdicts = [change.verdict for change in comparison.changes]
    if not verdicts:
        return "the two have nothing in common: there is nothing to compare"
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("worse", "better", "same within spread"))
    return f"{len(verdicts)} values in both: {counts}"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Warnings first: they decide how the rest is read."""
    for warning in comparison.warnings:
        console.print(f"differs: {warning}", markup=False, style="yellow")
    if comparison.changes:
        print_tables([table_of(comparison)], console)
    for words in comparison.unmatched:
        console.print(words, markup=False, style="dim")
    console.print(summary_of(comparison), markup=False)
