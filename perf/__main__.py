"""`python -m perf`: the plans, the peers and the limit side by side, on this machine, in one command.

`quick` takes some minutes and `all` up to an hour; both write results.json, report.html and figures, and print tables. `report`
draws the page of a results.json again, `compare` puts two of them side by side, `micro` times our own parts.
"""

import argparse
import asyncio
import contextlib
import runpy
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

import msgspec
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from embedding_service.models.prepare import Engine
from perf.asked import Advance, Asked, Measure, Save, Say, TimeParts
from perf.compare import compare, print_comparison
from perf.machine import MAX_WAITS
from perf.reporting.files import save_results, write_pages
from perf.reporting.tables import all_tables
from perf.reporting.terminal import print_tables
from perf.reporting.verdicts import losses, summary
from perf.results import Micro, Results, read
from perf.settings import at_least_one, positive, wide_console
from perf.topologies.plan import MOST_HEADS
from trunkline import paths

OUT: Final = Path("build") / "perf"
PRICE_PER_HOUR: Final = 0.1
"""Dollars, of a machine with two virtual cores at many sellers of them; the page says what it was counted with."""

INTERRUPTED: Final = "The run was interrupted: what is not here was not measured."
EXIT_INTERRUPTED: Final = 130


class Kept:
    """Owner of results.json of one run, and of what was found last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.latest: Results | None = None

    def save(self, results: Results) -> None:
        """Written as a whole or not at all."""
        self.latest = results
        save_results(results, self._folder)

    def interrupted(self, say: Say) -> None:
        """Say in what was found so far that it is not all."""
        if self.latest is not None:
            try:
                self.save(msgspec.structs.replace(self.latest, remarks=(*self.latest.remarks, INTERRUPTED)))
            except OSError as error:
                # It is shown all the same.
                say(f"what was found so far cannot be written: {error}")


def main(
    arguments: Sequence[str] | None = None,
    measure: Measure | None = None,
    console: Console | None = None,
    time_parts: TimeParts | None = None,
) -> int:
    """The command line; the exit status is 1 when it failed, or when `compare --fail-on-worse` finds something worse."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["micro"]:
        return _micro(words[1:])
    given = _parser().parse_args(words)
    shown = console or wide_console()
    try:
        return _run_command(given, measure or _campaign, time_parts or _parts, words, shown)
    except (ValueError, OSError) as error:
        shown.print(str(error), markup=False)
        return 1


def _run_command(
    given: argparse.Namespace, measure: Measure, time_parts: TimeParts, words: Sequence[str], console: Console
) -> int:
    if given.command == "compare":
        comparison = compare(read(given.before), read(given.after))
        print_comparison(comparison, console)
        return 1 if given.fail_on_worse and comparison.is_worse else 0
    if given.command == "report":
        show(read(given.results), given.out or given.results.parent, console)
        return 0
    return take(_asked(given, words), measure, time_parts, console)


def take(asked: Asked, measure: Measure, time_parts: TimeParts, console: Console) -> int:
    """Run the campaign, then time our own parts; keep what is found as it is found, and show it at the end, however that came."""
    kept = Kept(asked.out)
    status = 0
    try:
        with told_progress(console) as advance:
            found = uvloop.run(_measured(measure, asked, lambda words: console.print(words, markup=False), advance, kept))
            kept.save(found)
            if asked.with_micro:
                kept.save(msgspec.structs.replace(found, micro=time_parts(console.print, advance)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; the services are stopped")
        kept.interrupted(lambda words: console.print(words, markup=False))
        status = EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        console.print(str(error), markup=False)
        status = 1
    except Exception:
        # What was found so far may be an hour's work: it is shown, and the fault with it.
        console.print_exception()
        status = 1
    if kept.latest is None:
        console.print("nothing was measured")
        return status or 1
    show(kept.latest, asked.out, console)
    if not kept.latest.runs:
        console.print("no load was measured")
        status = status or 1
    return status


async def _measured(measure: Measure, asked: Asked, say: Say, advance: Advance, kept: Kept) -> Results:
    """Told to end, or when its terminal closes, it ends as by Ctrl-C: servers that are stopped meanwhile would stay for ever."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await measure(asked, say=say, progress=advance, save=kept.save)


def show(results: Results, folder: Path, console: Console) -> None:
    """Tables, what follows from them in words, and where the page is."""
    print_tables(all_tables(results), console)
    for words in (*summary(results), *losses(results), *results.remarks):
        console.print(f"- {words}", markup=False)
    console.print(f"{write_pages(results, folder)}", markup=False)


@contextlib.contextmanager
def told_progress(console: Console) -> Iterator[Advance]:
    """A bar on a terminal; elsewhere a line whenever what is measured changes."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
    )
    # Drawn when something is told, which is between measurements: a thread that draws would take its time from the generator.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        line = bar.add_task("starting", total=1.0)
        yield lambda share, title: bar.update(line, completed=share, description=title, refresh=True)


class _Lines:
    """Progress where nothing can be drawn over."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title = ""

    def __call__(self, share: float, title: str) -> None:
        if title != self._title:
            self._title = title
            self._console.print(f"{share:4.0%}  {title}", markup=False)


async def _campaign(asked: Asked, *, say: Say, progress: Advance, save: Save) -> Results:
    """What `quick` and `all` run."""
    # The whole stack comes along: neither `report` nor `compare` needs it.
    from perf.taking import take_campaign  # noqa: PLC0415

    return await take_campaign(asked, say=say, progress=progress, save=save)


def _parts(say: Say, progress: Advance) -> tuple[Micro, ...]:
    from perf.micro.suite import run_suite  # noqa: PLC0415 (see _campaign)

    progress(1.0, "our own parts, in microseconds a call")
    return run_suite(say)


def _micro(arguments: Sequence[str]) -> int:
    """The command of the micro-benchmarks, with its own options; it says its own exit status."""
    before = sys.argv
    sys.argv = ["python -m perf micro", *arguments]
    try:
        runpy.run_module("perf.micro", run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0


def _asked(given: argparse.Namespace, words: Sequence[str]) -> Asked:
    started = datetime.now(UTC)
    return Asked(
        is_quick=given.command == "quick",
        command=" ".join(["python -m perf", *words]),
        plans=tuple(given.plans),
        heads=tuple(sorted(set(given.heads))),
        workloads=tuple(given.workloads),
        out=given.out or OUT / f"{started:%Y-%m-%dT%H%M%SZ}",
        price_per_hour=given.price_per_hour,
        embedding_address=given.embedding_address,
        peers_dir=given.peers_dir,
        with_peers=not given.no_peers,
        rounds=given.rounds,
        seconds=given.seconds,
        engine=given.engine,
        max_waits=given.waits,
        with_micro=not given.no_micro,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m perf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_measuring(commands.add_parser("quick", help="plans on SHORT with few rounds: some minutes"))
    _add_measuring(commands.add_parser("all", help="plans, peers and the limit on all workloads: up to an hour"))
    side_by_side = commands.add_parser("compare", help="two results.json side by side")
    side_by_side.add_argument("before", type=Path, metavar="A.json")
    side_by_side.add_argument("after", type=Path, metavar="B.json")
    side_by_side.add_argument("--fail-on-worse", action="store_true", help="exit status 1 when anything is worse")
    again = commands.add_parser("report", help="tables, page and figures of a results.json")
    again.add_argument("results", type=Path, metavar="A.json")
    again.add_argument("--out", type=Path, help="folder of the page; the file's own when absent")
    commands.add_parser("micro", help="our own parts, in microseconds a call; see `python -m perf micro --help`")
    return parser


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plans", nargs="+", default=[], metavar="NAME", help="some of them only")
    parser.add_argument(
        "--heads", nargs="+", type=_num_heads, default=[], metavar="N", help=f"numbers of heads, 1 to {MOST_HEADS}"
    )
    parser.add_argument("--workloads", nargs="+", default=[], metavar="NAME", help="some of them only; the first takes all loads")
    parser.add_argument("--out", type=Path, help=f"folder of what is written; {OUT}/<time> when absent")
    parser.add_argument("--price-per-hour", type=_not_negative, default=PRICE_PER_HOUR, help="of this machine, in dollars")
    parser.add_argument("--embedding-address", help="HOST:PORT of an embedding service elsewhere, for plans three and four")
    parser.add_argument("--peers-dir", type=Path, default=paths.cache_dir(), help="where the peers' environments are kept")
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out")
    parser.add_argument("--no-micro", action="store_true", help="leave our own parts, in microseconds, out")
    parser.add_argument("--rounds", type=at_least_one, help="of each load")
    parser.add_argument("--seconds", type=positive, help="of each round")
    parser.add_argument("--engine", choices=get_args(Engine), default="auto", help="of ours")
    parser.add_argument("--waits", type=int, help=f"seconds to wait for a quiet machine before a round, {MAX_WAITS} at most")


def _num_heads(words: str) -> int:
    count = int(words)
    if not 1 <= count <= MOST_HEADS:
        raise argparse.ArgumentTypeError(f"{count} is not from 1 to {MOST_HEADS}")
    return count


def _not_negative(words: str) -> float:
    value = float(words)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("it must not be negative")
    return value


if __name__ == "__main__":
    sys.exit(main())
