import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from clients.wire.tfs import server_pb2
from head_service.serving.batching import Batcher, Parameters, merged, parameters_of, rounded_up
from head_service.serving.errors import ServingError, invalid
from head_service.serving.flags import FlagError

Outputs = dict[str, NDArray[Any]]


class Doubling:
    """Gives each row doubled; refuses a row of -1; waits for `go` when held."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        if not held:
            self.go.set()

    def run(self, signature_name: str, inputs: Mapping[str, NDArray[Any]], output_filter: tuple[str, ...]) -> Outputs:
        self.go.wait(10)
        self.batches.append(len(inputs["x"]))
        if (inputs["x"] == -1).any():
            raise invalid("a row of -1")
        return {"y": inputs["x"] * 2}


def rows(*values: float, width: int = 1) -> Outputs:
    return {"x": np.array([[value] * width for value in values], np.float32)}


async def test_what_waits_runs_together_and_everybody_gets_their_own_rows() -> None:
    servable = Doubling(held=True)
    batcher = Batcher(Parameters(max_batch_size=4, max_execution_batch_size=4))
    answers = [batcher.submit(servable, "s", rows(value), ()) for value in range(6)]
    servable.go.set()
    outputs = await asyncio.gather(*answers)
    batcher.close()

    assert [output["y"].tolist() for output in outputs] == [[[value * 2]] for value in range(6)]
    assert servable.batches == [1, 4, 1]


async def test_a_batch_waits_for_its_timeout_unless_it_is_full() -> None:
    servable = Doubling()
    batcher = Batcher(Parameters(max_batch_size=2, max_execution_batch_size=2, batch_timeout_seconds=0.05))
    first, second, third = (batcher.submit(servable, "s", rows(value), ()) for value in range(3))
    await asyncio.gather(first, second)
    assert not third.done()
    await third
    batcher.close()
    assert servable.batches == [2, 1]


async def test_a_full_queue_is_unavailable_and_too_many_rows_are_invalid() -> None:
    servable = Doubling(held=True)
    batcher = Batcher(Parameters(max_batch_size=2, max_execution_batch_size=2, max_enqueued_batches=1))
    running, waiting = batcher.submit(servable, "s", rows(1, 2), ()), batcher.submit(servable, "s", rows(3, 4), ())
    with pytest.raises(ServingError, match="queue to which this task was submitted is full; currently 1 batches") as full:
        batcher.submit(servable, "s", rows(5), ())
    with pytest.raises(ServingError, match="Task size 3 is larger than maximum input batch size 2") as large:
        batcher.submit(servable, "s", rows(1, 2, 3), ())
    assert (full.value.code, large.value.code) == (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT)
    servable.go.set()
    await asyncio.gather(running, waiting)
    batcher.close()


async def test_a_large_input_is_split_and_joined_again() -> None:
    servable = Doubling()
    batcher = Batcher(Parameters(max_batch_size=100, max_execution_batch_size=4, splits_large=True, num_batch_threads=2))
    outputs = await batcher.submit(servable, "s", rows(*range(10)), ())
    batcher.close()

    assert outputs["y"].ravel().tolist() == [value * 2 for value in range(10)]
    assert sorted(servable.batches) == [2, 4, 4]


async def test_a_batch_is_brought_to_an_allowed_size() -> None:
    servable = Doubling()
    batcher = Batcher(Parameters(max_batch_size=8, max_execution_batch_size=8, allowed_batch_sizes=(2, 8)))
    outputs = await batcher.submit(servable, "s", rows(1, 2, 3), ())
    batcher.close()

    assert outputs["y"].ravel().tolist() == [2, 4, 6]
    assert servable.batches == [8]


async def test_one_callers_values_and_shape_fail_no_other_call() -> None:
    servable = Doubling(held=True)
    batcher = Batcher(Parameters())
    busy = batcher.submit(servable, "s", rows(0), ())
    good, bad, wide = (batcher.submit(servable, "s", inputs, ()) for inputs in (rows(1), rows(-1), rows(3, width=2)))
    servable.go.set()
    ended = await asyncio.gather(busy, good, bad, wide, return_exceptions=True)
    batcher.close()

    assert isinstance(ended[1], dict)
    assert ended[1]["y"].tolist() == [[2]]
    assert isinstance(ended[2], ServingError)
    assert isinstance(ended[3], dict)
    assert ended[3]["y"].tolist() == [[6, 6]]


async def test_variable_lengths_are_padded_when_that_is_asked_for() -> None:
    servable = Doubling(held=True)
    batcher = Batcher(Parameters(pads_variable_lengths=True))
    busy = batcher.submit(servable, "s", rows(0), ())
    short, long = batcher.submit(servable, "s", rows(1), ()), batcher.submit(servable, "s", rows(2, width=3), ())
    servable.go.set()
    _, first, second = await asyncio.gather(busy, short, long)
    batcher.close()

    assert first["y"].tolist() == [[2, 0, 0]]
    assert second["y"].tolist() == [[4, 4, 4]]
    assert servable.batches == [1, 2]


async def test_what_is_late_or_left_is_not_run() -> None:
    servable = Doubling(held=True)
    batcher = Batcher(Parameters())
    busy = batcher.submit(servable, "s", rows(0), ())
    late = batcher.submit(servable, "s", rows(1), (), deadline=time.monotonic())
    left = batcher.submit(servable, "s", rows(2), ())
    kept = batcher.submit(servable, "s", rows(3), ())
    left.cancel()
    servable.go.set()
    with pytest.raises(ServingError) as refused:
        await late
    await asyncio.gather(busy, kept)
    batcher.close()

    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert servable.batches == [1, 1]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "must not be empty"),
        ({"x": np.float32(1)}, "at least one dimension"),
        ({"x": np.zeros((1, 1)), "z": np.zeros((2, 1))}, "equal 0th-dimension"),
        ({"x": np.zeros((0, 1))}, "at least one row"),
    ],
)
async def test_inputs_without_rows_are_refused(inputs: Outputs, message: str) -> None:
    batcher = Batcher(Parameters())
    with pytest.raises(ServingError, match=message):
        batcher.submit(Doubling(), "s", inputs, ())
    batcher.close()


def test_the_parameters_have_the_references_defaults() -> None:
    found = parameters_of(server_pb2.BatchingParameters(), "--f")
    assert (found.max_batch_size, found.max_enqueued_batches, found.batch_timeout_seconds) == (1000, 10, 0)
    assert not found.splits_large


@pytest.mark.parametrize(
    "message",
    [
        server_pb2.BatchingParameters(allowed_batch_sizes=[1, 2]),
        server_pb2.BatchingParameters(max_batch_size={"value": 4}, allowed_batch_sizes=[4, 2, 4]),
        server_pb2.BatchingParameters(max_batch_size={"value": 0}),
        server_pb2.BatchingParameters(batch_timeout_micros={"value": -1}),
        server_pb2.BatchingParameters(max_batch_size={"value": 4}, max_execution_batch_size={"value": 8}),
    ],
)
def test_parameters_that_do_not_go_together_are_told(message: server_pb2.BatchingParameters) -> None:
    with pytest.raises(FlagError, match="--f: "):
        parameters_of(message, "--f")


def test_texts_are_padded_with_empty_ones() -> None:
    short, long = np.array([[b"a"]], dtype=object), np.array([[b"b", b"c"]], dtype=object)
    assert merged([short, long], 3).tolist() == [[b"a", b""], [b"b", b"c"], [b"a", b""]]
    assert rounded_up(5, ()) == 5
