"""Plan one with our own engine: what the layout costs, when the engine is the same."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import Final

from perf.topologies.plan import Given, Plan, RunningPlan
from perf.topologies.web_process import web_process

NAME: Final = "plan-one-engine"


def command_of(given: Given) -> list[str]:
    """Of the server, on any port."""
    command = [sys.executable, "-m", "perf.topologies.serve_engine", "--trunk", str(given.trunk), "--engine", given.engine]
    command += ["--weights", str(given.heads.weights_file), "--num-heads", str(given.num_heads)]
    return [*command, "--cache-dir", str(given.cache_dir)]


@contextlib.asynccontextmanager
async def start(given: Given) -> AsyncIterator[RunningPlan]:
    """See `Plan`."""
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    async with web_process(NAME, command_of(given), env, given, note_prefix="engine ") as running:
        yield running


PLAN: Final = Plan(NAME, "plan one, our engine", start)
