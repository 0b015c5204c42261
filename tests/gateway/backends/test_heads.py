from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import AsyncHeadClient, Deadline, InvalidResponse, Prediction
from clients.wire import catalogue
from clients.wire.catalogue import Manifest, TrunkRef
from gateway.backends import heads
from gateway.backends.heads import ClientPredictor, groups_by_length, padded
from gateway.coalesce import CallLimits
from gateway.ports import FloatArray

TOKENS = Manifest(
    name="tone",
    version=3,
    labels=("low", "high"),
    width=2,
    trunk=TrunkRef("fake", "sha256:" + "0" * 64),
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
    predictor = ClientPredictor([cast("AsyncHeadClient", server)], CallLimits())
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
    monkeypatch.setattr(heads, "MAX_CALL_BYTES", 4 * 2 * 4)
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
        assert len(group) == 1 or len(group) * max(lengths[place] for place in group) * 4_096 * 4 <= heads.MAX_CALL_BYTES


def test_padding_is_zeros_behind_a_mask_of_zeros() -> None:
    vectors, mask = padded(tokens_of(1, 3))

    assert [[1, 0, 0], [1, 1, 1]] == mask.tolist()
    assert not vectors[mask == 0].any()
