"""The predictor over a fake servable: deadlines, callers that leave, bounds; versions stay in use while a thread runs them."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from clients.wire.tfs import serving_pb2 as pb
from clients.wire.tfs import tensor_pb2
from head_service.serving import predict
from head_service.serving.batching import Batcher, Parameters
from head_service.serving.checks import decode_request
from head_service.serving.errors import ServingError
from head_service.serving.predict import Predictor
from head_service.serving.signature import Signature, TensorInfo

SPEC = pb.ModelSpec(name="m")


class FakeServable:
    """Its runs wait until they may go on."""

    def __init__(self) -> None:
        info = TensorInfo("x:0", np.dtype("float32"))
        self.signatures = {"serving_default": Signature({"x": info}, {"y": info})}
        self.go_on = threading.Event()
        self.begun = threading.Semaphore(0)
        self.num_runs = 0
        self.quick = False
        self.threads: list[threading.Thread] = []

    def is_quick(self, signature: str, inputs: dict[str, Any]) -> bool:
        return self.quick

    def run(self, signature: str, inputs: dict[str, Any], output_filter: tuple[str, ...]) -> dict[str, Any]:
        self.num_runs += 1
        self.threads.append(threading.current_thread())
        self.begun.release()
        assert self.go_on.wait(10)
        return {"y": np.zeros(len(inputs.get("x", [0])), np.float32)}


class FakeManager:
    """Counts who uses the one version."""

    def __init__(self, servable: FakeServable) -> None:
        self.servable = servable
        self.num_users = 0

    @contextlib.contextmanager
    def use(self, spec: pb.ModelSpec) -> Iterator[tuple[int, FakeServable]]:
        self.num_users += 1
        try:
            yield 7, self.servable
        finally:
            self.num_users -= 1


@pytest.fixture
def manager() -> FakeManager:
    return FakeManager(FakeServable())


@pytest.fixture
async def predictor(manager: FakeManager) -> AsyncIterator[Predictor]:
    made = Predictor(manager, threads=1)
    yield made
    manager.servable.go_on.set()
    made.close()
    await until_unused(manager)


async def until_unused(manager: FakeManager) -> None:
    async with asyncio.timeout(10):
        while manager.num_users:
            await asyncio.sleep(0.001)


def call(predictor: Predictor, **kwargs: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(predictor.predict(SPEC, lambda *_: {}, **kwargs))


async def test_the_answer_names_version_and_signature(predictor, manager):
    manager.servable.go_on.set()
    spec, outputs = await call(predictor)

    assert (spec.version.value, spec.signature_name, list(outputs)) == (7, "serving_default", ["y"])
    await until_unused(manager)


async def test_a_run_that_takes_too_long_is_answered_in_time_and_keeps_its_version(predictor, manager):
    running = call(predictor, deadline=time.monotonic() + 0.05)

    with pytest.raises(ServingError) as caught:
        await running
    assert caught.value.code.name == "DEADLINE_EXCEEDED"
    assert (manager.num_users, manager.servable.num_runs) == (1, 1)


async def test_work_whose_deadline_passed_while_it_waited_is_not_run(predictor, manager):
    first = call(predictor)
    await asyncio.to_thread(manager.servable.begun.acquire)
    late = call(predictor, deadline=time.monotonic() + 0.01)
    with pytest.raises(ServingError):
        await late
    manager.servable.go_on.set()
    await first

    await until_unused(manager)
    assert manager.servable.num_runs == 1


async def test_the_work_of_a_caller_who_left_is_not_begun(predictor, manager):
    first, second = call(predictor), call(predictor)
    await asyncio.to_thread(manager.servable.begun.acquire)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    manager.servable.go_on.set()
    await first

    await until_unused(manager)
    assert manager.servable.num_runs == 1


async def test_more_than_the_bound_is_refused_at_once(predictor, manager, monkeypatch):
    monkeypatch.setattr(predict, "MAX_WAITING", 1)
    first = call(predictor)
    await asyncio.to_thread(manager.servable.begun.acquire)

    with pytest.raises(ServingError) as caught:
        await call(predictor)
    assert caught.value.code.name == "UNAVAILABLE"
    assert manager.num_users == 1
    manager.servable.go_on.set()
    await first


async def test_what_is_quick_runs_where_it_is_asked_for(predictor, manager):
    manager.servable.quick = True
    manager.servable.go_on.set()

    await call(predictor)
    assert (manager.num_users, manager.servable.threads) == (0, [threading.current_thread()])


async def test_what_is_quick_but_too_late_is_not_run(predictor, manager):
    manager.servable.quick = True
    manager.servable.go_on.set()

    with pytest.raises(ServingError, match="the deadline passed"):
        await call(predictor, deadline=time.monotonic())
    await until_unused(manager)
    assert manager.servable.num_runs == 0


async def test_a_version_is_in_use_until_its_batch_has_run_although_the_caller_left(manager):
    batcher = Batcher(Parameters())
    predictor = Predictor(manager, threads=1, batcher=batcher)
    running = asyncio.create_task(predictor.predict(SPEC, lambda *_: {"x": np.zeros(1, np.float32)}))
    waiting = asyncio.create_task(predictor.predict(SPEC, lambda *_: {"x": np.zeros(1, np.float32)}))
    await asyncio.to_thread(manager.servable.begun.acquire)
    running.cancel()
    waiting.cancel()
    await asyncio.wait({running, waiting})
    assert manager.num_users == 2
    manager.servable.go_on.set()
    await until_unused(manager)
    batcher.close()
    predictor.close()

    assert manager.servable.num_runs == 1


async def test_a_batch_that_takes_too_long_is_answered_in_time(manager):
    batcher = Batcher(Parameters())
    predictor = Predictor(manager, threads=1, batcher=batcher)
    with pytest.raises(ServingError) as caught:
        await predictor.predict(SPEC, lambda *_: {"x": np.zeros(1, np.float32)}, deadline=time.monotonic() + 0.02)
    manager.servable.go_on.set()
    await until_unused(manager)
    batcher.close()
    predictor.close()

    assert caught.value.code.name == "DEADLINE_EXCEEDED"


async def test_what_the_batcher_refuses_gives_its_version_back(manager):
    batcher = Batcher(Parameters())
    predictor = Predictor(manager, threads=1, batcher=batcher)
    with pytest.raises(ServingError, match="must not be empty"):
        await predictor.predict(SPEC, lambda *_: {})
    batcher.close()
    predictor.close()

    assert manager.num_users == 0


def test_a_long_list_of_names_makes_no_long_message():
    given = {f"input {number}": tensor_pb2.Tensor() for number in range(10_000)}

    with pytest.raises(ServingError) as caught:
        decode_request(FakeServable().signatures, "serving_default", given)
    assert caught.value.message.startswith("input size does not match signature: 10000!=1")
    assert len(caught.value.message) < 1_100
