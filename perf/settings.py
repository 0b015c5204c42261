"""What the command lines of the measurements share."""

import argparse
from collections.abc import Sequence
from typing import Final, get_args

from rich.console import Console

from embedding_service.models.prepare import Engine
from perf.machine import MAX_WAITS
from perf.trunks import long_trunk
from perf.workloads import WORKLOADS, Workload, WorkloadName, load_workload
from trunkline import paths

WIDTH: Final = 160
ENGINES: Final[tuple[str, ...]] = get_args(Engine)


def add_common(
    parser: argparse.ArgumentParser,
    *,
    seconds: float,
    rounds: int | None = None,
    workloads: Sequence[WorkloadName] = ("short", "mix"),
) -> None:
    """--seconds, --rounds, --engine, --workloads, --waits."""
    parser.add_argument("--seconds", type=positive, default=seconds, help="of each round")
    if rounds is not None:
        parser.add_argument("--rounds", type=at_least_one, default=rounds)
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="of ours")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(workloads))
    parser.add_argument("--waits", type=int, default=MAX_WAITS, help="seconds to wait at most for a quiet machine before a round")


def at_least_one(words: str) -> int:
    """A number of something, of the command line."""
    count = int(words)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return count


def positive(words: str) -> float:
    """A number above 0, of the command line."""
    value = float(words)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("it must be more than 0")
    return value


def wide_console() -> Console:
    """For people; wide where it is not a terminal, so that a table in a file keeps its lines."""
    plain = Console(highlight=False, soft_wrap=True)
    return plain if plain.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDTH)


def workloads_asked_for(given: argparse.Namespace) -> list[Workload]:
    """The texts of --workloads, none of them truncated by the trunk all are measured on."""
    tokenizer_json = (long_trunk(paths.cache_dir()) / "tokenizer.json").read_bytes()
    return [load_workload(name, paths.cache_dir(), tokenizer_json) for name in given.workloads]
