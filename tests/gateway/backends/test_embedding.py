import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from clients import (
    AsyncEmbeddingClient,
    Deadline,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidResponse,
    Trunk,
    Unavailable,
    View,
)
from clients.wire import catalogue
from clients.wire.text import NORMALIZER, TextEncoder
from gateway.backends.embedding import ClientEmbedder, ClientTrunks
from gateway.ports import LiveTrunk
from tests.gateway.backends.fakes import FakeReplica, until


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


async def test_a_tokenizer_that_has_no_quick_reader_is_used_all_the_same_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    _, service = trunks_of(GOOD)
    trunks = ClientTrunks([cast("AsyncEmbeddingClient", service)], quick_tokens=True)

    found = await trunks.trunk(Deadline.after(5))

    assert found.encoder.encode(["a"])[0].ids == [0, 2, 1]
    assert ["texts are read by the tokenizers library: nanotoken does not read"] == [
        record.message[:65] for record in caplog.records
    ]


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
    trunks.forget(await trunks.trunk(Deadline.after(5)))
    await trunks.trunk(Deadline.after(5))

    assert 2 == service.calls


async def test_one_who_hears_late_that_a_trunk_is_gone_does_not_end_the_next_one() -> None:
    trunks, service = trunks_of(GOOD, GOOD)
    gone = await trunks.trunk(Deadline.after(5))
    for _ in range(3):
        trunks.forget(gone)
        await trunks.trunk(Deadline.after(5))

    assert 2 == service.calls


async def test_layers_are_known_by_both_their_names() -> None:
    trunks, _ = trunks_of(replace(GOOD, num_layers=6, layers=(-1, -3)))

    assert {-1, 6, -3, 4} == (await trunks.trunk(Deadline.after(5))).layers


OTHER = replace(GOOD, fingerprint="sha256:" + "1" * 64)


class FakeStream:
    """Answers each input with a vector of its length, unless the replica has another trunk or is down."""

    def __init__(self, replica: "EmbeddingReplica", fingerprint: str) -> None:
        self.heard_at = 0.0
        self.num_open = 0
        self.ended = ""
        self._replica = replica
        self._fingerprint = fingerprint

    async def embed(self, inputs: list[list[int]], deadline: Deadline) -> list[tuple[np.ndarray, ...]]:
        self._replica.deadlines.append(deadline)
        await self._replica.gate.wait()
        if self._replica.is_down:
            raise Unavailable("down")
        if self._fingerprint != self._replica.has.fingerprint:
            raise FailedPrecondition("another trunk")
        return [(np.full(2, len(ids), np.float32),) for ids in inputs]

    async def finish(self, _: Deadline) -> None:
        self.ended = "finished"

    async def close(self) -> None:
        self.ended = "closed"


class EmbeddingReplica(FakeReplica):
    """A client of a replica that has a trunk; keeps its streams and the deadlines it was given."""

    def __init__(self, has: Trunk = GOOD) -> None:
        super().__init__()
        self.has = has
        self.is_down = False
        self.streams: list[FakeStream] = []
        self.deadlines: list[Deadline] = []

    async def trunk(self, *, with_tokenizer: bool = False, timeout: float = 1.0) -> Trunk:
        await self.probe(timeout)
        if self.is_down:
            raise Unavailable("down")
        return self.has

    def stream(self, *, trunk_fingerprint: str, **_: Any) -> FakeStream:
        self.streams.append(FakeStream(self, trunk_fingerprint))
        return self.streams[-1]


@contextlib.asynccontextmanager
async def embedder_of(*replicas: EmbeddingReplica, **options: Any) -> AsyncIterator[ClientEmbedder]:
    embedder = ClientEmbedder(cast("list[AsyncEmbeddingClient]", list(replicas)), max_open=64, **options)
    embedder.start()
    try:
        yield embedder
    finally:
        await embedder.close()


MEAN = (catalogue.View(),)


def live(trunk: Trunk = GOOD) -> LiveTrunk:
    return LiveTrunk(trunk.name, trunk.fingerprint, TextEncoder(tokenizer_json(), max_tokens=16), 64)


async def embed(embedder: ClientEmbedder, trunk: LiveTrunk, text: str = "a", views: Any = MEAN) -> list[Any]:
    [rows] = await embedder.embed(trunk, trunk.encoder.encode([text]), views, Deadline.after(5), "interactive")
    return [row.tolist() for row in rows]


async def test_texts_are_spread_over_the_replicas_and_each_has_one_stream() -> None:
    replicas = EmbeddingReplica(), EmbeddingReplica()
    async with embedder_of(*replicas) as embedder:
        trunk = live()
        assert [[3.0, 3.0]] * 6 == [row for _ in range(6) for row in await embed(embedder, trunk)]

    assert [3, 3] == [len(replica.deadlines) for replica in replicas]
    assert [["closed"], ["closed"]] == [[stream.ended for stream in replica.streams] for replica in replicas]


async def test_a_replica_is_given_a_little_less_time_than_the_caller() -> None:
    replica = EmbeddingReplica()
    async with embedder_of(replica) as embedder:
        trunk, deadline = live(), Deadline.after(5)
        await embedder.embed(trunk, trunk.encoder.encode(["a"]), MEAN, deadline, "interactive")

    assert replica.deadlines[0] < deadline


async def test_a_replica_that_is_down_is_no_callers_trouble() -> None:
    replicas = EmbeddingReplica(), EmbeddingReplica()
    replicas[0].is_down = True
    async with embedder_of(*replicas) as embedder:
        trunk = live()
        assert [[[3.0, 3.0]]] * 8 == [await embed(embedder, trunk) for _ in range(8)]
        assert "ejected" == embedder.pool.snapshot[0][0]


async def test_a_replica_with_another_trunk_is_left_out_until_it_has_the_right_one(caplog: pytest.LogCaptureFixture) -> None:
    replicas = EmbeddingReplica(OTHER), EmbeddingReplica()
    async with embedder_of(*replicas) as embedder:
        trunk = live()
        assert [[[3.0, 3.0]]] * 8 == [await embed(embedder, trunk) for _ in range(8)]
        assert 1 == len(replicas[0].deadlines)
        assert "serving" == embedder.pool.snapshot[0][0]

        replicas[0].has = GOOD
        replicas[0].say(True)
        await until(lambda: replicas[0].probes >= 2)
        await asyncio.sleep(0)
        for _ in range(4):
            await embed(embedder, trunk)
        assert 3 == len(replicas[0].deadlines)

    assert 1 == sum("another trunk" in record.message for record in caplog.records)


async def test_when_all_in_order_have_another_trunk_the_caller_is_told_to_ask_again() -> None:
    replicas = EmbeddingReplica(OTHER), EmbeddingReplica(OTHER)
    async with embedder_of(*replicas) as embedder:
        with pytest.raises(FailedPrecondition):
            await embed(embedder, live())
        trunks = ClientTrunks(embedder.clients, embedder.pool.in_order)
        found = await trunks.trunk(Deadline.after(5))
        assert OTHER.fingerprint == found.fingerprint
        assert [[3.0, 3.0]] == await embed(embedder, found)


async def test_when_the_last_with_the_old_trunk_drains_the_new_one_takes_over() -> None:
    replicas = EmbeddingReplica(OTHER), EmbeddingReplica()
    async with embedder_of(*replicas) as embedder:
        trunk = live()
        for _ in range(2):
            await embed(embedder, trunk)
        replicas[1].say(False)
        await until(lambda: not embedder.pool.is_usable(1))

        with pytest.raises(FailedPrecondition):
            await embed(embedder, trunk)
        assert [[3.0, 3.0]] == await embed(embedder, live(OTHER))


async def test_a_single_replica_with_another_trunk_says_so_itself() -> None:
    replica = EmbeddingReplica(OTHER)
    async with embedder_of(replica) as embedder:
        for _ in range(2):
            with pytest.raises(FailedPrecondition):
                await embed(embedder, live())

    assert 2 == len(replica.deadlines)


async def test_streams_of_an_older_trunk_end_when_they_are_done() -> None:
    replica = EmbeddingReplica()
    async with embedder_of(replica) as embedder:
        await embed(embedder, live())
        await embed(embedder, live(), views=(catalogue.View(pooling="cls"),))
        replica.has = OTHER
        await embed(embedder, live(OTHER))
        await until(lambda: ["finished", "finished", ""] == [stream.ended for stream in replica.streams])


async def test_idle_streams_make_room_for_those_of_other_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.backends.embedding.MAX_STREAMS", 2)
    replica = EmbeddingReplica()
    async with embedder_of(replica) as embedder:
        for layer in (0, 1):
            await embed(embedder, live(), views=(catalogue.View(layer=layer),))
        replica.streams[0].num_open = 1
        for layer in (2, 1, 2):
            await embed(embedder, live(), views=(catalogue.View(layer=layer),))
        await until(lambda: ["", "finished", "finished", "finished", ""] == [stream.ended for stream in replica.streams])


async def test_the_trunk_is_asked_of_another_replica_where_one_is_down() -> None:
    replicas = EmbeddingReplica(), EmbeddingReplica()
    replicas[0].is_down = True
    async with embedder_of(*replicas) as embedder:
        trunks = ClientTrunks(embedder.clients, embedder.pool.in_order)

        assert GOOD.fingerprint == (await trunks.trunk(Deadline.after(5))).fingerprint
