"""What was found as tables, for the terminal and for the page alike: words in cells, decided once."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from perf.reporting import digest
from perf.reporting.digest import LATENCIES, VECTORS_ALONE, Line, Measured, heads_words, number, share, title_of, with_spread
from perf.results import Answers, Bound, Ratio, Results

DASH: Final = "–"
MAX_DIFFERENCES: Final = 12

Kind = Literal["", "number", "better", "worse", "marked"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell or heading. A number stands at the right; *kind* may say more of it, in words as well as in colour."""

    words: str
    kind: Kind = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; the first cell names its row. *detail*: for those who ask for more than the first look."""

    caption: str
    columns: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    detail: bool = False


def plan_tables(results: Results) -> list[Table]:
    """Of each workload: the plans under the load that most of them ran, then one text at a time, then the other loads."""
    lines = digest.lines_of(results)
    tables = []
    for workload in digest.workloads_of(results):
        of_workload = [each for each in lines if each.workload == workload]
        for heads in sorted({each.num_heads for each in of_workload}, key=lambda count: (count == VECTORS_ALONE, count)):
            same = [each for each in of_workload if each.num_heads == heads]
            main = digest.main_load(same)
            loads = sorted(dict.fromkeys(each.load for each in same), key=lambda load: (load != main, load.kind != "sequential"))
            for load in loads:
                is_first = heads == digest.fewest_heads(results, workload) and (load == main or load.kind == "sequential")
                tables += _load_tables(results, [each for each in same if each.load == load], detail=not is_first)
    return tables


def _load_tables(results: Results, lines: list[Line], *, detail: bool) -> list[Table]:
    """The ranked, and apart from them those that may not be."""
    yes, no = digest.ranked(results, lines)
    first = lines[0]
    where = f"{first.workload.upper()}, {heads_words(first.num_heads)}, {first.load}"
    columns = (Cell("System"), *(_head(words) for words in _RUN_COLUMNS), Cell("CPU by process"), Cell("Said of it"))
    tables = []
    if yes:
        rows = tuple(_run_row(results, each) for each in yes)
        tables.append(Table(where, columns, rows, detail=detail))
    if no:
        rows = tuple(_run_row(results, each, marked=True) for each in no)
        tables.append(Table(f"Not ranked: {where}", columns, rows, detail=detail))
    return tables


_RUN_COLUMNS: Final = (
    "texts/s",
    "mean ms",
    *(f"{key} ms" for key in LATENCIES),
    "CPU ms/text",
    "bytes/text",
    "$ per million",
)


def _run_row(results: Results, line: Line, *, marked: bool = False) -> tuple[Cell, ...]:
    title = title_of(results, line.system)
    if line.why_void:
        dashes = [_numeric(DASH)] * len(_RUN_COLUMNS)
        return (Cell(title, "marked"), *dashes, Cell(DASH), Cell(f"VOID: {line.why_void}", "marked"))
    size = digest.bytes_per_text(results, line.system, line.num_heads, line.workload)
    return (
        Cell(title, "marked" if marked else ""),
        _numeric(with_spread(line.throughput)),
        *(_numeric(_middle(line.latency_ms.get(key))) for key in ("mean", *LATENCIES)),
        _numeric(with_spread(line.cpu_ms)),
        _numeric(DASH if size is None else f"{size:,.0f}"),
        _numeric(_dollars(results, line)),
        Cell(_by_process(line)),
        Cell(_said(results, line)),
    )


def _dollars(results: Results, line: Line) -> str:
    """Only under a closed loop with several in flight: elsewhere the machine waits, and its price says nothing of the system."""
    is_full = line.load.kind == "closed" and line.load.in_flight > 1
    if not (is_full and results.price_per_hour > 0 and line.throughput and line.throughput.median > 0):
        return DASH
    return number(digest.dollars_per_million(line.throughput.median, results.price_per_hour))


def _by_process(line: Line) -> str:
    parts = sorted(line.cpu_by_process.items(), key=lambda part: -part[1])
    caller = [] if line.caller_ms is None else [("(caller", f"{number(line.caller_ms)})")]
    return ", ".join(f"{name} {value}" for name, value in [*((name, number(ms)) for name, ms in parts), *caller]) or DASH


def _said(results: Results, line: Line) -> str:
    why = "" if line.num_heads == VECTORS_ALONE else digest.standing_of(results, line.system).why
    rounds = line.num_void + (line.throughput.num_rounds if line.throughput else 0)
    words = (
        why,
        f"{line.num_errors:,} errors" if line.num_errors else "",
        f"{line.num_void} of {rounds} rounds void" if line.num_void else "",
        f"{line.num_disturbed} rounds beside other processes" if line.num_disturbed else "",
    )
    return "; ".join(filter(None, words))


def answer_table(results: Results) -> Table | None:
    """Accuracy, and agreement with the reference, of every system and number of heads."""
    if not results.answers:
        return None
    columns = (
        Cell("System"),
        *map(_head, ("heads", "texts", "accuracy", "agreement", "asked for", "differences")),
        Cell("Ranked"),
    )
    rows = tuple(_answer_row(results, each) for each in results.answers)
    reference = title_of(results, results.answers[0].reference)
    notes = (f"Agreement is the share of labels that are those of {reference}; accuracy is the first head's, on a labelled set.",)
    return Table("Answers", columns, rows, notes)


def _answer_row(results: Results, answers: Answers) -> tuple[Cell, ...]:
    verdict = Cell("yes") if answers.is_ranked else Cell("no: its answers differ", "worse")
    return (
        Cell(title_of(results, answers.system), "" if answers.is_ranked else "marked"),
        _numeric(str(answers.num_heads)),
        _numeric(f"{answers.num_texts:,}"),
        _numeric(f"{answers.accuracy * 100:.1f} %"),
        _numeric(share(answers.agreement)),
        _numeric(share(answers.least_agreement)),
        _numeric(f"{answers.num_differences:,} of {answers.num_labels:,}"),
        verdict,
    )


def difference_table(results: Results) -> Table | None:
    """The first texts that were labelled otherwise than by the reference."""
    found = [(each, one) for each in results.answers for one in each.differences[:MAX_DIFFERENCES]]
    if not found:
        return None
    columns = (Cell("System"), _head("text"), Cell("Head"), Cell("Its label"), Cell("Reference"))
    rows = tuple(
        (
            Cell(title_of(results, answers.system)),
            _numeric(str(one.place)),
            Cell(one.head),
            Cell(one.label),
            Cell(one.reference),
        )
        for answers, one in found
    )
    return Table("Labels that differ, the first of each", columns, rows, detail=True)


def footprint_table(results: Results) -> Table | None:
    """Start-up time and memory by process."""
    if not results.footprints:
        return None
    columns = (Cell("System"), *map(_head, ("heads", "start-up s", "memory MB")), Cell("By process, MB"), Cell("Said of it"))
    rows = tuple(
        (
            Cell(title_of(results, each.system)),
            _numeric(str(each.num_heads)),
            _numeric(number(each.start_seconds)),
            _numeric(f"{sum(each.rss_bytes.values()) / 1e6:,.0f}"),
            Cell(", ".join(f"{name} {size / 1e6:,.0f}" for name, size in each.rss_bytes.items())),
            Cell("; ".join(each.notes)),
        )
        for each in results.footprints
    )
    notes = ("Start-up is from the first process to the first answer. Memory is resident; what processes share counts in each.",)
    return Table("Memory and start-up", columns, rows, notes)


def bound_table(results: Results) -> Table | None:
    """The most texts a second within a bound on p99."""
    if not results.bounds:
        return None
    columns = (Cell("System"), _head("heads"), Cell("Workload"), *map(_head, ("bound on p99, ms", "texts/s", "rates tried")))
    in_order = sorted(
        results.bounds,
        key=lambda each: (
            each.workload,
            each.num_heads,
            not digest.standing_of(results, each.system).is_ranked,
            -each.throughput,
        ),
    )
    rows = tuple(
        (
            _named(results, each.system),
            _numeric(str(each.num_heads)),
            Cell(each.workload.upper()),
            _numeric(number(each.bound_ms)),
            _numeric(_between(each)),
            _numeric(str(len(each.tried))),
        )
        for each in in_order
    )
    notes = (
        "Requests come at random times (Poisson), whatever the service does; found by bisection.",
        "In brackets: the least rate that was too much.",
        *_marks_of(results, dict.fromkeys(each.system for each in in_order)),
    )
    return Table("Most texts a second within a bound on p99", columns, rows, notes)


def _between(bound: Bound) -> str:
    """No finer than it was found."""
    if bound.least_too_much is None:
        return f"at least {number(bound.throughput)}"
    if not bound.throughput:
        return f"less than {number(bound.least_too_much)}"
    return f"{number(bound.throughput)} (below {number(bound.least_too_much)})"


def heads_table(results: Results) -> Table | None:
    """CPU milliseconds a text by number of heads, and what all of them cost beside the fewest."""
    workload, load, by_system = digest.scaling(results)
    if load is None:
        return None
    counts = sorted({each.num_heads for lines in by_system.values() for each in lines})
    columns = (Cell("System"), *(_head(heads_words(count)) for count in counts), _head("most / fewest"))
    rows = []
    for system, lines in by_system.items():
        found = {each.num_heads: each.cpu_ms.median for each in lines if each.cpu_ms}
        values = [found[count] for count in counts if count in found]
        cells = (_numeric(number(found[count]) if count in found else DASH) for count in counts)
        growth = f"{number(values[-1] / values[0])}×" if values[0] > 0 else DASH
        rows.append((_named(results, system), *cells, _numeric(growth)))
    where = f"CPU ms per text by number of heads, {workload.upper()}, {load}"
    return Table(where, columns, tuple(rows), tuple(_marks_of(results, by_system)))


def ratio_table(results: Results) -> Table | None:
    """Ratios with their spread, and whether what was hoped for came true."""
    if not results.ratios:
        return None
    columns = (
        Cell("What"),
        Cell("Of"),
        Cell("Over"),
        *map(_head, ("ratio", "least", "most", "rounds")),
        Cell("Goal"),
        Cell("Met"),
    )
    return Table("Ratios, round by round", columns, tuple(_ratio_row(results, each) for each in results.ratios))


def _ratio_row(results: Results, ratio: Ratio) -> tuple[Cell, ...]:
    met = {True: Cell("yes", "better"), False: Cell("no", "worse"), None: Cell(DASH)}[ratio.is_met]
    if ratio.values:
        values = [statistics.median(ratio.values), min(ratio.values), max(ratio.values)]
        numbers = [f"{number(value)}{digest.ratio_unit(ratio)}" for value in values]
    else:
        numbers = ["not measured", DASH, DASH]
    return (
        Cell(f"{ratio.title}: {ratio.what}" if ratio.what not in ratio.title else ratio.title),
        Cell(title_of(results, ratio.over)),
        Cell(title_of(results, ratio.under)),
        *map(_numeric, numbers),
        _numeric(str(len(ratio.values))),
        Cell(ratio.goal or DASH),
        met,
    )


def limit_table(results: Results) -> Table | None:
    """What the machine could do at most."""
    if not results.limits:
        return None
    columns = (Cell("Precision"), _head("GFLOP/s measured"), Cell("Workload"), _head("texts/s at most"))
    rows = tuple(
        (
            Cell(each.precision),
            _numeric(number(each.gflops)),
            Cell(each.workload.upper()),
            _numeric(number(each.texts_per_second)),
        )
        for each in results.limits
    )
    notes = (
        "Rate of matrix products over the operations of a text, measured with the matrix products of the libraries used here; "
        "others may be faster or slower.",
    )
    return Table("The limit of the machine", columns, rows, notes)


def micro_table(results: Results) -> Table | None:
    """Micro-benchmarks."""
    if not results.micro:
        return None
    columns = (Cell("Benchmark"), *map(_head, ("µs a call", "CPU µs a call", "rounds")), Cell("Note"))
    rows = tuple(
        (
            Cell(each.name),
            _numeric(with_spread(digest.measured(each.microseconds))),
            _numeric(with_spread(digest.measured(each.cpu_microseconds))),
            _numeric(str(len(each.microseconds))),
            Cell(each.note),
        )
        for each in results.micro
    )
    return Table("Micro-benchmarks", columns, rows)


def stage_table(results: Results) -> Table | None:
    """The waterfall in numbers."""
    if not results.waterfall:
        return None
    rows = tuple((Cell(each.name), Cell(each.inside or DASH), _numeric(number(each.ms))) for each in results.waterfall)
    return Table("Stages of one request", (Cell("Stage"), Cell("Inside"), _head("ms")), rows)


def missing_table(results: Results) -> Table | None:
    """What was not measured."""
    if not results.missing:
        return None
    rows = tuple((Cell(each.what), Cell(each.why)) for each in results.missing)
    return Table("Not measured", (Cell("What"), Cell("Why")), rows)


def all_tables(results: Results) -> list[Table]:
    """For the terminal: every table in the order of the page."""
    others = (
        answer_table(results),
        heads_table(results),
        bound_table(results),
        footprint_table(results),
        ratio_table(results),
        limit_table(results),
        stage_table(results),
        micro_table(results),
        difference_table(results),
        missing_table(results),
    )
    return [*plan_tables(results), *(table for table in others if table is not None)]


def without_empty_columns(table: Table) -> Table:
    """Without those that say nothing of anything."""
    kept = [0]
    kept += [place for place in range(1, len(table.columns)) if any(row[place].words not in {"", DASH} for row in table.rows)]
    rows = tuple(tuple(row[place] for place in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[place] for place in kept), rows=rows)


def _named(results: Results, system: str) -> Cell:
    is_ranked = digest.standing_of(results, system).is_ranked
    return Cell(title_of(results, system) + ("" if is_ranked else " (not ranked)"), "" if is_ranked else "marked")


def _marks_of(results: Results, systems: Iterable[str]) -> list[str]:
    standings = [(system, digest.standing_of(results, system)) for system in systems]
    return [f"{title_of(results, system)} is not ranked: {each.why}." for system, each in standings if not each.is_ranked]


def _middle(value: Measured | None) -> str:
    return DASH if value is None else number(value.median)


def _head(words: str) -> Cell:
    return Cell(words, "number")


def _numeric(words: str) -> Cell:
    return Cell(words, "number")
