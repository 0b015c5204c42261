"""Plan one with our own engine: what the layout costs, when the engine is the same."""

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import httpx
import msgspec

from perf.load import Target, target_of
from perf.topologies.plan import Given, Labels, Plan, RunningPlan
from perf.topologies.starting import ANSWER_SECONDS, told_in_one_line, until_answered
from perf.workloads import Workload
from trunkline.processes import Child

NAME: Final = "plan-one-engine"
PATH: Final = "/classify"
_START_SECONDS: Final = 180.0
_STOP_SECONDS: Final = 8.0


def command_of(given: Given) -> list[str]:
    """Of the server, on any port."""
    command = [sys.executable, "-m", "perf.topologies.serve_engine", "--trunk", str(given.trunk), "--engine", given.engine]
    command += ["--weights", str(given.heads.weights_file), "--num-heads", str(given.num_heads)]
    return [*command, "--cache-dir", str(given.cache_dir)]


async def classified(http: httpx.AsyncClient, texts: Sequence[str]) -> list[Labels]:
    """One request a text, all at once: this deployment takes one text a call.

    Raises:
        httpx.HTTPError: no answer, or an answer that is an error.
    """
    answers = await asyncio.gather(*(http.post(PATH, json={"text": text}) for text in texts))
    return [answer.raise_for_status().json()["labels"] for answer in answers]


def target_at(url: str, workload: Workload) -> Target:
    """The same requests, for a generator."""
    return target_of(url, [msgspec.json.encode({"text": text}) for text in workload.texts], PATH, workload.classes)


@contextlib.asynccontextmanager
async def start(given: Given) -> AsyncIterator[RunningPlan]:
    """See `Plan`."""
    said: list[str] = []
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    log = given.log_dir / f"{NAME}.log"
    child = Child(NAME, command_of(given), ready=re.compile(r"Uvicorn running on (http://\S+)"), log=log, env=env)
    try:
        begun = time.perf_counter()
        with told_in_one_line():
            match = await child.start(_START_SECONDS, said.append)
        async with httpx.AsyncClient(base_url=match[1], timeout=ANSWER_SECONDS, trust_env=False) as http:

            async def classify(texts: Sequence[str]) -> list[Labels]:
                return await classified(http, texts)

            await until_answered(classify)
            yield RunningPlan(
                NAME,
                given.num_heads,
                {"web": child.pid},
                time.perf_counter() - begun,
                classify,
                lambda workload: target_at(match[1], workload),
                notes=tuple(line for line in said if line.startswith("engine ")),
                addresses={"web": match[1]},
            )
    finally:
        await child.stop(_STOP_SECONDS)


PLAN: Final = Plan(NAME, "plan one, our engine", start)
