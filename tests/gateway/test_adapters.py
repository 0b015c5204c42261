import asyncio
import gc
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from clients import (
    AsyncEmbeddingClient,
    AsyncHeadClient,
    Deadline,
    DeadlineExceeded,
    InvalidResponse,
    Prediction,
    Trunk,
    Unavailable,
    View,
)
from clients.wire import catalogue
from clients.wire.catalogue import Manifest, TrunkRef
from clients.wire.text import NORMALIZER
from gateway import adapters
from gateway.adapters import ClientPredictor, ClientTrunks, groups_by_length, padded
from gateway.coalesce import CallLimits
from gateway.ports import FloatArray


def tokenizer_json() -> bytes:
    tokenizer = Tokenizer(WordLevel({"[CLS]": 0, "[SEP]": 1, "a": 2}, unk_token="a"))
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    return tokenizer.to_str().encode()


GOOD = Trunk(
    name="fake",
    fingerprint="sha256:" + "0" * 64,
    width=8,
    num_layers=2,
    vocab_size=3,
    max_tokens=16,
    default_view=View(),
    layers=(-1,),
    normalizer=NORMALIZER,
    prompt="",
    engine="fake",
    agreement=1.0,
    max_request_inputs=4,
    tokenizer_json=tokenizer_json(),
)


@dataclass
class Service:
    """Answers `trunk` with *answers*, one a call; waits for *gate* first."""

    answers: list[Any]
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0

    async def trunk(self, **_: Any) -> Trunk:
        self.calls += 1
        await self.gate.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast("Trunk", answer)


def trunks_of(*answers: Any, is_open: bool = True) -> tuple[ClientTrunks, Service]:
    service = Service(list(answers))
    if is_open:
        service.gate.set()
    return ClientTrunks(cast("AsyncEmbeddingClient", service)), service


async def test_all_who_ask_at_once_share_one_question() -> None:
    trunks, service = trunks_of(GOOD)
    found = await asyncio.gather(*(trunks.trunk(Deadline.after(5)) for _ in range(5)))

    assert 1 == service.calls
    assert {GOOD.fingerprint} == {trunk.fingerprint for trunk in found}
    assert found[0].encoder.encode(["a"])[0].ids == [0, 2, 1]


async def test_a_failure_is_told_and_the_next_question_may_succeed() -> None:
    trunks, _ = trunks_of(Unavailable("down"), GOOD)
    with pytest.raises(Unavailable):
        await trunks.trunk(Deadline.after(5))

    assert GOOD.name == (await trunks.trunk(Deadline.after(5))).name


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(replace(GOOD, normalizer="other/9"), id="another normaliser"),
        pytest.param(replace(GOOD, tokenizer_json=b"{}"), id="no tokenizer"),
        pytest.param(replace(GOOD, tokenizer_json=b"\xff"), id="no text"),
    ],
)
async def test_a_trunk_this_gateway_cannot_speak_to_is_refused(bad: Trunk) -> None:
    trunks, _ = trunks_of(bad)
    with pytest.raises(InvalidResponse):
        await trunks.trunk(Deadline.after(5))
    assert trunks.known is None


async def test_one_who_gives_up_does_not_end_the_question_of_the_others() -> None:
    trunks, service = trunks_of(GOOD, is_open=False)
    patient = asyncio.create_task(trunks.trunk(Deadline.after(5)))
    with pytest.raises(DeadlineExceeded):
        await trunks.trunk(Deadline.after(0.02))
    service.gate.set()

    assert GOOD.name == (await patient).name
    assert 1 == service.calls


async def test_a_failure_nobody_waited_for_is_no_noise() -> None:
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    trunks, service = trunks_of(Unavailable("down"), is_open=False)
    with pytest.raises(DeadlineExceeded):
        await trunks.trunk(Deadline.after(0.02))
    service.gate.set()
    await asyncio.sleep(0.01)
    del trunks
    gc.collect()

    assert [] == noise


async def test_a_forgotten_trunk_is_asked_for_again() -> None:
    trunks, service = trunks_of(GOOD, GOOD)
    await trunks.trunk(Deadline.after(5))
    trunks.forget()
    await trunks.trunk(Deadline.after(5))

    assert 2 == service.calls


async def test_layers_are_known_by_both_their_names() -> None:
    trunks, _ = trunks_of(replace(GOOD, num_layers=6, layers=(-1, -3)))

    assert {-1, 6, -3, 4} == (await trunks.trunk(Deadline.after(5))).layers


TOKENS = Manifest(
    name="tone",
    version=3,
    labels=("low", "high"),
    width=2,
    trunk=TrunkRef("fake", GOOD.fingerprint),
    view=catalogue.View("tokens", normalize=False),
    input="tokens",
    mask_input="mask",
)


@dataclass
class HeadServer:
    """Scores are the sum and the number of a text's tokens; *asked* holds what came."""

    asked: list[dict[str, FloatArray]] = field(default_factory=list)
    forgets_rows: bool = False

    async def predict(self, head: str, inputs: dict[str, FloatArray], **_: Any) -> Prediction:
        self.asked.append(inputs)
        if "mask" in inputs:
            scores = np.stack([inputs["tokens"].sum(axis=(1, 2)), inputs["mask"].sum(axis=1)], axis=1)
        else:
            scores = inputs["embedding"]
        return Prediction({"scores": scores[1:] if self.forgets_rows else scores}, 3)


def tokens_of(*lengths: int) -> list[FloatArray]:
    return [np.full((length, 2), length, np.float32) for length in lengths]


async def predicted(server: HeadServer, manifest: Manifest, rows: list[FloatArray]) -> FloatArray:
    predictor = ClientPredictor(cast("AsyncHeadClient", server), CallLimits())
    try:
        return await predictor.predict(manifest, rows, Deadline.after(5))
    finally:
        await predictor.close()


async def test_texts_of_many_lengths_go_padded_with_a_mask_and_are_answered_in_their_order() -> None:
    server = HeadServer()

    scores = await predicted(server, TOKENS, tokens_of(3, 1, 2))

    assert [[18, 3], [2, 1], [8, 2]] == scores.tolist()
    assert [(3, 3, 2)] == [inputs["tokens"].shape for inputs in server.asked]
    assert [(3, 3)] == [inputs["mask"].shape for inputs in server.asked]
    assert {np.dtype(np.float32)} == {array.dtype for inputs in server.asked for array in inputs.values()}


async def test_what_is_too_much_for_a_message_goes_in_several_shortest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MAX_CALL_BYTES", 4 * 2 * 4)
    server = HeadServer()

    scores = await predicted(server, TOKENS, tokens_of(9, 1, 3, 2, 1))

    assert [162, 2, 18, 8, 2] == scores[:, 0].tolist()
    assert [(2, 1, 2), (1, 2, 2), (1, 3, 2), (1, 9, 2)] == [inputs["tokens"].shape for inputs in server.asked]


async def test_vectors_of_texts_go_as_one_array() -> None:
    server = HeadServer()
    manifest = Manifest(name="plain", version=3, labels=("a", "b"), width=2, trunk=TOKENS.trunk)
    rows = [np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32)]

    assert [[1, 2], [3, 4]] == (await predicted(server, manifest, rows)).tolist()
    assert ["embedding"] == [name for inputs in server.asked for name in inputs]


async def test_an_answer_with_too_few_rows_is_not_taken_for_another_texts() -> None:
    with pytest.raises(InvalidResponse):
        await predicted(HeadServer(forgets_rows=True), TOKENS, tokens_of(3, 1, 2))


@given(st.lists(st.integers(1, 600), min_size=1, max_size=60))
def test_every_text_is_in_one_group_and_no_group_is_too_large(lengths: list[int]) -> None:
    groups = groups_by_length(lengths, 4_096)

    assert list(range(len(lengths))) == sorted(place for group in groups for place in group)
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[place] for place in group) * 4_096 * 4 <= adapters.MAX_CALL_BYTES


def test_padding_is_zeros_behind_a_mask_of_zeros() -> None:
    vectors, mask = padded(tokens_of(1, 3))

    assert [[1, 0, 0], [1, 1, 1]] == mask.tolist()
    assert not vectors[mask == 0].any()
