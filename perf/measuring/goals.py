"""What one deployment is beside another, round by round, and whether it is what was hoped for."""

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from perf.results import Missing, Ratio, Run

CPU_GOALS: Final = {8: 6.5, 32: 24.0}
"""Least share of the CPU time a text, of so many whole models over plan four with so many heads."""

THROUGHPUT_GOAL: Final = 8.0
P50_GOAL_MS: Final = 1.5

Value = Callable[[Run], float]


@dataclass(frozen=True, slots=True)
class Roles:
    """Names of the deployments that goals are about. *whole* are those with a whole model for each head."""

    gateway: str = "plan-four"
    as_users_write_it: str = "plan-one-torch"
    in_process: str = "plan-one-engine"
    whole: tuple[str, ...] = ("plan-one-torch", "plan-one-engine", "plan-two")


@dataclass(frozen=True, slots=True)
class Pair:
    """*over* and *under* are systems, compared on the workload *workload* in the closed loop, with so many heads."""

    title: str
    over: str
    under: str
    what: str
    workload: str
    in_flight: int
    num_heads: int = 1
    goal: str = ""


def server_cpu_ms(run: Run) -> float:
    """CPU milliseconds a text, see `Run.cpu_ms`; 0 when it was not counted."""
    return run.cpu_ms or 0.0


def p50_ms(run: Run) -> float:
    """Of the latencies; 0 when there are none."""
    return run.latency_ms.get("p50", 0.0)


def throughput(run: Run) -> float:
    """Texts a second."""
    return run.throughput


def over_under(runs: Iterable[Run], pair: Pair, value: Value) -> list[tuple[float, float]]:
    """*value* of both in each round that both have and that counts for both."""
    found: dict[str, dict[int, float]] = {pair.over: {}, pair.under: {}}
    for run in runs:
        is_asked_for = (run.workload, run.num_heads) == (pair.workload, pair.num_heads) and run.load.kind == "closed"
        is_alike = run.load.in_flight == pair.in_flight and run.load.texts_a_request == 1
        if run.system in found and is_asked_for and is_alike and not run.void and value(run) > 0:
            found[run.system][run.round] = value(run)
    over, under = found[pair.over], found[pair.under]
    return [(over[number], under[number]) for number in sorted(over.keys() & under.keys())]


def ratio(runs: Iterable[Run], pair: Pair, value: Value, *, least: float | None = None) -> Ratio | None:
    """*over* divided by *under*; met when the median is *least* at least. None: there is no round of both."""
    values = tuple(over / under for over, under in over_under(runs, pair, value))
    return _told(pair, values, None if least is None else lambda median: median >= least)


def difference(runs: Iterable[Run], pair: Pair, value: Value, *, most: float) -> Ratio | None:
    """*over* minus *under*; met when the median is *most* at most. None: there is no round of both."""
    values = tuple(over - under for over, under in over_under(runs, pair, value))
    return _told(pair, values, lambda median: median <= most)


def goals_of(
    runs: Sequence[Run],
    roles: Roles,
    heads: Mapping[int, int],
    workload: str,
    in_flight: int,
    unranked: Collection[str] = (),
) -> tuple[list[Ratio], list[Missing]]:
    """What plan four is measured by; and what cannot be said, because a deployment was not measured or is *unranked*.

    *heads* are the numbers of heads, with the requests in flight of each; one head is no goal.
    """
    throughputs = Pair(
        "plan four beside plan one as users write it",
        roles.gateway,
        roles.as_users_write_it,
        "texts a second",
        workload,
        in_flight,
        goal=f"at least {THROUGHPUT_GOAL:g}",
    )
    latencies = Pair(
        "what the layout costs a single text",
        roles.gateway,
        roles.in_process,
        "p50 at 1 in flight, milliseconds more",
        workload,
        1,
        goal=f"at most {P50_GOAL_MS:g} ms more",
    )
    made = [
        (throughputs, ratio(runs, throughputs, throughput, least=THROUGHPUT_GOAL)),
        (latencies, difference(runs, latencies, p50_ms, most=P50_GOAL_MS)),
    ]
    for count, under_way in sorted(heads.items()):
        for whole in roles.whole if count > 1 else ():
            pair = _cost(whole, roles.gateway, count, workload, under_way)
            made.append((pair, ratio(runs, pair, server_cpu_ms, least=CPU_GOALS.get(count))))
    return _said(made, unranked)


def _cost(whole: str, gateway: str, count: int, workload: str, in_flight: int) -> Pair:
    goal = f"at least {CPU_GOALS[count]:g}" if count in CPU_GOALS else ""
    title = f"{count} whole models beside {count} heads"
    return Pair(title, whole, gateway, "CPU time a text", workload, in_flight, count, goal)


def _said(made: Iterable[tuple[Pair, Ratio | None]], unranked: Collection[str]) -> tuple[list[Ratio], list[Missing]]:
    found: list[Ratio] = []
    missing: list[Missing] = []
    for pair, one in made:
        bad = [name for name in (pair.over, pair.under) if name in unranked]
        if bad or one is None:
            why = f"the answers of {bad[0]} are others" if bad else "there is no round of both that counts"
            missing.append(Missing(what=f"{pair.title}: {pair.what} of {pair.over} over {pair.under}", why=why))
        else:
            found.append(one)
    return found, missing


def _told(pair: Pair, values: tuple[float, ...], is_met: Callable[[float], bool] | None) -> Ratio | None:
    if not values:
        return None
    return Ratio(
        title=pair.title,
        over=pair.over,
        under=pair.under,
        what=pair.what,
        values=values,
        goal=pair.goal,
        is_met=is_met(statistics.median(values)) if is_met else None,
    )
