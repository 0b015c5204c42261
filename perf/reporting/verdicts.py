"""Who wins, by what factor, and where we lose: sentences that follow from the numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from perf.reporting.digest import (
    VECTORS_ALONE,
    Line,
    Measured,
    fewest_heads,
    heads_words,
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
from perf.results import Ratio, Results

SMALL_LEAD: Final = 0.02
"""Of a value: less is no loss worth a sentence."""


@dataclass(frozen=True, slots=True)
class Lead:
    """*better* is ahead of *worse* by *factor* in *what*; *values* are theirs, with the unit."""

    better: str
    worse: str
    what: str
    where: str
    factor: float
    values: tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Measure:
    """One thing that systems are compared by."""

    what: str
    unit: str
    value_of: Callable[[Line], Measured | None]
    is_more_better: bool = False


_UNDER_LOAD: Final = (
    _Measure("texts a second", " texts/s", lambda line: line.throughput, is_more_better=True),
    _Measure("p99", " ms", lambda line: line.latency_ms.get("p99")),
    _Measure("CPU per text", " ms", lambda line: line.cpu_ms),
)
_ONE_AT_A_TIME: Final = (
    _Measure("p50", " ms", lambda line: line.latency_ms.get("p50")),
    _Measure("p99", " ms", lambda line: line.latency_ms.get("p99")),
)


def leads(results: Results) -> list[Lead]:
    """Where plan four is ahead of another ranked system, or behind it, beyond both spreads."""
    lines, ours = lines_of(results), ours_of(results)
    found: list[Lead] = []
    for workload in workloads_of(results):
        heads = fewest_heads(results, workload)
        load = main_load([each for each in lines if each.workload == workload and each.num_heads == heads])
        groups = [
            (lines_under(lines, load, workload, heads), _UNDER_LOAD),
            (sequential(lines, workload, heads), _ONE_AT_A_TIME),
        ]
        for group, measures in groups:
            rivals, _ = ranked(results, group)
            mine = [each for each in rivals if each.system == ours]
            for measure in measures if mine else ():
                where = f"{workload.upper()}, {mine[0].load}"
                others = [each for each in rivals if each.system != ours]
                found += [lead for other in others if (lead := _lead(results, measure, mine[0], other, where))]
    return found + _footprint_leads(results, ours)


def _lead(results: Results, measure: _Measure, mine: Line, other: Line, where: str) -> Lead | None:
    one, two = measure.value_of(mine), measure.value_of(other)
    if one is None or two is None or not _are_apart(one, two):
        return None
    mine_wins = (one.median > two.median) == measure.is_more_better
    names = (title_of(results, mine.system), title_of(results, other.system))
    values = (number(one.median) + measure.unit, number(two.median) + measure.unit)
    factor = max(one.median, two.median) / max(min(one.median, two.median), 1e-12)
    if mine_wins:
        return Lead(names[0], names[1], measure.what, where, factor, values)
    return Lead(names[1], names[0], measure.what, where, factor, (values[1], values[0]))


def _are_apart(one: Measured, two: Measured) -> bool:
    return (one.least > two.most or two.least > one.most) and abs(one.median - two.median) > SMALL_LEAD * max(
        one.median, two.median
    )


def _footprint_leads(results: Results, ours: str | None) -> list[Lead]:
    mine = [each for each in results.footprints if each.system == ours]
    if not mine:
        return []
    first = min(mine, key=lambda each: each.num_heads)
    found = []
    for other in results.footprints:
        if other.num_heads != first.num_heads or other.system == ours or not standing_of(results, other.system).is_ranked:
            continue
        names = (title_of(results, first.system), title_of(results, other.system))
        heads = heads_words(first.num_heads)
        pairs = (
            ("memory", sum(first.rss_bytes.values()) / 1e6, sum(other.rss_bytes.values()) / 1e6, " MB"),
            ("start-up", first.start_seconds, other.start_seconds, " s"),
        )
        for what, one, two, unit in pairs:
            if min(one, two) > 0 and abs(one - two) > 0.1 * max(one, two):
                order = (0, 1) if one < two else (1, 0)
                values = (number(one) + unit, number(two) + unit)
                factor = max(one, two) / min(one, two)
                apart = (values[order[0]], values[order[1]])
                found.append(Lead(names[order[0]], names[order[1]], what, heads, factor, apart))
    return found


def losses(results: Results) -> list[str]:
    """Where plan four is behind another ranked system, and which goals were not met; a sentence each."""
    ours = ours_of(results)
    behind: dict[tuple[str, str], list[str]] = {}
    for lead in leads(results):
        if ours is not None and lead.worse == title_of(results, ours):
            words = f"{lead.what} {lead.values[0]} against our {lead.values[1]} ({number(lead.factor)}×)"
            behind.setdefault((lead.better, lead.where), []).append(words)
    sentences = [f"{better} is ahead, {where}: {', '.join(words)}." for (better, where), words in behind.items()]
    absent = ["Plan four was not measured."] if ours is None and systems_of(results) else []
    return absent + [_missed(results, ratio) for ratio in results.ratios if ratio.is_met is False] + sentences


def _missed(results: Results, ratio: Ratio) -> str:
    words = with_spread(measured(ratio.values), ratio_unit(ratio))
    goal = f"; the goal was {ratio.goal}" if ratio.goal else ""
    over, under = title_of(results, ratio.over), title_of(results, ratio.under)
    return f"Goal not met: {ratio.title}: {ratio.what}, {over} beside {under}: {words}{goal}."


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
