"""Plan one as a user writes it: N whole models of transformers and torch in one web process, a text a call."""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

from embedding_service.models.prepare import find_source
from perf.peers.environment import CannotInstall, python_of
from perf.topologies.plan import CannotStart, Given, Labels, Plan, RunningPlan
from perf.topologies.plan_one_engine import classified, target_at
from perf.topologies.starting import ANSWER_SECONDS, told_in_one_line, until_answered
from trunkline.processes import Child

NAME: Final = "plan-one-torch"
ENVIRONMENT: Final = "sentence_transformers"
"""The peer's, which holds transformers, torch, FastAPI and uvicorn; the library itself is not used."""

_SERVER: Final = Path(__file__).with_name("serve_torch.py")
_START_SECONDS: Final = 600.0
_STOP_SECONDS: Final = 8.0


def command_of(python: Path, given: Given, max_tokens: int) -> list[str]:
    """Of the server, on any port."""
    # -P: the folder of the server's file must not hide modules of the same name.
    command = [str(python), "-P", str(_SERVER), "--model", str(given.trunk), "--max-tokens", str(max_tokens)]
    return [*command, "--weights", str(given.heads.weights_file), "--num-heads", str(given.num_heads)]


def environment_of(given: Given) -> Mapping[str, str]:
    """No hub and no telemetry; threads are the libraries' own affair."""
    kept = {"HF_HOME": str(given.peers_dir / "peers" / "hf"), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    return {**os.environ, **kept, "PYTHONUNBUFFERED": "1"}


def _prepared(given: Given) -> list[str]:
    """The server's command, once its environment is there."""
    source = find_source(str(given.trunk), cache_dir=given.cache_dir, engine="onnx-fp32", layers=(-1,), progress=given.say)
    try:
        python = python_of(ENVIRONMENT, given.peers_dir, given.say)
    except CannotInstall as error:
        raise CannotStart(str(error)) from error
    return command_of(python, given, source.spec.max_tokens)


@contextlib.asynccontextmanager
async def start(given: Given) -> AsyncIterator[RunningPlan]:
    """See `Plan`."""
    with told_in_one_line():
        command = await asyncio.to_thread(_prepared, given)
    log, ready = given.log_dir / f"{NAME}.log", re.compile(r"Uvicorn running on (http://\S+)")
    child = Child(NAME, command, ready=ready, log=log, env=environment_of(given))
    begun = time.perf_counter()
    try:
        with told_in_one_line():
            match = await child.start(_START_SECONDS)
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
                addresses={"web": match[1]},
            )
    finally:
        await child.stop(_STOP_SECONDS)


PLAN: Final = Plan(NAME, "plan one, as users write it", start, least_agreement=0.99)
