"""What a run of the harness says, in the few numbers that are shown: medians over rounds, and who is ranked."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from perf.results import CALLER, Answers, Footprint, Load, Ratio, Results, Run

OURS: Final = "plan-four"
"""The plan whose numbers the page is about."""

VECTORS_ALONE: Final = 0
"""Heads of a system that answers vectors: they are checked before it is measured, and it is ranked among its like."""

REFERENCE_IN_FLIGHT: Final = 32
"""Of closed loops that equally many systems ran, the one nearest to it stands for all."""

LATENCIES: Final = ("p50", "p90", "p99", "p99.9")


@dataclass(frozen=True, slots=True)
class Measured:
    """A value over *num_rounds* rounds."""

    median: float
    least: float
    most: float
    num_rounds: int


@dataclass(frozen=True, slots=True)
class Line:
    """One system under one load, over all rounds that count. *why_void* says why there is no number at all.

    *throughput* in texts a second, *cpu_ms* per text of all processes but the caller's, *cpu_by_process* its parts' medians;
    *caller_ms* the caller's own, where it is a process apart.
    """

    system: str
    num_heads: int
    workload: str
    load: Load
    throughput: Measured | None
    latency_ms: dict[str, Measured]
    cpu_ms: Measured | None
    cpu_by_process: dict[str, float]
    num_errors: int
    num_void: int
    num_disturbed: int
    why_void: str = ""
    caller_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a system's numbers may stand beside the others', and if not, why."""

    is_ranked: bool
    why: str = ""


def measured(values: Iterable[float]) -> Measured | None:
    """Median, least and most; None of nothing."""
    known = list(values)
    return Measured(statistics.median(known), min(known), max(known), len(known)) if known else None


def number(value: float) -> str:
    """Three leading digits, and a comma between thousands."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 0.001:
        places = 1 if size >= 9.995 else 2 if size >= 0.9995 else 3 if size >= 0.09995 else 4
        return f"{value:.{places}f}"
    return "0.000"


def with_spread(value: Measured | None, unit: str = "") -> str:
    """The median, and from where to where when there were several rounds; nothing measured is a dash."""
    if value is None:
        return "–"
    if value.num_rounds == 1:
        return f"{number(value.median)}{unit}"
    return f"{number(value.median)}{unit} ({number(value.least)} to {number(value.most)})"


def title_of(results: Results, system: str) -> str:
    """What a system is called for people."""
    return results.titles.get(system, system)


def systems_of(results: Results) -> list[str]:
    """All that were measured, in the order of the titles, then of the first run."""
    met = dict.fromkeys([*results.titles, *(run.system for run in results.runs), *(each.system for each in results.answers)])
    measured_ones = {run.system for run in results.runs} | {each.system for each in results.answers}
    measured_ones |= {each.system for each in results.footprints} | {each.system for each in results.bounds}
    return [system for system in met if system in measured_ones]


def ours_of(results: Results) -> str | None:
    """Plan four, when it was measured."""
    return OURS if OURS in systems_of(results) else None


def line_of(runs: Sequence[Run]) -> Line:
    """*runs* are rounds of one load on one system, at least one; void rounds give no number."""
    first = runs[0]
    fair = [run for run in runs if not run.void]
    processes = dict.fromkeys(name for run in fair for name in run.cpu_ms_per_text if name != CALLER)
    latencies = {key: measured(run.latency_ms[key] for run in fair if key in run.latency_ms) for key in ("mean", *LATENCIES)}
    return Line(
        system=first.system,
        num_heads=first.num_heads,
        workload=first.workload,
        load=first.load,
        throughput=measured(run.throughput for run in fair),
        latency_ms={key: value for key, value in latencies.items() if value is not None},
        cpu_ms=measured(run.cpu_ms for run in fair if run.cpu_ms is not None),
        cpu_by_process={name: statistics.median(run.cpu_ms_per_text.get(name, 0.0) for run in fair) for name in processes},
        num_errors=sum(run.num_errors for run in runs),
        num_void=len(runs) - len(fair),
        num_disturbed=sum(run.is_disturbed for run in fair),
        why_void="" if fair else first.void,
        caller_ms=_caller_ms(fair) if processes else None,
    )


def _caller_ms(runs: Sequence[Run]) -> float | None:
    found = measured(run.cpu_ms_per_text[CALLER] for run in runs if CALLER in run.cpu_ms_per_text)
    return None if found is None else found.median


def lines_of(results: Results) -> list[Line]:
    """Every system under every load, in the order of the first round."""
    found: dict[tuple[str, int, str, Load], list[Run]] = {}
    for run in results.runs:
        found.setdefault((run.system, run.num_heads, run.workload, run.load), []).append(run)
    return [line_of(runs) for runs in found.values()]


def standing_of(results: Results, system: str) -> Standing:
    """Ranked is who was compared with the reference and agreed, however many heads were asked for."""
    answers = [each for each in results.answers if each.system == system]
    if not answers:
        return Standing(is_ranked=False, why="its answers were not compared")
    bad = [each for each in answers if not each.is_ranked]
    return Standing(is_ranked=False, why=_why_not(results, bad[0])) if bad else Standing(is_ranked=True)


def is_ranked(results: Results, line: Line) -> bool:
    """Whether a line's numbers may stand beside those of its like; a void one's do not."""
    return line.throughput is not None and (line.num_heads == VECTORS_ALONE or standing_of(results, line.system).is_ranked)


def _why_not(results: Results, answers: Answers) -> str:
    return (
        f"with {heads_words(answers.num_heads)} it labels {answers.num_differences:,} of {answers.num_labels:,} otherwise than "
        f"{title_of(results, answers.reference)}: {share(answers.agreement)} agree, and {share(answers.least_agreement)} must"
    )


def share(value: float) -> str:
    """In percent, cut and never rounded up: 100 % is said of all alone."""
    cut = int(value * 10_000 + 1e-9) / 100
    return "100 %" if value >= 1 else f"{cut:.2f} %"


def workloads_of(results: Results) -> list[str]:
    """In the order of the first run."""
    return list(dict.fromkeys(run.workload for run in results.runs))


def fewest_heads(results: Results, workload: str) -> int:
    """Of a workload's runs with heads: where whole models and heads can be compared one to one."""
    counts = {run.num_heads for run in results.runs if run.workload == workload}
    return min(counts - {VECTORS_ALONE}, default=VECTORS_ALONE)


def heads_words(count: int) -> str:
    """How many heads, in words."""
    return {VECTORS_ALONE: "vectors alone", 1: "1 head"}.get(count, f"{count} heads")


def ratio_unit(ratio: Ratio) -> str:
    """Most are quotients; what tells how much more is a difference of milliseconds."""
    return " ms" if "milliseconds more" in ratio.what else "×"


def main_load(lines: Sequence[Line]) -> Load | None:
    """The closed loop, one text a request, that most systems ran; then the one nearest to `REFERENCE_IN_FLIGHT`."""
    counts = Counter(each.load for each in lines if each.load.kind == "closed" and each.load.texts_a_request == 1)
    return max(counts, key=lambda load: (counts[load], -abs(load.in_flight - REFERENCE_IN_FLIGHT)), default=None)


def lines_under(lines: Iterable[Line], load: Load | None, workload: str, num_heads: int | None = None) -> list[Line]:
    """Those of *load* on *workload*, with *num_heads* where it is given."""
    return [
        each
        for each in lines
        if each.load == load and each.workload == workload and (num_heads is None or each.num_heads == num_heads)
    ]


def ranked(results: Results, lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """Those that may be compared, the most texts a second first; and the others, in their order."""
    yes: list[Line] = []
    no: list[Line] = []
    for each in lines:
        (yes if is_ranked(results, each) else no).append(each)
    return sorted(yes, key=lambda each: -(each.throughput.median if each.throughput else 0.0)), no


def dollars_per_million(throughput: float, price_per_hour: float) -> float:
    """Of a machine that is busy with nothing else: 1e6 / (texts a second x 3600) hours."""
    return price_per_hour * 1e6 / (throughput * 3600)


def footprint_of(results: Results, system: str, num_heads: int) -> Footprint | None:
    """The first there is."""
    found = (each for each in results.footprints if (each.system, each.num_heads) == (system, num_heads))
    return next(found, None)


def bytes_per_text(results: Results, system: str, num_heads: int, workload: str) -> float | None:
    """On the wire, where it was measured."""
    found = (each for each in results.wire if (each.system, each.num_heads, each.workload) == (system, num_heads, workload))
    return next((each.bytes_per_text for each in found), None)


def sequential(lines: Iterable[Line], workload: str, num_heads: int) -> list[Line]:
    """One text after another, as the documents measured."""
    return [each for each in lines if each.load.kind == "sequential" and (each.workload, each.num_heads) == (workload, num_heads)]


def is_more_better(what: str) -> bool:
    """Whether a larger value of *what* is the better one."""
    return any(word in what.lower() for word in ("throughput", "texts/s", "texts a second", "accuracy", "agreement", "goodput"))


def scaling(results: Results) -> tuple[str, Load | None, dict[str, list[Line]]]:
    """(workload, load, lines by system in order of heads) of the load that most pairs of system and number of heads ran.

    Only lines whose CPU time is known; a system with one number of heads tells nothing, and is left out.
    """
    usable = [each for each in lines_of(results) if each.cpu_ms is not None and each.load.texts_a_request == 1]
    several = {
        (each.system, each.workload, each.load)
        for each in usable
        if len({other.num_heads for other in usable if _same_but_heads(each, other)}) > 1
    }
    counts = Counter((each.workload, each.load) for each in usable if (each.system, each.workload, each.load) in several)
    if not counts:
        return "", None, {}
    workload, load = max(
        counts, key=lambda key: (counts[key], key[1].kind == "closed", -abs(key[1].in_flight - REFERENCE_IN_FLIGHT))
    )
    found: dict[str, list[Line]] = {}
    for each in sorted(usable, key=lambda line: line.num_heads):
        if (each.workload, each.load) == (workload, load) and (each.system, workload, load) in several:
            found.setdefault(each.system, []).append(each)
    return workload, load, found


def _same_but_heads(one: Line, two: Line) -> bool:
    return (one.system, one.workload, one.load) == (two.system, two.workload, two.load)
