"""Plan one as a user writes it: N whole models of transformers and torch in one web process, a text a call."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from embedding_service.models.prepare import find_source
from perf.peers.environment import CannotInstall, python_of
from perf.systems import offline
from perf.topologies.plan import CannotStart, Given, Plan, RunningPlan
from perf.topologies.starting import told_in_one_line
from perf.topologies.web_process import web_process

NAME: Final = "plan-one-torch"
ENVIRONMENT: Final = "sentence_transformers"
"""The peer's, which holds transformers, torch, FastAPI and uvicorn; the library itself is not used."""

_SERVER: Final = Path(__file__).with_name("serve_torch.py")


def command_of(python: Path, given: Given, max_tokens: int) -> list[str]:
    """Of the server, on any port."""
    # -P: the folder of the server's file must not hide modules of the same name.
    command = [str(python), "-P", str(_SERVER), "--model", str(given.trunk), "--max-tokens", str(max_tokens)]
    return [*command, "--weights", str(given.heads.weights_file), "--num-heads", str(given.num_heads)]


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
    # Threads are the libraries' own affair.
    async with web_process(NAME, command, offline(given.peers_dir), given) as running:
        yield running


PLAN: Final = Plan(NAME, "plan one, as users write it", start, least_agreement=0.99)
