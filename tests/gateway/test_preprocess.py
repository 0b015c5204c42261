import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from clients import Deadline, DeadlineExceeded, InvalidRequest, ServerFault
from clients.wire.chain import Chain
from clients.wire.text import Encoded, TextEncoder
from gateway import preprocess
from gateway.preprocess import INLINE_CHARACTERS, PLAIN, Prepared, Reading, prepare
from tests.tiny_trunk import make_tiny_trunk

LOWER = Reading(("lower/1",))
STRIP = Reading(("html-strip/1",))
WINDOWS = Reading(windows=True)


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One token a letter."""
    return (make_tiny_trunk(tmp_path_factory.mktemp("trunk") / "tiny") / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def encoder(tokenizer_json: bytes) -> TextEncoder:
    return TextEncoder(tokenizer_json, max_tokens=10)


def inputs_of(prepared: Prepared, reading: Reading, text: int = 0) -> list[Encoded]:
    return [prepared.inputs[place] for place in prepared.places[reading][text]]


async def test_every_reading_has_its_own_steps_and_equal_inputs_are_one(encoder: TextEncoder) -> None:
    prepared = await prepare(encoder, ["<b>a", "a"], [PLAIN, LOWER, STRIP])

    assert encoder.encode(["<b>a", "a"]) == prepared.inputs
    assert {PLAIN: [(0,), (1,)], LOWER: [(0,), (1,)], STRIP: [(1,), (1,)]} == prepared.places
    assert [6, 3] == [fact.num_tokens for fact in prepared.texts]


async def test_a_long_text_is_cut_for_one_head_and_read_whole_for_another(encoder: TextEncoder) -> None:
    text = "a b c d e f g h i j k l"
    prepared = await prepare(encoder, [text], [PLAIN, WINDOWS])

    assert encoder.encode([text]) == inputs_of(prepared, PLAIN)
    assert encoder.encode_windows(text) == inputs_of(prepared, WINDOWS)
    assert 2 == len(inputs_of(prepared, WINDOWS))
    [fact] = prepared.texts
    assert fact.truncated
    assert sum(len(one.ids) for one in inputs_of(prepared, WINDOWS)) == fact.num_tokens


async def test_a_request_for_windows_overrides_heads_that_cut(encoder: TextEncoder) -> None:
    prepared = await prepare(encoder, ["a b c d e f g h i j k l"], [PLAIN, WINDOWS], "window")

    assert inputs_of(prepared, WINDOWS) == inputs_of(prepared, PLAIN)
    assert not prepared.texts[0].truncated


async def test_a_text_may_be_too_long_only_for_heads_that_cut(encoder: TextEncoder) -> None:
    text = "a b c d e f g h i j k l"
    with pytest.raises(InvalidRequest, match="longer than the 10 tokens"):
        await prepare(encoder, [text], [PLAIN, WINDOWS], "error")
    assert 2 == len((await prepare(encoder, [text], [WINDOWS], "error")).inputs)


async def test_what_steps_leave_nothing_of_is_an_error_of_those_heads_alone(encoder: TextEncoder) -> None:
    prepared = await prepare(encoder, ["a", "<br>"], [PLAIN, STRIP])

    assert [PLAIN] == list(prepared.places)
    assert isinstance(prepared.failed[STRIP], InvalidRequest)
    assert "text 1 has nothing in it" in str(prepared.failed[STRIP])


@pytest.mark.parametrize("readings", [(), (PLAIN,), (STRIP,), (WINDOWS,)])
async def test_an_empty_text_is_a_mistake_whoever_is_asked(encoder: TextEncoder, readings: tuple[Reading, ...]) -> None:
    with pytest.raises(InvalidRequest, match="text 1 is empty"):
        await prepare(encoder, ["<br>" if STRIP in readings else "a", " \x00"], readings)


@pytest.mark.parametrize("readings", [(), (PLAIN,), (STRIP,), (WINDOWS,)])
async def test_an_empty_text_is_a_mistake_where_the_trunk_has_a_prompt(
    tokenizer_json: bytes, readings: tuple[Reading, ...]
) -> None:
    encoder = TextEncoder(tokenizer_json, max_tokens=10, prompt="w1 w2 ")
    with pytest.raises(InvalidRequest, match="text 0 is empty"):
        await prepare(encoder, [" \x00", "w3"], readings)
    assert 1 == len((await prepare(encoder, ["w1 w2"], readings)).texts)


class NotingEncoder(TextEncoder):
    """Remembers what it was asked for."""

    def __init__(self, tokenizer_json: bytes) -> None:
        super().__init__(tokenizer_json, max_tokens=10)
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str], **options: Any) -> list[Encoded]:
        self.asked += texts
        return super().encode(texts, **options)


async def test_long_texts_are_not_waited_for_beyond_the_deadline_nor_begun_after_it(tokenizer_json: bytes) -> None:
    encoder, loop, go = NotingEncoder(tokenizer_json), asyncio.get_running_loop(), threading.Event()
    long = "a " * (INLINE_CHARACTERS // 2 + 1)
    loop.set_default_executor(ThreadPoolExecutor(1))
    held = loop.run_in_executor(None, go.wait, 30)

    with pytest.raises(DeadlineExceeded):
        await prepare(encoder, [long], [PLAIN], deadline=Deadline.after(0.01))
    go.set()
    await held
    await loop.run_in_executor(None, int)
    assert [] == encoder.asked

    assert 10 == (await prepare(encoder, [long], [PLAIN])).texts[0].num_tokens
    assert [long] == encoder.asked


async def test_with_nobody_to_read_it_a_text_is_looked_at_all_the_same(encoder: TextEncoder) -> None:
    assert [5] == [fact.num_tokens for fact in (await prepare(encoder, ["a b c"], ())).texts]


async def test_a_step_that_fails_is_an_error_of_the_heads_that_have_it(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(text: str) -> str:
        raise ValueError(text)

    broken = Reading(("entrypoint:acme.fails/1",))
    chains = {(): Chain(), broken.steps: Chain(broken.steps, (fail,))}
    monkeypatch.setattr(preprocess, "chain_of", chains.__getitem__)
    prepared = await prepare(encoder, ["a"], [PLAIN, broken])

    assert [PLAIN] == list(prepared.places)
    assert isinstance(prepared.failed[broken], ServerFault)


async def test_a_trunks_own_step_that_fails_is_an_error_of_the_request(tokenizer_json: bytes) -> None:
    def fail(text: str) -> str:
        raise ValueError(text)

    encoder = TextEncoder(tokenizer_json, max_tokens=10, chain=Chain(("entrypoint:acme.fails/1",), (fail,)))
    with pytest.raises(ServerFault, match=r"acme\.fails"):
        await prepare(encoder, ["a"], [PLAIN])


@pytest.mark.parametrize("reading", [PLAIN, Reading(("lower/1",), windows=True)])
async def test_long_texts_are_read_the_same_off_the_loop(encoder: TextEncoder, reading: Reading) -> None:
    text = "A b " * (INLINE_CHARACTERS // 4 + 1)
    prepared = await prepare(encoder, [text, "A b"], [reading])

    whole = encoder.encode_windows(text.lower()) if reading.windows else encoder.encode([text])
    assert whole == inputs_of(prepared, reading)
    assert encoder.encode(["a b"]) == inputs_of(prepared, reading, 1)


async def test_a_text_too_long_to_look_at_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(InvalidRequest, match="text 1 is longer than 1000000 characters"):
        await prepare(encoder, ["a", "b" * 1_000_001], [PLAIN])


@pytest.mark.parametrize("reading", [PLAIN, WINDOWS])
async def test_there_is_a_bound_on_the_windows_of_a_request(encoder: TextEncoder, reading: Reading) -> None:
    texts = ["a " * (8 * preprocess.MAX_WINDOWS), "b"]
    if reading == WINDOWS:
        prepared = await prepare(encoder, texts, [PLAIN, WINDOWS])
        assert isinstance(prepared.failed[WINDOWS], InvalidRequest)
        assert {PLAIN: [(0,), (1,)]} == prepared.places
    else:
        with pytest.raises(InvalidRequest, match="windows"):
            await prepare(encoder, texts, [reading], "window")
