"""`python -m perf.micro.pauses`: what the same work costs after a pause in which nothing of ours runs.

A service that answers one text at a time pauses between two steps. Where a machine's caches are shared with others, or lost for
another reason, it begins each step without them, and Python, which touches much code for little work, is slowest then. The pause
is slept, or spent in a loop of a few instructions, so that what the processor does when it idles is told from what happens
to its caches.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from perf.settings import wide_console

PAUSES: Final = (0.0, 0.001, 0.003, 0.01, 0.03)
"""Seconds."""

NUM_WARM: Final = 2_000

_FACTS: Final = {"rows": [{"number": number, "name": str(number) * 3} for number in range(20)]}


@dataclass(frozen=True, slots=True)
class Cost:
    """Median microseconds of the work right after a pause, and of the same work again right after that."""

    first: float
    again: float


def some_python() -> str:
    """A little of everything: writing and reading JSON, strings, sorting."""
    read = json.loads(json.dumps(_FACTS))
    return "".join(sorted((repr(row) for row in read["rows"]), key=len)).upper()


def spin(seconds: float) -> None:
    """Keep the core busy without touching anything."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def cost_after(pause: Callable[[], None], rounds: int) -> Cost:
    """Of `some_python`, after *pause* in each of *rounds*."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        pause()
        for times in taken:
            began = time.perf_counter()
            some_python()
            times.append((time.perf_counter() - began) * 1e6)
    return Cost(statistics.median(taken[0]), statistics.median(taken[1]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.pauses", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="of each pause")
    given, console = parser.parse_args(), wide_console()
    for _ in range(NUM_WARM):
        some_python()
    for name, wait in (("slept", time.sleep), ("busy", spin)):
        for seconds in PAUSES:
            cost = cost_after(lambda wait=wait, seconds=seconds: wait(seconds), given.rounds)  # type: ignore[misc]
            told = f"{cost.first:.0f} us, again {cost.again:.0f} us: {cost.first / cost.again:.1f} times"
            console.print(f"after {seconds * 1000:g} ms {name}: {told}")


if __name__ == "__main__":
    main()
