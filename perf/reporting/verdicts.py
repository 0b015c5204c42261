"""Who wins, by what factor, and where we lose: sentences that follow from the numbers."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from perf.reporting.digest import (
    OURS,
    VECTORS_ALONE,
    Line,
    Measured,
    fewest_heads,
    heads_words,
    is_more_better,
    lines_of,
    lines_under,
    main_load,
    measured,
    number,
    ours_of,
    ranked,
    ratio_unit,
    scaling,
    sequential,
    share,
    standing_of,
    systems_of,
    title_of,
    with_spread,
    workloads_of,
)
from perf.results import Bound, Load, Ratio, Results

SMALL_LEAD: Final = 0.02
"""Of a value: less is no loss worth a sentence."""

SMALL_LEAD_OF_ONE: Final = 0.1
"""The same of what is measured once, and so has no spread: memory, start-up, the most within a bound."""

MOST_TOLD: Final = 4
"""Of one system: more are counted."""

OUR_PARTS: Final = (OURS, "embedding-service")
"""Whose ratios are told where they are the worse ones."""

_JUDGED: Final = re.compile(r": .+ of (?P<over>\S+) over (?P<under>\S+)$")


@dataclass(frozen=True, slots=True)
class Compared:
    """*what* of plan four beside *other*, a ranked system, in the same place: *mine* and *theirs*, in *unit*.

    *least* is the share by which medians differ at least where one is said to be ahead.
    """

    other: str
    what: str
    where: str
    unit: str
    mine: Measured
    theirs: Measured
    least: float = SMALL_LEAD

    @property
    def is_loss(self) -> bool:
        """Whether the other is ahead, beyond both spreads."""
        one, two = self.mine, self.theirs
        are_apart = one.least > two.most or two.least > one.most
        is_ahead = (two.median > one.median) == is_more_better(self.what)
        return are_apart and is_ahead and abs(one.median - two.median) > self.least * max(one.median, two.median)

    @property
    def factor(self) -> float:
        """The larger over the smaller; infinite beside nothing."""
        low, high = sorted((self.mine.median, self.theirs.median))
        return high / low if low > 0 else math.inf

    def __str__(self) -> str:
        words = (
            f"{self.where}: {self.what} {number(self.theirs.median)}{self.unit} against our {number(self.mine.median)}{self.unit}"
        )
        return f"{words} ({number(self.factor)}×)" if math.isfinite(self.factor) else words


@dataclass(frozen=True, slots=True)
class _Measure:
    """One thing that systems are compared by."""

    what: str
    unit: str
    value_of: Callable[[Line], Measured | None]


@dataclass(frozen=True, slots=True)
class _Single:
    """What is measured once, its unit, and the share of it that is a lead."""

    what: str
    unit: str
    least: float


_THROUGHPUT: Final = _Measure("texts a second", "", lambda line: line.throughput)
_P50: Final = _Measure("p50", " ms", lambda line: line.latency_ms.get("p50"))
_P99: Final = _Measure("p99", " ms", lambda line: line.latency_ms.get("p99"))
_CPU: Final = _Measure("CPU per text", " ms", lambda line: line.cpu_ms)


def compared(results: Results) -> list[Compared]:
    """Plan four beside every other ranked system, in all that both were measured in; nothing when it is not ranked itself."""
    ours = ours_of(results)
    if ours is None or not standing_of(results, ours).is_ranked:
        return []
    found = _loads_compared(results, ours)
    bounds = [
        (each.system, f"{_place(each.workload, each.num_heads)}, p99 within {number(each.bound_ms)} ms", _bracket(each))
        for each in results.bounds
    ]
    found += _ones_compared(results, ours, _Single("texts a second", "", SMALL_LEAD_OF_ONE), bounds)
    wire = [(each.system, _place(each.workload, each.num_heads), _one(each.bytes_per_text)) for each in results.wire]
    found += _ones_compared(results, ours, _Single("bytes on the wire a text", "", SMALL_LEAD), wire)
    memory = [
        (each.system, heads_words(each.num_heads), _one(sum(each.rss_bytes.values()) / 1e6))
        for each in results.footprints
        if each.rss_bytes
    ]
    found += _ones_compared(results, ours, _Single("memory", " MB", SMALL_LEAD_OF_ONE), memory)
    starts = [(each.system, heads_words(each.num_heads), _one(each.start_seconds)) for each in results.footprints]
    return found + _ones_compared(results, ours, _Single("start-up", " s", SMALL_LEAD_OF_ONE), starts)


def _loads_compared(results: Results, ours: str) -> list[Compared]:
    lines = lines_of(results)
    found: list[Compared] = []
    for mine in (each for each in lines if each.system == ours):
        others, _ = ranked(results, _others_beside(lines, mine))
        for other in others:
            for measure in _measures_of(mine.load):
                one, two = measure.value_of(mine), measure.value_of(other)
                if one is not None and two is not None:
                    found.append(Compared(other.system, measure.what, _where(mine), measure.unit, one, two))
    return found


def _others_beside(lines: Iterable[Line], mine: Line) -> list[Line]:
    return [each for each in lines_under(lines, mine.load, mine.workload, mine.num_heads) if each.system != mine.system]


def _measures_of(load: Load) -> tuple[_Measure, ...]:
    """What is offered decides the texts a second of an open loop; of one text after another the latency says it all."""
    return (_THROUGHPUT, _P99, _CPU) if load.kind == "closed" else (_P50, _P99, _CPU)


def _one(value: float) -> Measured:
    return Measured(value, value, value, 1)


def _bracket(bound: Bound) -> Measured:
    """Nobody is ahead while the brackets overlap."""
    most = float("inf") if bound.least_too_much is None else bound.least_too_much
    return Measured(bound.throughput, bound.throughput, most, 1)


def _ones_compared(results: Results, ours: str, single: _Single, rows: Iterable[tuple[str, str, Measured]]) -> list[Compared]:
    """*rows* are (system, where, value)."""
    known = list(rows)
    mine = {where: value for system, where, value in known if system == ours}
    return [
        Compared(system, single.what, where, single.unit, mine[where], value, single.least)
        for system, where, value in known
        if system != ours and where in mine and standing_of(results, system).is_ranked
    ]


def _place(workload: str, num_heads: int) -> str:
    return f"{workload.upper()}, {heads_words(num_heads)}"


def _where(line: Line) -> str:
    return f"{_place(line.workload, line.num_heads)}, {line.load}"


def losses(results: Results) -> list[str]:
    """Why plan four cannot be compared, goals that were missed or not judged, and where we are behind; a sentence each."""
    behind: dict[str, list[Compared]] = {}
    for each in compared(results):
        if each.is_loss:
            behind.setdefault(each.other, []).append(each)
    found = _why_not_compared(results)
    found += [f"Goal not met: {_ratio_words(results, ratio)}." for ratio in results.ratios if ratio.is_met is False]
    found += _not_judged(results)
    worse = [ratio for ratio in results.ratios if ratio.is_met is not False and _is_ours_worse(ratio)]
    found += [f"Ours is the worse: {_ratio_words(results, ratio)}." for ratio in worse]
    for system, lost in behind.items():
        words = [str(each) for each in sorted(lost, key=lambda each: -each.factor)]
        found.append(f"{title_of(results, system)} is ahead: {_some(words)}.")
    return found


def no_losses(results: Results) -> str:
    """What is said where `losses` has nothing to tell: no more than what was looked at."""
    if ours_of(results) is None:
        return "Plan four was not measured."
    if not compared(results):
        return "Plan four was measured beside no other ranked system: there is nothing to compare."
    return "Of what is compared here, no other ranked system is ahead in anything beyond the spread, and no goal was missed."


def _why_not_compared(results: Results) -> list[str]:
    ours = ours_of(results)
    if ours is None:
        return ["Plan four was not measured."] if systems_of(results) else []
    title, standing = title_of(results, ours), standing_of(results, ours)
    if not standing.is_ranked:
        return [f"{title} is not ranked, and nothing is compared with it: {standing.why}."]
    lines = lines_of(results)
    mine = [each for each in lines if each.system == ours]
    if all(each.throughput is None for each in mine):
        why = f"all its runs are void, {mine[0].why_void}" if mine else "none was measured"
        return [f"No speed of {title} is compared: {why}."]
    void = [each for each in mine if each.throughput is None and ranked(results, _others_beside(lines, each))[0]]
    told = _some([f"{_where(each)} ({each.why_void})" for each in void])
    return [f"{title} has no number where another ranked system has one: {told}."] if void else []


def _not_judged(results: Results) -> list[str]:
    """Goals are told apart from all else that is missing by their words, which name what is over what."""
    by_why: dict[str, list[str]] = {}
    for each in results.missing:
        found = _JUDGED.search(each.what)
        if found and {found["over"], found["under"]} & set(OUR_PARTS):
            by_why.setdefault(each.why, []).append(each.what)
    return [f"Not judged, because {why}: {_some(whats)}." for why, whats in by_why.items()]


def _some(words: Sequence[str]) -> str:
    more = [f"and {len(words) - MOST_TOLD} more"] if len(words) > MOST_TOLD else []
    return "; ".join([*words[:MOST_TOLD], *more])


def _ratio_words(results: Results, ratio: Ratio) -> str:
    words = with_spread(measured(ratio.values), ratio_unit(ratio))
    goal = f"; the goal was {ratio.goal}" if ratio.goal else ""
    over, under = title_of(results, ratio.over), title_of(results, ratio.under)
    return f"{ratio.title}: {ratio.what}, {over} beside {under}: {words}{goal}"


def _is_ours_worse(ratio: Ratio) -> bool:
    """Whether all rounds lie on the side of 1, or of 0 for a difference, that is the worse for ours."""
    if not ratio.values or not {ratio.over, ratio.under} & set(OUR_PARTS):
        return False
    alike = 0.0 if ratio_unit(ratio) == " ms" else 1.0
    is_less_worse = is_more_better(ratio.what) == (ratio.over in OUR_PARTS)
    return max(ratio.values) < alike if is_less_worse else min(ratio.values) > alike


def factors(results: Results, workload: str) -> list[tuple[str, float]]:
    """(title, our texts a second over theirs) of every other ranked system under the main load, the largest first."""
    lines, ours = lines_of(results), ours_of(results)
    heads = fewest_heads(results, workload)
    load = main_load([each for each in lines if each.workload == workload and each.num_heads == heads])
    rivals, _ = ranked(results, lines_under(lines, load, workload, heads))
    mine = next((each for each in rivals if each.system == ours), None)
    if mine is None or mine.throughput is None:
        return []
    found = [
        (title_of(results, each.system), mine.throughput.median / each.throughput.median)
        for each in rivals
        if each.system != ours and each.throughput and each.throughput.median > 0
    ]
    return sorted(found, key=lambda pair: -pair[1])


@dataclass(frozen=True, slots=True)
class Headline:
    """Who stands in the first line: plan four, or else the best; *factors* are its texts a second over the others'."""

    title: str
    value: str
    where: str
    factors: tuple[tuple[str, float], ...]


def headline(results: Results) -> Headline | None:
    """Of the first workload under its main load; None when nobody is ranked there."""
    workloads = [each for each in workloads_of(results) if fewest_heads(results, each) > VECTORS_ALONE]
    if not workloads:
        return None
    heads = fewest_heads(results, workloads[0])
    lines = [each for each in lines_of(results) if (each.workload, each.num_heads) == (workloads[0], heads)]
    load = main_load(lines)
    rivals, _ = ranked(results, lines_under(lines, load, workloads[0]))
    if not rivals:
        return None
    first = next((each for each in rivals if each.system == ours_of(results)), rivals[0])
    where = f"{workloads[0].upper()}, {heads_words(heads)}, {first.load}"
    return Headline(
        title_of(results, first.system), f"{_texts_a_second(first)} texts/s", where, tuple(factors(results, workloads[0]))
    )


def summary(results: Results) -> list[str]:
    """The whole in a few plain sentences; what we lose is told by `losses`."""
    found = [_who(results)]
    found += [_speed(results, workload) for workload in workloads_of(results)]
    found += [_single(results, workload) for workload in workloads_of(results)]
    found += [_growth(results), _answers(results), _left_out(results)]
    return [sentence for sentence in found if sentence]


def _who(results: Results) -> str:
    systems = systems_of(results)
    with_labels = [system for system in systems if any(each.system == system for each in results.answers)]
    names = "; ".join(title_of(results, system) for system in with_labels)
    if not with_labels:
        return "No labels were compared: nobody is ranked." if systems else ""
    cores = f"{results.machine.num_cores} cores"
    return f"{len(with_labels)} ways to serve the same encoder, heads and texts on {results.machine.cpu}, {cores}: {names}."


def _speed(results: Results, workload: str) -> str:
    found = factors(results, workload)
    if not found:
        return ""
    heads = fewest_heads(results, workload)
    lines = [each for each in lines_of(results) if (each.workload, each.num_heads) == (workload, heads)]
    mine = next(each for each in lines_under(lines, main_load(lines), workload) if each.system == ours_of(results))
    others = ", ".join(f"{number(factor)}× {title}" for title, factor in found)
    return (
        f"{title_of(results, mine.system)} answers {_texts_a_second(mine)} texts a second "
        f"({workload.upper()}, {heads_words(heads)}, {mine.load}): {others}."
    )


def _single(results: Results, workload: str) -> str:
    rivals, _ = ranked(results, sequential(lines_of(results), workload, fewest_heads(results, workload)))
    told = [(title_of(results, each.system), each.latency_ms["p50"].median) for each in rivals if "p50" in each.latency_ms]
    if len(told) < 2:
        return ""
    words = ", ".join(f"{title} {number(p50)} ms" for title, p50 in sorted(told, key=lambda pair: pair[1]))
    return f"One text at a time ({workload.upper()}), half of the answers are there within: {words}."


def _growth(results: Results) -> str:
    _, load, by_system = scaling(results)
    mine = by_system.get(ours_of(results) or "", [])
    if load is None or not mine or mine[0].cpu_ms is None or mine[-1].cpu_ms is None or not mine[0].cpu_ms.median:
        return ""
    few, many = mine[0].cpu_ms.median, mine[-1].cpu_ms.median
    others = [
        f"{title_of(results, system)} {number(lines[-1].cpu_ms.median / many)}× that"
        for system, lines in by_system.items()
        if system != mine[0].system
        and standing_of(results, system).is_ranked
        and lines[-1].num_heads == mine[-1].num_heads
        and lines[-1].cpu_ms
    ]
    beside = f"; {', '.join(others)}" if others else ""
    return (
        f"With {heads_words(mine[-1].num_heads)} a text costs {title_of(results, mine[0].system)} {number(many)} ms of CPU, "
        f"{number(many / few)}× what it costs with {heads_words(mine[0].num_heads)}{beside}."
    )


def _answers(results: Results) -> str:
    if not results.answers:
        return ""
    differing = dict.fromkeys(each.system for each in results.answers if not each.is_ranked)
    least = min(results.answers, key=lambda each: each.agreement)
    if not differing:
        return f"All agree on the labels: the least agreement is {share(least.agreement)}, of {title_of(results, least.system)}."
    names = ", ".join(f"{title_of(results, system)} ({standing_of(results, system).why})" for system in differing)
    return f"Not ranked, because the answers differ: {names}."


def _left_out(results: Results) -> str:
    voids = sum(bool(run.void) for run in results.runs)
    disturbed = sum(run.is_disturbed for run in results.runs)
    words = [
        f"void runs, left out: {voids} of {len(results.runs)}" if voids else "",
        f"runs beside other processes: {disturbed}" if disturbed else "",
        f"not measured, for the reasons below: {', '.join(each.what for each in results.missing)}" if results.missing else "",
    ]
    told = "; ".join(filter(None, words))
    return f"{told[0].upper()}{told[1:]}." if told else ""


def _texts_a_second(line: Line) -> str:
    return number(line.throughput.median) if line.throughput else "no"
