"""The suite: our own parts in microseconds a call, all in turns, with two yardsticks among them.

The tokeniser's vocabulary and all texts are made here, so nothing is downloaded and nothing needs to be trained. See
`perf.micro.timing` for how calls are timed, `perf.micro.baseline` for how two runs are compared.
"""

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from clients import AsyncHeadClient
from perf.micro.gateway_paths import gateway_paths
from perf.micro.guard import guarded_calls
from perf.micro.parts import encoder, parts
from perf.micro.served_heads import INPUT, WIDTH, served
from perf.micro.timing import ROUND_SECONDS, Benchmark, Progress, measured, of_coroutine
from perf.results import Micro

ROUNDS: Final = 11
HEAD: Final = "head"
BATCHES: Final = (1, 32)

Say = Callable[[str], None]


def run_suite(
    say: Say,
    progress: Progress = lambda done, of: None,
    *,
    rounds: int = ROUNDS,
    seconds: float = ROUND_SECONDS,
    only: Collection[str] = (),
    with_head_server: bool = True,
) -> tuple[Micro, ...]:
    """Time all of it, or the yardsticks and the benchmarks whose names begin as one of *only*; about half a minute.

    *seconds* are those of one round of one benchmark. Must not be called from a running event loop: it runs one of its own, of
    the kind the gateway has. Tokenising uses one thread, as in the services.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return uvloop.run(_run(say, progress, rounds, seconds, only, with_head_server=with_head_server))


async def _run(
    say: Say, progress: Progress, rounds: int, seconds: float, only: Collection[str], *, with_head_server: bool
) -> tuple[Micro, ...]:
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        chosen = [one for one in in_process(Path(folder)) if is_wanted(one.name, only)]
        if with_head_server and any(is_wanted(name, only) for name in map(head_call_name, BATCHES)):
            say("starting a head server")
            try:
                calls = await stack.enter_async_context(head_calls())
            except SystemExit as error:
                say(f"calls of heads are not measured: {error}")
            else:
                chosen += [one for one in calls if is_wanted(one.name, only)]
        say(f"{len(chosen)} benchmarks, {rounds} rounds of {seconds * 1000:.0f} ms each")
        return await measured(chosen, rounds, seconds=seconds, progress=progress)


def is_wanted(name: str, only: Collection[str]) -> bool:
    """Whether the benchmark *name* is among those that begin as one of *only*; of none all are. Yardsticks always are."""
    return not only or name.startswith(("yardstick", *only))


def in_process(folder: Path) -> list[Benchmark]:
    """All that needs no other process; files go into *folder*."""
    guarded = [of_coroutine(f"guard, key: {name}", call, "ASGI around nothing") for name, call in guarded_calls(folder).items()]
    return [*parts(), *gateway_paths(encoder()), *guarded]


def head_call_name(rows: int) -> str:
    """Of the benchmark of one call with so many rows."""
    return f"head call, {rows} row{'s' if rows > 1 else ''}"


@contextlib.asynccontextmanager
async def head_calls() -> AsyncIterator[list[Benchmark]]:
    """Predict on an embedded head server of its own, over gRPC; CPU time is that of both processes."""
    async with served(HEAD) as heads, AsyncHeadClient(heads.address) as client:

        def call_of(rows: int) -> Benchmark:
            batch = {INPUT: np.full((rows, WIDTH), 0.05, np.float32)}
            return of_coroutine(
                head_call_name(rows),
                lambda: client.predict(HEAD, batch),
                "Predict over gRPC; CPU of client and server",
                pids=(heads.pid,),
            )

        yield [call_of(rows) for rows in BATCHES]
