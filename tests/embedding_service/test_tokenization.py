import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from clients.wire.text import Encoded, TextEncoder
from embedding_service import tokenization
from embedding_service.backend.fake import FakeBackend
from embedding_service.errors import DeadlineExceeded, Overloaded
from embedding_service.tokenization import INLINE_CHARACTERS, THREADS, InputLimits, InputTokenizer, TokenizedInput

LONG = "w1 " * INLINE_CHARACTERS


class HeldEncoder(TextEncoder):
    """Does not begin to read before it is let go; *asked* are the lists of texts it was given."""

    def __init__(self, tokenizer_json: bytes) -> None:
        super().__init__(tokenizer_json, max_tokens=64)
        self.go = threading.Event()
        self.asked: list[Sequence[str]] = []

    def encode(self, texts: Sequence[str], **options: Any) -> list[Encoded]:
        self.asked.append(texts)
        assert self.go.wait(30)
        return super().encode(texts, **options)


@pytest.fixture
def encoder(tokenizer_json: bytes) -> HeldEncoder:
    return HeldEncoder(tokenizer_json)


@pytest.fixture
def tokenizer(tokenizer_json: bytes, encoder: HeldEncoder) -> InputTokenizer:
    return InputTokenizer(FakeBackend(tokenizer_json).trunk, encoder)


async def read(tokenizer: InputTokenizer, *texts: str, seconds: float = 20.0) -> list[TokenizedInput]:
    return await tokenizer.tokenize(texts, "right", InputLimits(), deadline=time.monotonic() + seconds)


async def all_threads_held(tokenizer: InputTokenizer, encoder: HeldEncoder) -> list[asyncio.Task[list[TokenizedInput]]]:
    holding = [asyncio.create_task(read(tokenizer, LONG)) for _ in range(THREADS)]
    async with asyncio.timeout(20):
        while len(encoder.asked) < THREADS:
            await asyncio.sleep(0.001)
    return holding


async def test_long_texts_are_not_waited_for_beyond_the_deadline_nor_begun_after_it(
    tokenizer: InputTokenizer, encoder: HeldEncoder
) -> None:
    holding = await all_threads_held(tokenizer, encoder)

    with pytest.raises(DeadlineExceeded):
        await read(tokenizer, LONG, seconds=0.01)
    encoder.go.set()
    await asyncio.gather(*holding)
    [found] = await read(tokenizer, LONG)

    assert THREADS + 1 == len(encoder.asked)
    assert (64, True) == (found.num_tokens, found.truncated)


async def test_who_would_wait_behind_too_much_is_refused_and_there_is_room_again_afterwards(
    tokenizer: InputTokenizer, encoder: HeldEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "MAX_WAITING_CHARACTERS", THREADS * len(LONG))
    holding = await all_threads_held(tokenizer, encoder)

    with pytest.raises(Overloaded) as caught:
        await read(tokenizer, LONG)
    encoder.go.set()
    await asyncio.gather(*holding)

    assert caught.value.retry_after
    # What is more than that by itself is read all the same, or it never would be.
    assert 3 == len(await read(tokenizer, LONG, LONG, LONG))


async def test_long_texts_are_read_one_by_one_and_short_ones_together(tokenizer: InputTokenizer, encoder: HeldEncoder) -> None:
    encoder.go.set()
    together = await read(tokenizer, "w1", "w2")
    one_by_one = await read(tokenizer, "w1", LONG, "w2")

    assert [["w1", "w2"], ["w1"], [LONG], ["w2"]] == encoder.asked
    assert together == [one_by_one[0], one_by_one[2]]
