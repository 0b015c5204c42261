"""`python -m perf.embedding_vs_peers`: our embedding service and each peer in turns, one text a request.

First the most texts a second, in a closed loop, with the CPU time of all processes of each server; then how long answers take
at a share of the peer's best load, offered to both. Only one server runs at a time, the other one is paused.
"""

import argparse
import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import uvloop
from rich.console import Console
from rich.table import Table

from embedding_service.backend import FloatArray
from embedding_service.models.prepare import Engine
from perf.load import LoadResult, Target, closed_loop
from perf.machine import paused
from perf.open_loop import open_loop
from perf.peers.environment import CannotInstall
from perf.report import ratios, spread, tail_ratios
from perf.rounds import Rounds
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.systems import (
    PEERS,
    Peer,
    Route,
    Running,
    least_and_mean_cosine,
    our_service,
    peer_service,
    reference_vectors,
)
from perf.trunks import long_trunk
from perf.workloads import Workload
from trunkline import paths
from trunkline.processes import StackError

NUM_COMPARED = 24
WARM_UP_SECONDS = 3.0
LEAST_COSINE_OF_OURS = 0.985
"""Of the mean to float32, whatever engine was asked for."""

Say = Callable[[str], None]


class Load(Protocol):
    """A closed or open loop, whose load is settled already."""

    def __call__(self, target: Target, *, seconds: float, pids: dict[str, int]) -> Awaitable[LoadResult]:
        """See `perf.load`."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line, read."""

    peers: list[Peer]
    engine: Engine
    rounds: int
    seconds: float
    in_flight: int
    share: float
    max_waits: int
    peers_dir: Path


@dataclass(frozen=True, slots=True)
class Turns:
    """Rounds taken in turns: of ours by route, and of the peer, as many each."""

    ours: dict[str, list[LoadResult]]
    theirs: list[LoadResult]

    @property
    def best_of_theirs(self) -> float:
        """Texts a second."""
        return max((result.throughput for result in self.theirs), default=0.0)


class Comparison:
    """Measures a pair of servers on one workload."""

    def __init__(self, ours: Running, theirs: Running, workload: Workload, asked: Asked, say: Callable[[str], None]) -> None:
        self._ours, self._theirs = ours, theirs
        self._workload = workload
        self._asked = asked
        self._say = say
        self._pids = {ours.name: ours.pid, theirs.name: theirs.pid}
        self.rounds = Rounds(list(self._pids.values()), say, asked.max_waits)

    async def warm_up(self) -> None:
        """Load each way for a moment."""
        for server in (self._ours, self._theirs):
            for route in server.routes:
                target = server.target(route, self._workload)
                await closed_loop(target, in_flight=self._asked.in_flight, seconds=WARM_UP_SECONDS)

    async def throughput(self) -> Turns:
        """As many texts as each takes with so many in flight."""
        in_flight = self._asked.in_flight
        return await self._in_turns(functools.partial(closed_loop, in_flight=in_flight), f"{in_flight} in flight")

    async def latency(self, rate: float) -> Turns:
        """*rate* texts a second offered to each, in its own time."""
        return await self._in_turns(functools.partial(open_loop, rate=rate), f"offered {rate:.0f} texts/s")

    async def _in_turns(self, load: Load, title: str) -> Turns:
        turns = Turns({route.path: [] for route in self._ours.routes}, [])
        for _ in range(self._asked.rounds):
            for number, route in enumerate(self._ours.routes):
                turns.ours[route.path].append(await self._take(self._ours, route, load, title))
                # Between the first of our ways and the next, so that whatever else changes meets all alike.
                if number == 0:
                    turns.theirs.append(await self._take(self._theirs, self._theirs.routes[0], load, title))
        return turns

    async def _take(self, server: Running, route: Route, load: Load, title: str) -> LoadResult:
        target = server.target(route, self._workload)
        with paused(pid for name, pid in self._pids.items() if name != server.name):
            result = await self.rounds.take(lambda: load(target, seconds=self._asked.seconds, pids=self._pids))
        self._say(f"  {server.name} {route.path}, {title}: {result.summary()}")
        return result


@dataclass(frozen=True, slots=True)
class Found:
    """What one of our routes gave beside the peer: ratios, ours over theirs, round by round."""

    throughput: list[float]
    cpu: list[float]
    p99: list[float]
    num_errors: int


def found_of(path: str, speed: Turns, tail: Turns, names: tuple[str, str]) -> Found:
    """The ratios of our route *path*; *names* are those of our processes and of theirs in the results."""
    ours, theirs = speed.ours[path], speed.theirs
    return Found(
        ratios([result.throughput for result in ours], [result.throughput for result in theirs]),
        ratios(cpu_ms(ours, names[0]), cpu_ms(theirs, names[1])),
        tail_ratios(tail.ours[path], tail.theirs, 99),
        sum(result.num_errors for result in (*ours, *theirs, *tail.ours[path], *tail.theirs)),
    )


def cpu_ms(results: Sequence[LoadResult], server: str) -> list[float]:
    """CPU milliseconds a text of all processes of *server*."""
    return [result.cpu_ms_per_text.get(server, 0.0) for result in results]


async def check_answers(server: Running, texts: Sequence[str], expected: FloatArray, least: float, say: Say) -> None:
    """Compare what each route answers with float32 before it is measured.

    Raises:
        StackError: the vectors are not the trunk's.
    """
    for route in server.routes:
        low, mean = await least_and_mean_cosine(server, route, texts, expected)
        say(f"  {server.name} {route.path}: cosine to float32 {mean:.5f} (least {low:.5f})")
        if not mean >= least:
            raise StackError(f"{server.name} answers other vectors than the trunk's; nothing is measured")


async def compare(peer: Peer, workloads: Sequence[Workload], asked: Asked, table: Table, say: Say) -> None:
    """Start *peer* and ours, compare their answers, measure; a row of *table* for each workload and route.

    Raises:
        CannotInstall, StackError: it cannot be had, does not start, or answers other vectors.
    """
    trunk = long_trunk(paths.cache_dir())
    theirs_from = peer_service(peer, trunk, cache_dir=paths.cache_dir(), peers_dir=asked.peers_dir, say=say)
    async with theirs_from as theirs, our_service(trunk, engine=asked.engine, say=say) as ours:
        for workload in workloads:
            say(f"{ours.name} and {theirs.name} on {workload}")
            texts = compared_texts(workload)
            expected = await asyncio.to_thread(reference_vectors, trunk, texts)
            await check_answers(ours, texts, expected, LEAST_COSINE_OF_OURS, say)
            await check_answers(theirs, texts, expected, peer.least_cosine, say)
            comparison = Comparison(ours, theirs, workload, asked, say)
            await comparison.warm_up()
            speed = await comparison.throughput()
            tail = await comparison.latency(asked.share * max(speed.best_of_theirs, 1.0))
            for route in ours.routes:
                found = found_of(route.path, speed, tail, (ours.name, theirs.name))
                row = (spread(found.throughput), spread(found.cpu), spread(found.p99))
                table.add_row(peer.name, workload.name, route.path, *row, _notes(found, comparison.rounds.num_disturbed))


def _notes(found: Found, num_disturbed: int) -> str:
    errors = f"{found.num_errors} errors" if found.num_errors else ""
    disturbed = f"{num_disturbed} rounds beside others" if num_disturbed else ""
    return ", ".join(filter(None, (errors, disturbed)))


def compared_texts(workload: Workload) -> list[str]:
    """Some of each class, by which answers are compared before anything is measured."""
    chosen = []
    for kind in sorted(set(workload.classes)):
        of_kind = [text for text, found in zip(workload.texts, workload.classes, strict=True) if found == kind]
        chosen += of_kind[:NUM_COMPARED]
    return chosen


async def run(asked: Asked, workloads: Sequence[Workload], console: Console) -> None:
    """Each peer in turn; one that cannot be had is said and passed over."""
    tail = f"p99 at {asked.share:.0%} of its best"
    table = Table("peer", "workload", "our route", "texts/s, ours / theirs", "CPU ms/text", tail, "notes")
    for peer in asked.peers:
        try:
            await compare(peer, workloads, asked, table, console.print)
        except (CannotInstall, StackError) as error:
            console.print(str(error))
            table.add_row(peer.name, "", "", "not measured", "", "", str(error))
        except Exception as error:  # whatever it was, what the others gave is shown
            console.print_exception()
            table.add_row(peer.name, "", "", "not measured", "", "", f"{type(error).__name__}, see above")
    console.print(table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.embedding_vs_peers", description=__doc__)
    add_common(parser, seconds=10.0, rounds=5)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.7, help="of the peer's best load, for the latencies")
    parser.add_argument("--peers-dir", type=Path, default=paths.cache_dir(), help="where the peers' environments are kept")
    given = parser.parse_args()
    peers = [PEERS[name] for name in given.peers]
    asked = Asked(peers, given.engine, given.rounds, given.seconds, given.in_flight, given.share, given.waits, given.peers_dir)
    console = wide_console()
    uvloop.run(run(asked, workloads_asked_for(given), console))


if __name__ == "__main__":
    main()
