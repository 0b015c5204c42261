import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clients import AsyncEmbeddingClient
from clients._deadline import Deadline
from embedding_service.backend import FloatArray, View
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.batching import Batcher, Outcome, Row
from embedding_service.errors import Overloaded
from embedding_service.queue import QueueLimits
from embedding_service.reuse import Reuse, VectorCache
from embedding_service.service import MissingExtra
from embedding_service.settings import Settings
from embedding_service.shared_cache import MAX_WAITING, Circuit, SharedVectorCache, decode, encode
from tests.embedding_service.conftest import Start
from tests.embedding_service.fake_redis import FakeRedis, Mood, RealRedis
from tests.embedding_service.test_batching import VIEW, CountingTelemetry, Gate, row, soon, until
from tests.embedding_service.test_reuse import IDS, executed

KEY = b"key"
SECRET = "s3cret/pa:ss"

Redis = FakeRedis | RealRedis


def vectors(*numbers: float) -> FloatArray:
    return np.array(numbers, dtype=np.float32)


@pytest.fixture
async def fake() -> AsyncIterator[FakeRedis]:
    server = FakeRedis()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(params=["fake", "real"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """A fake Redis, and the real one where this machine has it."""
    if request.param == "fake":
        fake = FakeRedis()
        await fake.start()
        yield fake
        await fake.stop()
    elif RealRedis.is_installed():
        real = RealRedis()
        await real.start()
        yield real
        await real.remove()
    else:
        pytest.skip("redis-server is not installed; the fake one was asked the same")


class Service:
    """What one embedding service has of all this: a backend, its own cache, and its side of the shared one."""

    def __init__(self, reuse: Reuse, backend: FakeBackend, shared: SharedVectorCache, telemetry: CountingTelemetry) -> None:
        self.reuse = reuse
        self.backend = backend
        self.shared = shared
        self.telemetry = telemetry

    async def embed(self, *ids: int, views: tuple[View, ...] = (VIEW,), seconds: float = 10) -> Outcome:
        return await self.reuse.run([Row(ids, views)], deadline=soon(seconds))


@asynccontextmanager
async def sharing(
    server: Redis,
    backend: FakeBackend | None = None,
    *,
    cache_bytes: int = 0,
    timeout: float = 2.0,
    first_wait: float = 0.01,
    **limits: float,
) -> AsyncIterator[Service]:
    backend, telemetry = backend or FakeBackend(), CountingTelemetry()
    batcher = Batcher(backend, QueueLimits(**limits), telemetry)  # type: ignore[arg-type]
    shared = SharedVectorCache(server.url, telemetry, timeout=timeout, expiry=60)
    shared._reads, shared._writes = Circuit(first=first_wait), Circuit(first=first_wait)
    shared._writes.worked()
    await shared.start()
    trunk = shared.of(backend.trunk.fingerprint, backend.engine.label)
    try:
        yield Service(Reuse(batcher, VectorCache(cache_bytes), telemetry, trunk), backend, shared, telemetry)
    finally:
        await shared.aclose()
        await batcher.drain(5)
        assert {} == shared._tasks


async def written(server: Redis, count: int) -> list[bytes]:
    async with asyncio.timeout(5):
        while len(keys := await server.keys()) < count:
            await asyncio.sleep(0.001)
    return keys


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=50), st.binary(max_size=80))
def test_a_vector_is_read_as_it_was_written_and_by_its_own_key_alone(numbers: list[float], key: bytes) -> None:
    value = encode(key, vectors(*numbers))

    np.testing.assert_array_equal(vectors(*numbers), decode(key, value))
    assert decode(key + b"2", value) is None


def test_a_value_with_any_bit_changed_is_no_vector() -> None:
    value = encode(KEY, checksum_vector(IDS))
    for at in range(len(value)):
        for bit in range(8):
            changed = value[:at] + bytes([value[at] ^ 1 << bit]) + value[at + 1 :]
            assert decode(KEY, changed) is None


@given(st.one_of(st.binary(max_size=200), st.none(), st.text(), st.integers(), st.lists(st.binary())))
def test_what_is_not_a_vector_is_none_whatever_it_is(value: object) -> None:
    assert decode(KEY, value) is None


@given(st.data())
def test_whatever_decides_a_vector_is_in_its_key(data: st.DataObject) -> None:
    one = st.tuples(
        st.sampled_from(["sha256:0", "sha256:1"]),
        st.sampled_from(["openvino bf16", "openvino fp32", ""]),
        st.lists(st.integers(-3, 300), max_size=3).map(tuple),
        st.builds(View, st.sampled_from(["mean", "cls"]), st.integers(-2, -1), st.booleans(), st.integers(0, 11)),
    )
    shared = SharedVectorCache("redis://localhost", CountingTelemetry(), timeout=1, expiry=1)
    first, second = data.draw(one), data.draw(one)
    keys = [shared.of(name, label).keys(ids, [view]) for name, label, ids, view in (first, second)]

    assert (first == second) == (keys[0] == keys[1])


def test_a_failing_thing_is_left_alone_for_longer_and_longer() -> None:
    circuit, now, waits = Circuit(first=1, most=30), 100.0, []
    assert circuit.may_try(now)
    for _ in range(7):
        circuit.failed(now)
        assert not circuit.may_try(now)
        began = now
        while not circuit.may_try(now):
            now += 0.5
        waits.append(now - began)
        circuit.answered()

    assert [1, 2, 4, 8, 16, 30, 30] == waits
    circuit.worked()
    circuit.failed(now)
    assert circuit.may_try(now + 1)


def test_only_a_change_of_state_is_news() -> None:
    circuit = Circuit()

    assert [True, False, True, False, False, True] == [
        circuit.failed(1),
        circuit.failed(2),
        circuit.answered(),
        circuit.answered(),
        circuit.worked(),
        circuit.failed(3),
    ]


async def test_what_one_service_computed_another_finds(server: Redis) -> None:
    async with sharing(server) as first, sharing(server, cache_bytes=1_000_000) as second:
        computed = await first.embed(*IDS)
        [key] = await written(server, 1)
        found = await second.embed(*IDS)
        again = await second.embed(*IDS)

    assert [IDS] == executed(first.backend)
    assert [] == executed(second.backend)
    for outcome in (computed, found, again):
        np.testing.assert_array_equal(checksum_vector(IDS), outcome.vectors[0][0])
    assert {"miss": 1} == first.telemetry.looked_up
    assert {"ok": 1} == first.telemetry.written
    assert {"hit": 1} == second.telemetry.looked_up
    assert {"shared": 1, "cached": 1} == second.telemetry.reused
    assert key.startswith(b"trunkline:vector:1:")


async def test_every_vector_is_forgotten_some_day(server: Redis) -> None:
    async with sharing(server) as service:
        await service.embed(*IDS)
        [key] = await written(server, 1)

        assert 50 < await server.expiry(key) <= 60


async def test_another_trunk_or_engine_never_gets_the_vectors(server: Redis) -> None:
    retrained, rounded = FakeBackend(), FakeBackend()
    retrained.trunk = replace(retrained.trunk, fingerprint="sha256:" + "1" * 64)
    rounded.engine = replace(rounded.engine, label="fake bf16")
    async with sharing(server) as first, sharing(server, retrained) as second, sharing(server, rounded) as third:
        for service in (first, second, third):
            await service.embed(*IDS)
            await written(server, 1)

    assert [[IDS]] * 3 == [executed(service.backend) for service in (first, second, third)]


async def test_a_text_and_a_pair_of_the_same_ids_are_kept_apart(server: Redis) -> None:
    async with sharing(server) as service:
        await service.embed(*IDS)
        await written(server, 1)
        await service.reuse.run([Row(IDS, (VIEW,), 2)], deadline=soon())

    assert [IDS, IDS] == executed(service.backend)


async def test_a_value_that_changed_is_computed_anew_and_put_right(server: Redis) -> None:
    async with sharing(server) as service:
        await service.embed(*IDS)
        [key] = await written(server, 1)
        right = await server.get(key)
        assert right is not None
        for wrong in (b"", right[:-4], right[:-1] + b"\0", right + b"\0", right.replace(b"\x08", b"\x09")):
            await server.set(key, wrong)
            outcome = await service.embed(*IDS)
            np.testing.assert_array_equal(checksum_vector(IDS), outcome.vectors[0][0])
            async with asyncio.timeout(5):
                while await server.get(key) != right:
                    await asyncio.sleep(0.001)

    assert {"miss": 6} == service.telemetry.looked_up


async def test_a_server_that_never_answers_is_waited_for_once_and_then_left_alone(server: Redis) -> None:
    async with sharing(server, timeout=0.05, first_wait=60) as service:
        await server.silence()
        for number in range(5):
            outcome = await service.embed(number)
            np.testing.assert_array_equal(checksum_vector((number,)), outcome.vectors[0][0])
        await server.speak()

    assert {"error": 1, "skipped": 4} == service.telemetry.looked_up


async def test_a_server_that_was_killed_and_is_back_is_used_again(server: Redis, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "embedding_service")
    async with sharing(server) as service:
        await service.embed(*IDS)
        await written(server, 1)
        await server.stop()
        for number in range(5):
            outcome = await service.embed(number)
            np.testing.assert_array_equal(checksum_vector((number,)), outcome.vectors[0][0])
        await server.start()
        number = 5
        while "hit" not in service.telemetry.looked_up:
            number += 1
            await asyncio.gather(service.embed(number), asyncio.sleep(0.02))
            await service.embed(number)

    told = [record.levelname for record in caplog.records]
    assert ["INFO", "WARNING", "INFO"] == told[:2] + told[-1:]
    assert 1 == service.telemetry.looked_up["error"]


@pytest.mark.parametrize("mood", ["late", "garbage", "half", "closing", "shifted", "silent"])
async def test_a_server_that_is_wrong_costs_nothing_but_the_hits(fake: FakeRedis, mood: Mood) -> None:
    async with sharing(fake, timeout=0.1) as service:
        await service.embed(1)
        await written(fake, 1)
        fake.mood = mood
        for number in (1, 2, 3, 1, 2):
            outcome = await service.embed(number)
            np.testing.assert_array_equal(checksum_vector((number,)), outcome.vectors[0][0])
            await asyncio.sleep(0.02)
        fake.mood = "well"
        while not service.telemetry.looked_up.get("hit"):
            outcome = await service.embed(1)
            np.testing.assert_array_equal(checksum_vector((1,)), outcome.vectors[0][0])
            await asyncio.sleep(0.02)


async def test_a_server_that_is_full_is_still_read(fake: FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    async with sharing(fake) as service:
        await service.embed(1)
        await written(fake, 1)
        fake.mood = "full"
        for number in (2, 3, 4):
            await service.embed(number)
            await asyncio.sleep(0.03)
        await service.embed(1)

    assert {"hit": 1, "miss": 4} == service.telemetry.looked_up
    assert service.telemetry.written["error"] >= 1
    assert ["WARNING"] == [record.levelname for record in caplog.records if "takes no vectors" in record.message]


async def test_a_server_that_is_away_at_the_start_is_found_later(fake: FakeRedis) -> None:
    await fake.stop()
    async with sharing(fake) as service:
        await service.embed(1)
        await fake.start()
        while not service.telemetry.looked_up.keys() & {"hit", "miss"}:
            await service.embed(1)
            await asyncio.sleep(0.02)

    assert "error" not in service.telemetry.looked_up


async def test_a_request_is_one_look_up_and_its_results_are_one_write(fake: FakeRedis) -> None:
    async with sharing(fake) as service:
        fake.commands.clear()
        await service.reuse.run([row(number, number) for number in range(40)], deadline=soon())
        await written(fake, 40)

    assert ["MGET"] + ["SET"] * 40 == [name for name in fake.commands if name != "CLIENT"]


async def test_look_ups_that_come_while_one_is_under_way_go_together(fake: FakeRedis) -> None:
    async with sharing(fake) as service:
        fake.commands.clear()
        await asyncio.gather(*(service.embed(number) for number in range(40)))

    assert 2 >= fake.commands.count("MGET")


async def test_a_row_is_a_hit_only_when_all_its_views_are_known(fake: FakeRedis) -> None:
    async with sharing(fake) as service:
        await service.embed(*IDS)
        await written(fake, 1)
        await service.embed(*IDS, views=(VIEW, View("cls")))
        await written(fake, 2)
        await service.embed(*IDS, views=(View("cls"), VIEW))

    assert {"miss": 2, "hit": 1} == service.telemetry.looked_up


async def test_vectors_of_tokens_are_neither_asked_for_nor_kept(fake: FakeRedis) -> None:
    async with sharing(fake) as service:
        fake.commands.clear()
        await service.embed(*IDS, views=(VIEW, View("tokens")))

    assert [] == fake.commands
    assert {} == service.telemetry.looked_up


async def test_who_has_less_time_than_a_look_up_may_take_does_not_wait_for_one(fake: FakeRedis) -> None:
    async with sharing(fake, timeout=5) as service:
        fake.mood = "silent"
        await service.embed(*IDS, seconds=4)
        fake.mood = "well"

    assert {"skipped": 1} == service.telemetry.looked_up


async def test_equal_inputs_meet_while_they_are_looked_up(fake: FakeRedis) -> None:
    async with sharing(fake) as service:
        outcomes = await asyncio.gather(*(service.embed(*IDS) for _ in range(5)))

    assert [IDS] == executed(service.backend)
    assert {"joined": 4} == service.telemetry.reused
    assert all(outcome.queue_seconds >= 0 for outcome in outcomes)


async def test_an_input_whose_caller_left_during_the_look_up_is_not_executed(fake: FakeRedis) -> None:
    async with sharing(fake, timeout=0.2) as service:
        fake.mood = "silent"
        leaving, staying = asyncio.create_task(service.embed(1)), asyncio.create_task(service.embed(2))
        await until(lambda: fake.commands[-1] == "MGET")
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await staying
        fake.mood = "well"

    assert [(2,)] == executed(service.backend)
    assert 0 == len(service.reuse._flights)


async def test_what_the_queue_refuses_after_the_look_up_fails_alone(fake: FakeRedis) -> None:
    gate = Gate()
    async with sharing(fake, FakeBackend(fault=gate), max_queued_tokens=8) as service:
        blocking = asyncio.create_task(service.embed(100))
        await until(lambda: bool(service.backend.batches))
        queued = asyncio.create_task(service.reuse.run([row(number) for number in range(10, 16)], deadline=soon()))
        while service.telemetry.looked_up != {"miss": 7}:
            await asyncio.sleep(0.001)
        too_much = asyncio.create_task(service.reuse.run([row(3), row(40, 41, 42)], deadline=soon()))
        await asyncio.sleep(0)
        joining = asyncio.create_task(service.embed(3))
        with pytest.raises(Overloaded):
            await too_much
        gate.open()
        outcome, *_ = await asyncio.gather(joining, queued, blocking)

    np.testing.assert_array_equal(checksum_vector((3,)), outcome.vectors[0][0])
    assert (3,) in executed(service.backend)
    assert (40, 41, 42) not in executed(service.backend)
    assert {"joined": 1} == service.telemetry.reused


async def test_more_than_may_wait_is_not_asked_for_and_not_kept(fake: FakeRedis) -> None:
    async with sharing(fake) as service:
        await service.reuse.run([row(1, number) for number in range(MAX_WAITING + 1)], deadline=soon())

    assert {"skipped": MAX_WAITING + 1} == service.telemetry.looked_up
    assert sum(service.telemetry.written.values()) == MAX_WAITING + 1


async def test_closing_answers_what_was_asked(fake: FakeRedis) -> None:
    async with sharing(fake, timeout=0.1) as service:
        fake.mood = "silent"
        asking = asyncio.create_task(service.embed(1))
        await until(lambda: fake.commands[-1] == "MGET")
        await service.shared.aclose()
        outcome = await asking
        after = await service.embed(2)

    np.testing.assert_array_equal(checksum_vector((1,)), outcome.vectors[0][0])
    np.testing.assert_array_equal(checksum_vector((2,)), after.vectors[0][0])
    assert {asyncio.current_task()} == {task for task in asyncio.all_tasks() if "fake_redis" not in repr(task)}


async def test_two_running_services_share_and_the_password_is_nowhere(
    start: Start, tokenizer_json: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake = FakeRedis(password=SECRET)
    await fake.start()
    url = fake.url.replace(SECRET, "s3cret%2Fpa%3Ass")
    backends = [FakeBackend(tokenizer_json), FakeBackend(tokenizer_json)]
    first, second = [
        await start(backend, cache_redis_url=url, cache_redis_timeout_seconds=2, default_timeout_seconds=20)
        for backend in backends
    ]
    async with AsyncEmbeddingClient(first.grpc) as client:
        await client.embed(["w1 w2", "w3"])
        await written(fake, 2)
    async with AsyncEmbeddingClient(second.grpc) as client, httpx.AsyncClient(base_url=second.http) as http:
        found = await client.embed(["w1 w2"])
        stream = client.stream()
        streamed = await stream.embed([(2, 7, 3), (2, 5, 6, 3)], Deadline.after(10))
        await stream.close()
        info, metrics = (await http.get("/info")).text, (await http.get("/metrics")).text
    await fake.stop()

    np.testing.assert_array_equal(checksum_vector((2, 5, 6, 3)), found.vectors[0])
    np.testing.assert_array_equal(checksum_vector((2, 7, 3)), streamed[0][0])
    assert [] == executed(backends[1])
    assert 'trunkline_embedding_shared_cache_total{result="hit"} 2.0' in metrics
    assert '"cache_redis_url":"**********"' in info
    for text in (info, metrics, caplog.text, repr(Settings(cache_redis_url=url))):  # type: ignore[arg-type]
        assert "s3cret" not in text


async def test_a_missing_package_is_named_at_the_start(
    start: Start, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "embedding_service.shared_cache")
    monkeypatch.setitem(sys.modules, "redis", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtra, match=r"install trunkline\[redis\]"):
        await start(FakeBackend(tokenizer_json), cache_redis_url="redis://localhost")


@pytest.mark.parametrize(
    "url", ["s3cret", "http://s3cret@host", "redis://", "redis://user:s3cret@host:port", "unix:", "redis:///0"]
)
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings(cache_redis_url=url)  # type: ignore[arg-type]

    [problem] = refusal.value.errors(include_url=False, include_input=False)
    assert "redis://HOST:PORT/0" in problem["msg"]
    assert "s3cret" not in problem["msg"]
