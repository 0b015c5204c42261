import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import (
    AsyncHeadClient,
    Deadline,
    DeadlineExceeded,
    InvalidResponse,
    NotFound,
    Prediction,
    ServerFault,
    TrunklineError,
    Unavailable,
    VersionStatus,
)
from clients.wire import catalogue
from clients.wire.catalogue import Catalogue, Manifest, TrunkRef
from gateway.backends import heads
from gateway.backends.breaker import BreakerPolicy
from gateway.backends.heads import KNOWN_ANSWERS, MIN_PATIENCE_SECONDS, ClientPredictor, _Head, groups_by_length, padded
from gateway.backends.replicas import Policy
from gateway.coalesce import CallLimits
from gateway.ports import FloatArray
from tests.gateway.backends.fakes import Facts, FakeReplica, until

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


PLAIN = Manifest(name="plain", version=3, labels=("a", "b"), width=2, trunk=TOKENS.trunk)
ROWS = [np.array([1.0, 2.0], np.float32)]


class HeadReplica(FakeReplica):
    """A client of a head server, whose heads answer what they read; *sick* ones raise, answer nonsense, or nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.sick: dict[str, Any] = {}
        self.asked: list[str] = []
        self.timeouts: list[float] = []

    async def predict(self, head: str, inputs: dict[str, FloatArray], timeout: float, **_: Any) -> Prediction:
        self.asked.append(head)
        self.timeouts.append(timeout)
        await self.gate.wait()
        illness = self.sick.get(head)
        if isinstance(illness, Exception):
            raise illness
        if isinstance(illness, str):
            await asyncio.sleep(timeout)
            raise DeadlineExceeded("late")
        return Prediction({"scores": inputs["embedding"] if illness is None else illness}, 3)

    async def status(self, head: str, *, timeout: float) -> tuple[VersionStatus, ...]:
        await self.probe(timeout)
        raise NotFound(head)


@contextlib.asynccontextmanager
async def predictor_of(*replicas: HeadReplica, **options: Any) -> AsyncIterator[ClientPredictor]:
    limits = CallLimits(max_calls=1)
    predictor = ClientPredictor(cast("list[AsyncHeadClient]", list(replicas)), limits, **options)
    predictor.start()
    try:
        yield predictor
    finally:
        await predictor.close()


def named(name: str, version: int = 3) -> Manifest:
    return msgspec.structs.replace(PLAIN, name=name, version=version)


async def outcome(predictor: ClientPredictor, manifest: Manifest, seconds: float = 5.0) -> str:
    """ "ok", or the code of what went wrong."""
    try:
        await predictor.predict(manifest, ROWS, Deadline.after(seconds))
    except TrunklineError as error:
        return error.code
    return "ok"


ILL = [
    (Unavailable("dead"), "unavailable"),
    (ServerFault("broken"), "internal"),
    (np.zeros((1, 3), np.float32), "invalid_response"),
    (np.zeros((1, 2), np.float64), "invalid_response"),
    (np.full((1, 2), np.nan, np.float32), "ok"),
]


@pytest.mark.parametrize(("illness", "code"), ILL)
async def test_a_sick_head_is_answered_for_at_once_and_costs_the_others_nothing(illness: Any, code: str) -> None:
    replica, facts = HeadReplica(), Facts()
    replica.sick["sick"] = illness
    breakers = BreakerPolicy(max_failures=3, base_seconds=60.0)
    async with predictor_of(replica, breakers=breakers, facts=facts) as predictor:
        said = [await outcome(predictor, named("sick")) for _ in range(6)]
        well = [await outcome(predictor, named("well")) for _ in range(6)]

    assert [code] * 3 + ["unavailable"] * 3 == said
    assert ["ok"] * 6 == well
    assert 3 == replica.asked.count("sick")
    assert ["sick open"] == facts.seen


async def test_an_open_breaker_says_when_to_come_back() -> None:
    replica = HeadReplica()
    replica.sick["sick"] = ServerFault("broken")
    async with predictor_of(replica, breakers=BreakerPolicy(max_failures=1, base_seconds=60.0, max_seconds=60.0)) as predictor:
        await outcome(predictor, named("sick"))
        with pytest.raises(Unavailable) as raised:
            await predictor.predict(named("sick"), ROWS, Deadline.after(5))

    assert raised.value.retry_after == pytest.approx(60, abs=5)


async def test_one_call_in_the_background_finds_out_that_a_head_is_well_again() -> None:
    replica, facts = HeadReplica(), Facts()
    replica.sick["sick"] = ServerFault("broken")
    breakers = BreakerPolicy(max_failures=1, base_seconds=0.01)
    async with predictor_of(replica, breakers=breakers, facts=facts) as predictor:
        await outcome(predictor, named("sick"))
        del replica.sick["sick"]
        await asyncio.sleep(0.02)
        replica.gate.clear()
        assert ["unavailable"] * 3 == [await outcome(predictor, named("sick")) for _ in range(3)]
        await until(lambda: len(replica.asked) == 2)
        replica.gate.set()
        await until(lambda: "sick closed" in facts.seen)
        assert "ok" == await outcome(predictor, named("sick"))

    assert ["sick open", "sick half_open", "sick closed"] == facts.seen


async def test_a_trial_that_fails_unexpectedly_is_followed_by_another(caplog: pytest.LogCaptureFixture) -> None:
    replica = HeadReplica()
    replica.sick["sick"] = ServerFault("broken")
    async with predictor_of(replica, breakers=BreakerPolicy(max_failures=1, base_seconds=0.0)) as predictor:
        await outcome(predictor, named("sick"))
        replica.sick["sick"] = RuntimeError("a fault of ours")
        await outcome(predictor, named("sick"))
        await until(lambda: "unexpectedly" in caplog.text)
        del replica.sick["sick"]
        await outcome(predictor, named("sick"))
        await until(lambda: len(replica.asked) == 3)
        await asyncio.sleep(0)
        assert "ok" == await outcome(predictor, named("sick"))


async def test_a_text_whose_vector_is_no_numbers_opens_no_breaker() -> None:
    replica, nothing = HeadReplica(), [np.full(2, np.nan, np.float32)]
    async with predictor_of(replica, breakers=BreakerPolicy(max_failures=1, base_seconds=60.0)) as predictor:
        await predictor.predict(named("head"), nothing, Deadline.after(5))
        assert "ok" == await outcome(predictor, named("head"))


async def test_the_breaker_of_a_version_that_left_the_catalogue_is_told_to_be_open_no_more() -> None:
    replica, facts = HeadReplica(), Facts()
    replica.sick["sick"] = ServerFault("broken")
    async with predictor_of(replica, breakers=BreakerPolicy(max_failures=1, base_seconds=60.0), facts=facts) as predictor:
        for name in ("sick", "well"):
            await outcome(predictor, named(name))
        predictor.follow(Catalogue())

    assert ["sick open", "sick closed"] == facts.seen


async def test_a_frozen_head_is_noticed_while_others_answer_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(heads, "TICK_SECONDS", 0.01)
    replica, facts = HeadReplica(), Facts()
    async with predictor_of(replica, facts=facts) as predictor:
        for _ in range(heads.KNOWN_ANSWERS):
            assert "ok" == await outcome(predictor, named("sick"))
        replica.sick["sick"] = "frozen"
        waiting = [asyncio.create_task(outcome(predictor, named("sick"))) for _ in range(5)]
        while not all(task.done() for task in waiting):
            assert "ok" == await outcome(predictor, named("well"))
            await asyncio.sleep(0.002)

        assert ["unavailable"] * 5 == [task.result() for task in waiting]
    assert ["sick open"] == facts.seen
    assert heads.KNOWN_ANSWERS + 1 == replica.asked.count("sick")


async def test_a_frozen_head_that_is_alone_is_noticed_by_the_time_outs_of_its_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "MIN_PATIENCE_SECONDS", 0.02)
    replica = HeadReplica()
    replica.sick["sick"] = "frozen"
    async with predictor_of(replica, breakers=BreakerPolicy(max_failures=3, base_seconds=60.0)) as predictor:
        said = await asyncio.gather(*(outcome(predictor, named("sick"), 0.05) for _ in range(3)))
        assert {"deadline_exceeded", "unavailable"} >= set(said)
        assert "unavailable" == await outcome(predictor, named("sick"))


async def test_impatient_callers_do_not_open_a_breaker() -> None:
    replica, facts = HeadReplica(), Facts()
    async with predictor_of(replica, breakers=BreakerPolicy(max_failures=1), facts=facts) as predictor:
        assert "ok" == await outcome(predictor, named("slow"))
        replica.gate.clear()
        assert ["deadline_exceeded"] * 5 == [await outcome(predictor, named("slow"), 0.001) for _ in range(5)]

    assert [] == facts.seen


async def test_impatient_callers_whose_calls_end_before_them_do_not_open_a_breaker_either() -> None:
    replica, facts = HeadReplica(), Facts()
    replica.sick["slow"] = DeadlineExceeded("late")
    async with predictor_of(replica, breakers=BreakerPolicy(max_failures=1), facts=facts) as predictor:
        assert ["deadline_exceeded"] * 5 == [await outcome(predictor, named("slow"), 0.05) for _ in range(5)]
        del replica.sick["slow"]
        assert "ok" == await outcome(predictor, named("slow"))

    assert [] == facts.seen


@pytest.mark.parametrize(
    ("usual", "patience", "expected"),
    [
        (0.5, 0.3, False),
        (0.5, 0.9, False),
        (0.5, 1.0, True),
        (0.1, 0.24, False),
        (0.1, 0.25, True),
        (0.005, 0.04, True),
        (0.005, 0.03, False),
    ],
)
def test_a_slow_heads_callers_are_impatient_until_they_have_waited_for_twice_its_usual(
    usual: float, patience: float, expected: bool
) -> None:
    head = _Head(named("slow"), cast("Any", None), cast("Any", None))
    for number in range(KNOWN_ANSWERS):
        assert (patience >= MIN_PATIENCE_SECONDS) == head.is_long(patience)
        head.took(usual, float(number))

    assert expected == head.is_long(patience)


async def test_versions_have_breakers_of_their_own_and_keep_them_when_the_catalogue_is_read_anew() -> None:
    replica = HeadReplica()
    replica.sick["sick"] = ServerFault("broken")
    async with predictor_of(replica, breakers=BreakerPolicy(max_failures=1, base_seconds=60.0)) as predictor:
        await outcome(predictor, named("sick", 3))
        del replica.sick["sick"]

        assert "unavailable" == await outcome(predictor, named("sick", 3))
        assert "ok" == await outcome(predictor, named("sick", 4))


async def test_a_version_that_one_replica_has_not_loaded_yet_is_asked_of_another() -> None:
    replicas = HeadReplica(), HeadReplica()
    replicas[0].sick["new"] = NotFound("version 3")
    async with predictor_of(*replicas) as predictor:
        assert ["ok"] * 8 == [await outcome(predictor, named("new")) for _ in range(8)]


async def test_calls_at_a_frozen_head_server_are_moved_and_no_breaker_opens() -> None:
    replicas, facts = (HeadReplica(), HeadReplica()), Facts()
    policy = Policy(suspect_seconds=0.02, base_ejection_seconds=60.0)
    async with predictor_of(*replicas, policy=policy, probe_seconds=0.02, facts=facts) as predictor:
        replicas[0].freeze()
        manifests = [named(f"head-{number}") for number in range(6)]
        said = await asyncio.gather(*(outcome(predictor, manifest) for manifest in manifests))

    assert ["ok"] * 6 == said
    assert ["ejected 0 silent", "retried"] == facts.seen


async def test_a_head_server_is_given_a_little_less_time_than_the_caller() -> None:
    replica = HeadReplica()
    async with predictor_of(replica) as predictor:
        await outcome(predictor, named("one"), 1.0)

    assert replica.timeouts[0] < 0.996
