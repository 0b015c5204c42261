import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from embedding_service import conversation as conversation_module
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.conversation import Conversation
from embedding_service.infer import EmbedCall, HostedTrunk, Infer
from embedding_service.queue import QueueLimits
from embedding_service.telemetry import PrometheusTelemetry
from embedding_service.tokenization import InputLimits
from tests.embedding_service.test_batching import Gate, until


class Talk:
    """A conversation with a service, and how it has counted what ended."""

    def __init__(self, tokenizer_json: bytes, *, gate: Gate | None = None, max_open: int = 4) -> None:
        self._registry = CollectorRegistry()
        telemetry = PrometheusTelemetry(self._registry)
        trunk = HostedTrunk(FakeBackend(tokenizer_json, fault=gate), QueueLimits(), telemetry.of_trunk("fake"))
        self.batcher = trunk.batcher
        self.conversation = Conversation(Infer([trunk], InputLimits(), telemetry), telemetry, max_open=max_open)

    def start(self, *numbers: int) -> None:
        call = EmbedCall([f"w{number}" for number in numbers], time.monotonic() + 10)
        self.conversation.start(call, numbers, [call.deadline] * len(numbers), 0)

    @property
    def has_room(self) -> bool:
        return self.conversation._room.is_set()

    @property
    def counted(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for metric in self._registry.collect():
            for sample in metric.samples:
                if sample.name == "trunkline_embedding_requests_total" and sample.value:
                    found[sample.labels["outcome"]] += int(sample.value)
        return found

    async def all_settled(self, count: int) -> None:
        await until(lambda: len(self.conversation._ready) == count)


@asynccontextmanager
async def talk(tokenizer_json: bytes, *, gate: Gate | None = None, max_open: int = 4) -> AsyncIterator[Talk]:
    talking = Talk(tokenizer_json, gate=gate, max_open=max_open)
    try:
        yield talking
    finally:
        await talking.batcher.drain(5)


async def test_what_is_settled_and_not_read_takes_room(tokenizer_json: bytes) -> None:
    async with talk(tokenizer_json) as talking:
        talking.start(1, 2, 3, 4)
        await talking.all_settled(4)

        assert not talking.has_room
        [settled] = [await anext(talking.conversation.settled())]
        assert talking.has_room
        assert [[1, 2, 3, 4]] == [sorted(answered.numbers) for answered in settled.answered]


async def test_what_is_abandoned_after_it_settled_is_gone_however_often_that_happens(tokenizer_json: bytes) -> None:
    async with talk(tokenizer_json) as talking:
        for turn in range(5):
            numbers = range(4 * turn + 1, 4 * turn + 5)
            talking.start(*numbers)
            await talking.all_settled(4)
            talking.conversation.abandon(list(numbers))
            assert (0, True) == (len(talking.conversation._ready), talking.has_room)


async def test_each_input_is_counted_once_as_what_it_came_to(tokenizer_json: bytes) -> None:
    gate = Gate()
    async with talk(tokenizer_json, gate=gate) as talking:
        gate.open()
        talking.start(1, 2)
        await talking.all_settled(2)
        talking.conversation.abandon_all()
        assert {"ok": 2} == talking.counted
        gate.close()
        talking.start(3, 4)
        await until(lambda: talking.batcher.queue.num_entries + len(talking.batcher._running) > 0)
        talking.conversation.abandon([3, 4])
        gate.open()
        await until(lambda: not talking.batcher._running)

        assert {"ok": 2, "cancelled": 2} == talking.counted


async def test_a_number_that_is_used_again_takes_the_place_of_the_first(tokenizer_json: bytes) -> None:
    async with talk(tokenizer_json) as talking:
        talking.start(1, 2)
        await talking.all_settled(2)
        talking.start(2, 3)
        await talking.all_settled(3)
        settled = await anext(talking.conversation.settled())

    assert [[1, 2, 3]] == [sorted(answered.numbers) for answered in settled.answered]


async def test_answers_of_more_than_a_message_carries_come_as_several(
    tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation_module, "MAX_ANSWER_BYTES", 3 * 8 * 4)
    async with talk(tokenizer_json, max_open=10) as talking:
        talking.start(*range(1, 8))
        await talking.all_settled(7)
        settled = await anext(talking.conversation.settled())

    assert [3, 3, 1] == [len(answered.numbers) for answered in settled.answered]
    for answered in settled.answered:
        for number, vector in zip(answered.numbers, answered.answer.views[0].array, strict=True):
            np.testing.assert_array_equal(checksum_vector((2, number + 4, 3)), vector)


async def test_an_input_larger_than_a_message_goes_by_itself(tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_module, "MAX_ANSWER_BYTES", 1)
    async with talk(tokenizer_json) as talking:
        talking.start(1, 2)
        await talking.all_settled(2)
        settled = await anext(talking.conversation.settled())

    assert [1, 1] == [len(answered.numbers) for answered in settled.answered]
