from dataclasses import replace
from pathlib import Path

import httpx
import msgspec
import numpy as np
import psutil
import pytest

from perf.topologies.plan import CannotStart, Given, HeadWeights
from perf.topologies.plan_one_engine import PLAN
from perf.topologies.web_process import classified
from perf.topologies.weights import write_weights
from perf.workloads import Workload
from tests.perf.topologies.weighted import head_set
from tests.tiny_trunk import make_tiny_trunk


def given(tmp_path: Path) -> Given:
    drawn = np.random.default_rng(0)
    heads = [
        HeadWeights(name, ("x", "y"), drawn.normal(size=(32, 2)).astype(np.float32), np.zeros(2, np.float32))
        for name in ("first", "second", "third")
    ]
    write_weights(heads, tmp_path / "weights.npz")
    trunk = make_tiny_trunk(tmp_path / "tiny")
    cache = tmp_path / "cache"
    return Given(
        trunk, head_set(*heads, root=tmp_path), 2, cache, cache, tmp_path / "logs", engine="onnx-fp32", say=lambda _: None
    )


async def test_a_web_process_answers_with_the_labels_of_so_many_heads_and_is_gone_afterwards(tmp_path: Path) -> None:
    async with PLAN.start(given(tmp_path)) as running:
        one, other = await running.classify(["a b c", "d"])
        [pid] = running.pids.values()
        assert running.target is not None
        target = running.target(Workload("short", ["a"], ["short"]))

    assert {"first", "second"} == one.keys() == other.keys()
    assert {"x", "y"} >= {*one.values(), *other.values()}
    assert not psutil.pid_exists(pid)
    assert (b"/classify", [{"text": "a"}]) == (target.path, [msgspec.json.decode(body) for body in target.bodies])
    assert running.start_seconds > 0
    assert ("engine onnxruntime fp32",) == running.notes


async def test_a_trunk_that_cannot_be_had_is_said_in_one_line(tmp_path: Path) -> None:
    lacking = replace(given(tmp_path), trunk=tmp_path / "nowhere")

    with pytest.raises(CannotStart, match="nowhere"):
        async with PLAN.start(lacking):
            pass


async def test_an_answer_that_is_an_error_is_raised() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(500))
    async with httpx.AsyncClient(transport=transport, base_url="http://it") as http:
        with pytest.raises(httpx.HTTPStatusError):
            await classified(http, ["a"])
