import asyncio
import gc
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from clients import (
    AsyncEmbeddingClient,
    Deadline,
    DeadlineExceeded,
    InvalidResponse,
    Trunk,
    Unavailable,
    View,
)
from clients.wire.text import NORMALIZER
from gateway.backends.embedding import ClientTrunks


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
    return ClientTrunks([cast("AsyncEmbeddingClient", service)]), service


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
