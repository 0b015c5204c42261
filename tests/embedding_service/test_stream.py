import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from clients import (
    AsyncEmbeddingClient,
    AsyncEmbeddingStream,
    Cancelled,
    Deadline,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    Unavailable,
    View,
)
from embedding_service.backend import Batch
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.service import running
from embedding_service.settings import Settings
from tests.embedding_service.conftest import Start


@asynccontextmanager
async def streaming(address: str, **options: object) -> AsyncIterator[AsyncEmbeddingStream]:
    async with AsyncEmbeddingClient(address) as client:
        stream = client.stream(**options)  # type: ignore[arg-type]
        try:
            yield stream
        finally:
            await stream.close()


def soon(seconds: float = 10.0) -> Deadline:
    return Deadline.after(seconds)


async def test_a_list_that_is_more_than_may_wait_is_answered_by_and_by(start: Start, tokenizer_json: bytes) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend, max_queued_tokens=40, max_batch_tokens=8, cache_bytes=0)
    pairs = [(first, second) for first in range(1, 26) for second in range(26, 50)]
    async with streaming(addresses.grpc) as stream:
        large = asyncio.create_task(stream.embed([f"w{first} w{second}" for first, second in pairs], soon(30)))
        while not backend.batches:
            await asyncio.sleep(0.001)
        found = await large
        assert 0 == stream.num_open

    for (first, second), (vector,) in zip(pairs, found, strict=True):
        np.testing.assert_array_equal(checksum_vector((2, first + 4, second + 4, 3)), vector)
    assert len(pairs) == sum(len(batch.token_ids) for batch in backend.batches)


async def refused(stream: AsyncEmbeddingStream, texts: list[str]) -> Overloaded:
    """The refusal of *texts*, once they are."""
    while True:
        try:
            await stream.embed(texts, soon(0.05))
        except DeadlineExceeded:
            continue
        except Overloaded as error:
            return error


async def test_a_list_of_which_nothing_is_let_in_is_refused(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate(7)
    limits = {"max_queued_tokens": 4, "max_batch_tokens": 4, "max_batch_requests": 1}
    addresses = await start(FakeBackend(tokenizer_json, fault=gate), **limits)
    async with streaming(addresses.grpc) as stream, streaming(addresses.grpc) as other:
        running = asyncio.create_task(other.embed(["w3"], soon()))
        await asyncio.to_thread(gate.is_reached.wait, 10)
        waiting = asyncio.create_task(other.embed(["w4"], soon()))
        async with asyncio.timeout(10):
            assert (await refused(stream, ["w5", "w6"])).retry_after
        assert 0 == stream.num_open
        gate.open()
        await asyncio.gather(running, waiting)


async def test_messages_carry_no_more_than_the_service_takes_whoever_asked(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json), max_request_inputs=4)
    async with streaming(addresses.grpc, max_request_inputs=4) as stream:
        found = await asyncio.gather(*(stream.embed([f"w{number}", "w1"][: 1 + number % 2], soon()) for number in range(1, 21)))

    for number, vectors in enumerate(found, 1):
        np.testing.assert_array_equal(checksum_vector((2, number + 4, 3)), vectors[0][0])


class Gate:
    """Holds the passes that contain token *held* until it is opened."""

    def __init__(self, held: int) -> None:
        self._held = held
        self._event = threading.Event()
        self.is_reached = threading.Event()

    def __call__(self, batch: Batch) -> None:
        if any(self._held in ids for ids in batch.token_ids):
            self.is_reached.set()
            assert self._event.wait(10)

    def open(self) -> None:
        self._event.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_every_caller_gets_its_own_rows_in_its_own_order(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json, concurrency=2))
    calls = [[(2, number, 3), (2, *[number] * (number % 7), 9, 3)] for number in range(10, 210)]
    async with streaming(addresses.grpc) as stream:
        answers = await asyncio.gather(*(stream.embed(call, soon()) for call in calls))

    for call, answer in zip(calls, answers, strict=True):
        for ids, (vector,) in zip(call, answer, strict=True):
            np.testing.assert_array_equal(checksum_vector(ids), vector)


async def test_a_slow_input_does_not_hold_up_the_others(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate(held=77)
    addresses = await start(FakeBackend(tokenizer_json, concurrency=2, fault=gate))
    async with streaming(addresses.grpc) as stream:
        slow = asyncio.create_task(stream.embed([(2, 77, 3)], soon()))
        await until(gate.is_reached.is_set)
        await asyncio.gather(*(stream.embed([(2, 5, 3)], soon()) for _ in range(5)))
        was_waiting = not slow.done()
        gate.open()
        await slow

    assert was_waiting


async def test_texts_and_several_views_are_answered_too(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with streaming(addresses.grpc, views=[View(), View(pooling="tokens")]) as stream:
        answer = await stream.embed(["w1 w2", "w3"], soon())

    assert [(8,), (8,)] == [pooled.shape for pooled, _ in answer]
    assert [(4, 8), (3, 8)] == [tokens.shape for _, tokens in answer]


async def test_an_input_that_cannot_be_served_fails_its_own_call_only(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with streaming(addresses.grpc) as stream:
        good, bad, empty = await asyncio.gather(
            stream.embed([(2, 5, 3)], soon()),
            stream.embed([(2, 99_999, 3)], soon()),
            stream.embed(["   "], soon()),
            return_exceptions=True,
        )

    assert not isinstance(good, BaseException)
    assert isinstance(bad, InvalidRequest)
    assert isinstance(empty, InvalidRequest)


async def test_another_trunk_than_the_one_named_is_refused(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with streaming(addresses.grpc, trunk_fingerprint="sha256:other") as stream:
        with pytest.raises(FailedPrecondition):
            await stream.embed([(2, 5, 3)], soon())


async def test_a_full_queue_refuses_what_does_not_fit_and_says_when_to_come_back(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate(held=77)
    addresses = await start(FakeBackend(tokenizer_json, fault=gate), max_batch_tokens=8, max_queued_tokens=8)
    async with streaming(addresses.grpc) as stream:
        first = asyncio.create_task(stream.embed([(2, 77, 3)], soon()))
        await until(gate.is_reached.is_set)
        calls = [asyncio.create_task(stream.embed([(2, number, 3)], soon())) for number in range(5, 9)]
        await until(lambda: sum(call.done() for call in calls) == 2)
        gate.open()
        results = await asyncio.gather(first, *calls, return_exceptions=True)

    refused = [result for result in results if isinstance(result, BaseException)]
    assert 2 == len(refused)
    assert all(isinstance(error, Overloaded) and error.retry_after is not None for error in refused)


async def test_more_than_max_open_inputs_are_refused_here(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate(held=77)
    addresses = await start(FakeBackend(tokenizer_json, fault=gate))
    async with streaming(addresses.grpc, max_open=2) as stream:
        first = asyncio.create_task(stream.embed([(2, 77, 3)], soon()))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await stream.embed([(2, 5, 3)] * 2, soon())
        gate.open()
        await first


async def test_a_caller_that_leaves_is_not_executed(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate(held=77)
    backend = FakeBackend(tokenizer_json, fault=gate)
    addresses = await start(backend)
    async with streaming(addresses.grpc) as stream:
        first = asyncio.create_task(stream.embed([(2, 77, 3)], soon()))
        await until(gate.is_reached.is_set)
        leaver = asyncio.create_task(stream.embed([(2, 5, 3)], soon()))
        stayer = asyncio.create_task(stream.embed([(2, 6, 3)], soon()))
        await asyncio.sleep(0.05)
        leaver.cancel()
        await asyncio.sleep(0.05)
        gate.open()
        await asyncio.gather(first, stayer)

    assert leaver.cancelled()
    assert {(2, 77, 3), (2, 6, 3)} == {ids for batch in backend.batches for ids in batch.token_ids}


async def test_a_deadline_is_kept_while_the_backend_hangs(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate(held=77)
    addresses = await start(FakeBackend(tokenizer_json, fault=gate))
    async with streaming(addresses.grpc) as stream:
        with pytest.raises(DeadlineExceeded):
            await stream.embed([(2, 77, 3)], soon(0.05))
        gate.open()
        await stream.embed([(2, 5, 3)], soon())


async def test_a_deadline_that_had_passed_on_arrival_is_told_and_leaves_nothing(start: Start, tokenizer_json: bytes) -> None:
    backend = FakeBackend(tokenizer_json)
    addresses = await start(backend)
    async with streaming(addresses.grpc) as stream:
        await stream.embed([(2, 9, 3)], soon())
        with pytest.raises(DeadlineExceeded):
            await stream.embed([(2, 8, 3)], soon(0.0))
        assert 0 == stream.num_open
        await stream.embed([(2, 7, 3)], soon())

    assert (2, 8, 3) not in [ids for batch in backend.batches for ids in batch.token_ids]


async def test_a_deadline_error_is_freed_with_who_was_told_it_and_needs_no_collector(start: Start, tokenizer_json: bytes) -> None:
    backend, gate = FakeBackend(tokenizer_json), Gate(9)
    backend.fault = gate
    addresses = await start(backend)
    async with streaming(addresses.grpc) as stream:
        gc.collect()
        gc.disable()
        try:
            try:
                await stream.embed([(2, 9, 3)], soon(0.05))
            except DeadlineExceeded as error:
                seen = weakref.ref(error)
            await until(lambda: seen() is None)
        finally:
            gate.open()
            gc.enable()


async def test_a_service_that_stops_answers_what_it_took_and_a_new_one_is_found(tokenizer_json: bytes) -> None:
    gate = Gate(held=77)
    first = running([FakeBackend(tokenizer_json, fault=gate)], Settings(grpc_port=0, http_port=0, drain_seconds=5.0))
    addresses = await first.__aenter__()
    async with streaming(addresses.grpc) as stream:
        taken = asyncio.create_task(stream.embed([(2, 77, 3)], soon()))
        await until(gate.is_reached.is_set)
        stopping = asyncio.create_task(first.__aexit__(None, None, None))
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            await stream.embed([(2, 5, 3)], soon())
        gate.open()
        np.testing.assert_array_equal(checksum_vector((2, 77, 3)), (await taken)[0][0])
        await stopping
        with pytest.raises(Unavailable):
            await stream.embed([(2, 5, 3)], soon())
        port = int(addresses.grpc.rpartition(":")[2])
        async with running([FakeBackend(tokenizer_json)], Settings(grpc_port=port, http_port=0)):
            async with asyncio.timeout(10):
                while True:
                    try:
                        await stream.embed([(2, 5, 3)], soon())
                        break
                    except Unavailable:
                        await asyncio.sleep(0.05)


async def test_closing_the_stream_ends_the_calls_under_way(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate(held=77)
    addresses = await start(FakeBackend(tokenizer_json, fault=gate))
    async with streaming(addresses.grpc) as stream:
        call = asyncio.create_task(stream.embed([(2, 77, 3)], soon()))
        await until(gate.is_reached.is_set)
        await stream.close()
        with pytest.raises(Cancelled):
            await call
        with pytest.raises(Cancelled):
            await stream.embed([(2, 5, 3)], soon())
        gate.open()


async def test_no_inputs_need_no_call() -> None:
    async with streaming("127.0.0.1:1") as stream:
        assert [] == await stream.embed([], soon())


async def test_a_service_that_is_not_there_is_unavailable() -> None:
    async with streaming("127.0.0.1:1") as stream:
        with pytest.raises(Unavailable):
            await stream.embed([(2, 5, 3)], soon())


async def test_a_stream_that_is_finished_answers_what_it_has_and_takes_no_more(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate(held=77)
    addresses = await start(FakeBackend(tokenizer_json, fault=gate))
    async with streaming(addresses.grpc) as stream:
        under_way = asyncio.create_task(stream.embed([(2, 77, 3)], soon()))
        await until(gate.is_reached.is_set)
        finishing = asyncio.create_task(stream.finish(soon()))
        await asyncio.sleep(0)
        with pytest.raises(Cancelled):
            await stream.embed([(2, 5, 3)], soon())
        gate.open()
        await finishing
        [(vector,)] = await under_way

    np.testing.assert_array_equal(checksum_vector((2, 77, 3)), vector)


async def test_a_stream_whose_service_does_not_answer_is_finished_at_the_deadline(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate(held=77)
    addresses = await start(FakeBackend(tokenizer_json, fault=gate))
    async with streaming(addresses.grpc) as stream:
        under_way = asyncio.create_task(stream.embed([(2, 77, 3)], soon()))
        await until(gate.is_reached.is_set)
        await stream.finish(soon(0.01))
        with pytest.raises(Cancelled):
            await under_way
        gate.open()


async def test_a_stream_that_was_never_used_is_finished_at_once(start: Start, tokenizer_json: bytes) -> None:
    addresses = await start(FakeBackend(tokenizer_json))
    async with streaming(addresses.grpc) as stream:
        await stream.finish(soon())
