"""`python -m perf.micro`: our own parts in microseconds a call, and whether any of them has become slower.

`--compare` puts this run beside the baseline of this kind of machine in perf/baselines, told in yardsticks (see
`perf.micro.baseline`), and `--fail-on-worse` makes a benchmark that is slower the exit status. `--write-baseline NAME` keeps this
run as that baseline. `--only "batch cut" pipeline` takes those whose names begin so.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from perf.machine import MAX_WAITS, wait_until_quiet
from perf.measuring import environment
from perf.micro.baseline import (
    BASELINES,
    TOLERANCE,
    YARDSTICKS,
    Compared,
    baseline_for,
    baselines_in,
    compare,
    is_alike,
)
from perf.micro.suite import ROUNDS, run_suite
from perf.micro.timing import ROUND_SECONDS
from perf.results import Micro, Results, write
from perf.settings import wide_console


def table_of(micros: Sequence[Micro]) -> Table:
    """Each benchmark with its median over rounds, from the least to the most; also in yardsticks."""
    unit = next((statistics.median(one.microseconds) for one in micros if one.name == YARDSTICKS[0]), None)
    table = Table("benchmark", "µs a call", "from", "to", "CPU µs", "Python yardsticks", "")
    for one in micros:
        middle = statistics.median(one.microseconds)
        cpu = f"{statistics.median(one.cpu_microseconds):.2f}" if one.cpu_microseconds else ""
        least, most = (f"{edge(one.microseconds):.2f}" for edge in (min, max))
        table.add_row(one.name, f"{middle:.2f}", least, most, cpu, f"{middle / unit:.2f}" if unit else "", one.note)
    return table


def told(compared: Compared) -> list[str]:
    """What changed, a line each: what is slower first, then what is faster by as much."""
    lines = [
        f"slower: {one.name}: {one.what} {one.ratio:.2f} times that of the baseline (spread {one.spread:.0%})"
        for one in compared.worse
    ]
    lines += [
        f"faster: {one.name}: {one.what} {one.ratio:.2f} times that of the baseline (spread {one.spread:.0%})"
        for one in compared.comparisons
        if 1 / one.ratio > 1 + TOLERANCE + one.spread
    ]
    lines += [f"not in this run: {name}" for name in compared.gone]
    lines += [f"not in the baseline: {name}" for name in compared.new]
    if not compared.worse:
        lines.append(f"nothing is slower by {TOLERANCE:.0%} and the spread of its rounds")
    return lines


def against_baseline(results: Results, folder: Path, console: Console) -> bool:
    """Say how *results* compare with the baseline for this machine; whether nothing is slower.

    Raises:
        ValueError: there is no baseline, or it cannot be compared with.
    """
    baselines = baselines_in(folder)
    name = baseline_for(results.machine, baselines)
    if name is None:
        raise ValueError("there is no baseline; write one with --write-baseline NAME")
    baseline = baselines[name]
    console.print(f"beside {name}: {baseline.machine.cpu}, {baseline.machine.num_cores} cores, {baseline.started[:10]}")
    if not is_alike(baseline.machine, results.machine):
        console.print("that is another kind of machine: what differs by less than half may be its doing")
    compared = compare(baseline.micro, results.micro)
    if not compared.comparisons:
        raise ValueError("this run and the baseline have no benchmark in common")
    for line in told(compared):
        console.print(line)
    return not compared.worse


def measured(given: argparse.Namespace, console: Console) -> Results:
    """One run of the suite."""
    started = datetime.now(UTC)
    # Drawn between rounds: a thread that draws would be timed too.
    with Progress(console=console, transient=True, auto_refresh=False) as bar:
        line = bar.add_task("rounds", total=given.rounds)
        micro = run_suite(
            console.print,
            lambda done, of: bar.update(line, completed=done, total=of, refresh=True),
            rounds=given.rounds,
            seconds=given.milliseconds / 1000,
            only=given.only,
            with_head_server=given.head_server,
        )
    return Results(
        command="python -m perf.micro",
        commit=environment.commit(),
        started=started.isoformat(timespec="seconds"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=environment.machine(),
        versions=environment.versions(),
        settings={"rounds": given.rounds, "milliseconds": given.milliseconds},
        micro=micro,
    )


def main() -> int:
    """Exit status 1 where something is slower and --fail-on-worse is given, 2 where there is nothing to compare with."""
    parser = argparse.ArgumentParser("python -m perf.micro", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--milliseconds", type=float, default=ROUND_SECONDS * 1000, help="of one round of one benchmark")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="benchmarks whose names begin so")
    parser.add_argument("--no-head-server", dest="head_server", action="store_false", help="without the calls of a head")
    parser.add_argument("--waits", type=int, default=MAX_WAITS, help="seconds to wait at most for a quiet machine")
    parser.add_argument("--compare", action="store_true", help="with the baseline of this kind of machine")
    parser.add_argument("--fail-on-worse", action="store_true", help="with --compare: exit status 1 where something is slower")
    parser.add_argument("--baselines", type=Path, default=BASELINES, metavar="FOLDER")
    parser.add_argument("--write-baseline", metavar="NAME")
    given = parser.parse_args()
    console = wide_console()
    wait_until_quiet([], console.print, given.waits)
    results = measured(given, console)
    console.print(table_of(results.micro))
    is_fine = True
    if given.compare:
        try:
            is_fine = against_baseline(results, given.baselines, console)
        except (ValueError, OSError) as error:
            console.print(str(error))
            return 2
    if given.write_baseline:
        path = given.baselines / f"{given.write_baseline}.json"
        write(results, path)
        console.print(f"written to {path}")
    return 0 if is_fine or not given.fail_on_worse else 1


if __name__ == "__main__":
    sys.exit(main())
