"""Deployments that are a function."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from perf.load import Target, target_of
from perf.topologies.plan import Classify, Given, HeadSet, HeadWeights, Labels, Plan, RunningPlan
from perf.workloads import Workload

WORKLOAD = Workload("short", ["a", "b", "c"], ["short"] * 3)


def heads_of(count: int) -> HeadSet:
    weights = [HeadWeights(f"h{n}", ("x", "y"), np.zeros((2, 2), np.float32), np.zeros(2, np.float32)) for n in range(count)]
    return HeadSet(tuple(weights), Path("none"), Path("none.npz"), tuple("abcd"), ("x",) * 4)


def given_of(place: Path) -> Given:
    return Given(place, heads_of(8), 1, place, place, place, say=lambda _: None)


async def all_x(texts: Sequence[str]) -> list[Labels]:
    await asyncio.sleep(0.001)
    return [{"h0": "x"} for _ in texts]


def running_of(
    classify: Classify = all_x, *, name: str = "fake", num_heads: int = 1, pids: Mapping[str, int] | None = None, port: int = 0
) -> RunningPlan:
    """With a *port* it has an HTTP target."""

    def target(workload: Workload) -> Target:
        return target_of(f"http://127.0.0.1:{port}", [text.encode() for text in workload.texts])

    return RunningPlan(name, num_heads, pids or {}, 0.5, classify, target if port else None, notes=("a note",))


def plan_of(name: str, classify: Classify = all_x, **more: float) -> Plan:
    @contextlib.asynccontextmanager
    async def start(given: Given) -> AsyncIterator[RunningPlan]:
        yield running_of(classify, name=name, num_heads=given.num_heads)

    return Plan(name, f"title of {name}", start, **more)
