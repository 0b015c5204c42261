"""Plan one, whatever runs in it: one web process that takes one text a request, and who asks it."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import httpx
import msgspec

from perf.load import Target, target_of
from perf.topologies.plan import Given, Labels, RunningPlan
from perf.topologies.starting import ANSWER_SECONDS, told_in_one_line, until_answered
from perf.workloads import Workload
from trunkline.processes import Child

PATH: Final = "/classify"
_START_SECONDS: Final = 600.0
"""32 whole models, from a disk that has not seen them."""

_STOP_SECONDS: Final = 8.0


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
async def web_process(
    name: str, command: Sequence[str], env: Mapping[str, str], given: Given, *, note_prefix: str | None = None
) -> AsyncIterator[RunningPlan]:
    """The deployment *name*, whose server *command* starts on any port, until the context ends.

    Lines that the server says and that begin with *note_prefix* are the deployment's notes.

    Raises:
        CannotStart: and why, in one line.
    """
    said: list[str] = []
    ready = re.compile(r"Uvicorn running on (http://\S+)")
    child = Child(name, list(command), ready=ready, log=given.log_dir / f"{name}.log", env=env)
    begun = time.perf_counter()
    try:
        with told_in_one_line():
            match = await child.start(_START_SECONDS, said.append)
        async with httpx.AsyncClient(base_url=match[1], timeout=ANSWER_SECONDS, trust_env=False) as http:

            async def classify(texts: Sequence[str]) -> list[Labels]:
                return await classified(http, texts)

            await until_answered(classify)
            yield RunningPlan(
                name,
                given.num_heads,
                {"web": child.pid},
                time.perf_counter() - begun,
                classify,
                lambda workload: target_at(match[1], workload),
                notes=tuple(line for line in said if note_prefix is not None and line.startswith(note_prefix)),
                addresses={"web": match[1]},
            )
    finally:
        await child.stop(_STOP_SECONDS)
