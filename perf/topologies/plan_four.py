"""Plan four: the gateway in front of the embedding service and the head server. Text in, labels out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from clients import AsyncClient, AsyncEmbeddingClient, HeadResult, Result
from perf.load import Target, classify_bodies, target_of
from perf.topologies.heads import deployed
from perf.topologies.plan import Given, Labels, Plan, RunningPlan
from perf.topologies.plan_three import head_server_note, pids_of, settings_of
from perf.topologies.starting import ANSWER_SECONDS, told_in_one_line, until_answered, without_caches
from perf.workloads import Workload
from trunkline.stack import Stack

NAME: Final = "plan-four"


def labels_of(result: Result) -> Labels:
    """Of one text; a head without an answer has no label."""
    return {name: head.label for name, head in result.heads.items() if isinstance(head, HeadResult) and head.label is not None}


def target_at(url: str, workload: Workload, heads: Sequence[str]) -> Target:
    """One request a text, for a generator."""
    return target_of(url, classify_bodies(workload.texts, heads), classes=workload.classes)


@contextlib.asynccontextmanager
async def start(given: Given) -> AsyncIterator[RunningPlan]:
    """See `Plan`."""
    with told_in_one_line():
        repository = await asyncio.to_thread(deployed, given.heads, given.num_heads, bundled=True, say=given.say)
    names = [head.name for head in given.heads.first(given.num_heads)]
    stack = Stack(settings_of(given, repository), given.say)
    try:
        begun = time.perf_counter()
        with told_in_one_line(), without_caches():
            found = await stack.start()
        async with AsyncClient(found.gateway, timeout=ANSWER_SECONDS) as client:

            async def classify(texts: Sequence[str]) -> list[Labels]:
                return [labels_of(result) for result in await client.classify(list(texts), heads=names, strict=True)]

            await until_answered(classify)
            seconds = time.perf_counter() - begun
            with told_in_one_line():
                async with AsyncEmbeddingClient(found.embedding_grpc) as embedding:
                    engine = (await embedding.trunk()).engine
            bundle = (f"{given.num_heads} heads in one bundle",) if given.num_heads > 1 else ()
            yield RunningPlan(
                NAME,
                given.num_heads,
                pids_of(stack),
                seconds,
                classify,
                lambda workload: target_at(found.gateway, workload, names),
                notes=(f"engine {engine}", head_server_note(stack), *bundle),
                addresses={"gateway": found.gateway, "embedding": found.embedding_grpc, "heads": found.heads_grpc},
            )
    finally:
        await stack.stop()


PLAN: Final = Plan(NAME, "plan four, the gateway", start)
