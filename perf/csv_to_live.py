"""`python -m perf.csv_to_live`: from a CSV to a head that answers through the gateway: how long, and how well.

The whole local stack runs, and `trunkline train` is called as from another terminal. Time counts from that call, the
interpreter's start included, to the first answer of the new head at the gateway, which is never restarted; and to the command's
end, when the report lies there too. Each set is trained
twice under two names: first with no vector of its texts anywhere, then with all of them kept from the first time. Accuracy is
that of the gateway's answers on the held-out texts.
"""

import argparse
import asyncio
import csv
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console

from clients import NotFound, TrunklineError
from perf.heads_data import HeadData, prepare_heads_data
from perf.settings import wide_console
from trunkline import AsyncClient, paths
from trunkline.demo import measure, wait_until_live
from trunkline.demo_data import DemoHead
from trunkline.stack import Addresses, Stack, StackSettings, record

LAYERS: Final = (-1, -2, -3, -4)
BEST: Final = {
    "topic": ("--layers=-1,-2,-3,-4",),
    "spam": ("--layers=-1,-2,-3,-4",),
    "tweets": ("--head-type=mlp", "--layers=-1,-2,-3,-4"),
    "movie": ("--head-type=attention", "--layers=-1,-2,-3"),
}
"""What did best on validation in `perf.heads_accuracy`, as flags of `trunkline train`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One training: of *data*, under *head*, with *flags*."""

    data: HeadData
    head: str
    flags: tuple[str, ...]


def fresh_cache(cache_dir: Path, scratch: Path) -> Path:
    """A cache with all that is prepared, but no vector of any text."""
    fresh = scratch / "cache"
    fresh.mkdir()
    # Lock files are never followed; each cache has its own.
    for path in filter(Path.is_dir, cache_dir.iterdir()):
        (fresh / path.name).symlink_to(path)
    return fresh


def num_rows(path: Path) -> int:
    """Of a CSV, the header not counted."""
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def first_rows(data: HeadData, count: int, folder: Path) -> HeadData:
    """*data* with at most *count* rows to learn from."""
    target = folder / f"{data.name}.csv"
    with data.train_csv.open(encoding="utf-8", newline="") as source, target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(row for row, _ in zip(csv.reader(source), range(count + 1), strict=False))
    return HeadData(data.name, data.title, data.goal, target, data.test_csv)


async def train(wanted: Wanted, environment: dict[str, str]) -> None:
    """`trunkline train`, in a process of its own; SystemExit with what it said when it fails."""
    command = [sys.executable, "-m", "trunkline", "train", str(wanted.data.train_csv), "--head", wanted.head, *wanted.flags]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"trunkline train failed: {said.decode()[-1_000:]}")


async def first_answer(client: AsyncClient, head: str) -> None:
    """Wait until *head* answers."""
    while True:
        with suppress(NotFound, TrunklineError):
            [result] = await client.classify("Is anybody there?", heads=[head])
            if result.heads[head]:
                return
        await asyncio.sleep(0.05)


async def take(wanted: Wanted, client: AsyncClient, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds from the CSV to the first answer, and to the command's end."""
    began = time.perf_counter()

    async def live() -> float:
        await first_answer(client, wanted.head)
        return time.perf_counter() - began

    async with asyncio.TaskGroup() as group:
        answered = group.create_task(live())
        await train(wanted, environment)
        ended = time.perf_counter() - began
    return answered.result(), ended


async def run(given: argparse.Namespace, console: Console) -> None:
    """Start, train, measure, stop."""
    sets = {data.name: data for data in prepare_heads_data(paths.cache_dir(), console.print)}
    with tempfile.TemporaryDirectory(prefix="trunkline-live-") as folder:
        scratch = Path(folder)
        cache = fresh_cache(paths.cache_dir(), scratch)
        environment = {**os.environ, "TRUNKLINE_HOME": str(scratch / "home"), "TRUNKLINE_CACHE_DIR": str(cache)}
        settings = StackSettings(scratch / "home" / "repository", cache, scratch / "logs", layers=LAYERS).on_any_ports()
        stack = Stack(settings, console.print)
        try:
            addresses: Addresses = await stack.start()
            record(scratch / "home" / "stack.json", addresses)
            async with AsyncClient(addresses.gateway, timeout=60.0) as client:
                for name in given.sets or sets:
                    await measure_set(first_rows(sets[name], given.rows, scratch), client, environment, console)
        finally:
            await stack.stop()


async def measure_set(data: HeadData, client: AsyncClient, environment: dict[str, str], console: Console) -> None:
    """Print a line for the plain head without and with vectors that are kept, and one for the best head."""
    rows = " + ".join(str(num_rows(path)) for path in (data.train_csv, data.test_csv))
    for head, flags, what in (
        (data.name, (), "linear, no vector kept"),
        (f"{data.name}-again", (), "linear, all vectors kept"),
        (f"{data.name}-best", BEST[data.name], " ".join(BEST[data.name])),
    ):
        wanted = Wanted(data, head, (*flags, f"--test={data.test_csv}"))
        seconds, ended = await take(wanted, client, environment)
        await wait_until_live(client, [head])
        accuracy = await measure(client, DemoHead(head, data.title, data.train_csv, data.test_csv))
        console.print(
            f"{data.name:<7} {rows} rows, {what}: {seconds:.1f} s to the first answer, "
            f"{ended:.1f} s to the command's end; "
            f"{accuracy.share:.4f} ({accuracy.correct} of {accuracy.total}) through the gateway; {data.title}"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.csv_to_live", description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=sorted(BEST), help="all when absent")
    parser.add_argument("--rows", type=int, default=10_000, help="to learn from, at most; the held-out rows come on top")
    uvloop.run(run(parser.parse_args(), wide_console()))


if __name__ == "__main__":
    main()
