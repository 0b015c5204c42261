"""`python -m perf.gateway_cached`: texts the gateway has seen before, answered from kept outputs, by HTTP.

The embedding service and the head server are stopped (SIGSTOP) meanwhile: whoever called one of them would get no answer, so a
round without errors is one without a call.
"""

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import psutil
import uvloop
from rich.console import Console

from perf.load import LoadResult, closed_loop
from perf.report import spread
from perf.rounds import Rounds
from perf.settings import add_common, wide_console, workloads_asked_for
from perf.systems import Running, our_gateway
from perf.workloads import Workload

IN_FLIGHT = (1, 16)
HEAD = "topic"
"""Of the demo's heads the one whose accuracy is high enough."""
CACHE_BYTES = 64 * 1024 * 1024


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """The trees of *pids* do nothing."""
    processes = [process for pid in pids for root in [psutil.Process(pid)] for process in [root, *root.children(recursive=True)]]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


async def measure(stack: Running, workload: Workload, given: argparse.Namespace, console: Console) -> None:
    """Let every text be seen once; then print each round, and medians with their spreads."""
    console.print(f"{workload}, head {HEAD!r}; {os.cpu_count()} cores")
    target = stack.target(stack.routes[0], workload)
    backends = list(stack.others.values())
    # Texts are sent in turn, so enough answers are all texts.
    num_seen, turn = 0, target.bodies
    while num_seen < len(turn):
        more = await closed_loop(replace(target, bodies=[*turn[num_seen:], *turn[:num_seen]]), in_flight=64, seconds=2.0)
        num_seen += more.outcomes.total()
    rounds = Rounds(list(stack.pids.values()), console.print, given.waits)
    for in_flight in IN_FLIGHT:
        found: list[LoadResult] = []
        for _ in range(given.rounds):

            async def without_backends(in_flight: int = in_flight) -> LoadResult:
                with stopped(backends):
                    return await closed_loop(target, in_flight=in_flight, seconds=given.seconds, pids={"gateway": stack.pid})

            found.append(await rounds.take(without_backends))
            console.print(f"  {in_flight} in flight, no backend: {found[-1].summary()}")
        medians = spread([one.percentile_ms(50) for one in found], "{:.3f} ms")
        throughput = spread([one.throughput for one in found], "{:.0f}")
        errors = sum(one.num_errors for one in found)
        console.print(f"{in_flight} in flight: p50 {medians}, {throughput} texts/s, {errors} errors with both backends stopped")


async def run(given: argparse.Namespace, workloads: list[Workload], console: Console) -> None:
    """Start, measure, stop."""
    async with our_gateway([HEAD], cache_bytes=CACHE_BYTES, say=console.print) as stack:
        for workload in workloads:
            await measure(stack, workload, given, console)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.gateway_cached", description=__doc__)
    add_common(parser, seconds=3.0, rounds=5, workloads=("short",))
    given = parser.parse_args()
    uvloop.run(run(given, workloads_asked_for(given), wide_console()))


if __name__ == "__main__":
    main()
