"""`python -m perf.micro.head_call`: Predict on the embedded server beside TensorFlow's own bare call of the same head.

One call at a time over one connection, and the same graph called in this process: once as users call it (the signature of
`tf.saved_model.load`), once as the server does (a callable of the session). In turns, round by round.
"""

import argparse
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import numpy as np
import tensorflow as tf
import uvloop

from clients import AsyncHeadClient
from head_service.serving.servable import Servable
from perf.machine import cpu_seconds
from perf.micro.served_heads import INPUT, WIDTH, ServedHeads, served
from perf.report import spread
from perf.settings import wide_console

HEAD: Final = "head"
BATCHES: Final = (1, 32)

Call = Callable[[], Awaitable[object]]


async def _timed(call: Call, count: int, pid: int) -> tuple[float, float]:
    """The median of *count* calls, and the CPU time of process *pid* a call; both in microseconds."""
    latencies = []
    before = cpu_seconds(pid)
    for _ in range(count):
        began = time.perf_counter()
        await call()
        latencies.append(time.perf_counter() - began)
    return statistics.median(latencies) * 1e6, (cpu_seconds(pid) - before) / count * 1e6


def _bare(heads: ServedHeads, rows: Any) -> dict[str, Call]:
    directory = heads.base / HEAD / "1"
    loaded = tf.saved_model.load(str(directory))
    signature, tensor = loaded.signatures["serving_default"], tf.constant(rows)
    servable = Servable(HEAD, 1, directory)

    async def as_users() -> object:
        # What is loaded must outlive its signature.
        assert loaded is not None
        return signature(embedding=tensor)["scores"].numpy()

    async def as_the_server() -> object:
        return servable.run("", {INPUT: rows}, ())

    return {"TensorFlow's loaded signature, in process": as_users, "its session's callable, in process": as_the_server}


async def measure(rounds: int, count: int) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """By what is called and how many rows: p50 and CPU a call of each round."""
    taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
    async with served(HEAD) as heads, AsyncHeadClient(heads.address) as client:
        for rows in BATCHES:
            batch = np.full((rows, WIDTH), 0.05, np.float32)

            async def predict(batch: Any = batch) -> object:
                return await client.predict(HEAD, {INPUT: batch})

            calls: dict[str, tuple[Call, int]] = {"Predict on the embedded server": (predict, heads.pid)}
            calls |= {name: (call, os.getpid()) for name, call in _bare(heads, batch).items()}
            for call, pid in calls.values():
                await _timed(call, 200, pid)
            for _ in range(rounds):
                for name, (call, pid) in calls.items():
                    taken.setdefault((name, rows), []).append(await _timed(call, count, pid))
    return taken


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.head_call", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2_000, help="of each round")
    given = parser.parse_args()
    console = wide_console()
    console.print(f"a linear head of {WIDTH} inputs, {os.cpu_count()} cores, {given.calls} calls a round, one at a time")
    for (name, rows), rounds in uvloop.run(measure(given.rounds, given.calls)).items():
        median, cpu = (spread([values[place] for values in rounds], "{:.0f} µs") for place in (0, 1))
        console.print(f"batch {rows:2d}  {name}: p50 {median}; CPU a call {cpu}")


if __name__ == "__main__":
    main()
