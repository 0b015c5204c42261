"""Against the unmodified client of bert-as-service."""

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
import uvloop
import zmq
from bert_serving.client import BertClient, ConcurrentBertClient
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

import embedding_service
from clients.wire.listening import ListenError
from embedding_service.backend.fake import FakeBackend, checksum_vector
from embedding_service.bert_as_service import BertAsService, Embed
from embedding_service.infer import EmbedAnswer, EmbedCall, HostedTrunk, Infer, ViewVectors
from embedding_service.queue import QueueLimits
from embedding_service.service import Addresses, running
from embedding_service.settings import Settings
from embedding_service.telemetry import PrometheusTelemetry, Timings
from embedding_service.tokenization import InputLimits
from embedding_service.zmq_edge import ZmqLimits, bind, serving
from tests.embedding_service.conftest import Start
from tests.embedding_service.test_batching import Gate

SECRET = "SECRET-CANARY"
PORTS = {"bert_port": 0, "bert_port_out": 0}
Answer = TypeVar("Answer")


def ports(addresses: Addresses) -> tuple[int, int]:
    assert addresses.bert is not None
    assert addresses.bert_out is not None
    return int(addresses.bert.rpartition(":")[2]), int(addresses.bert_out.rpartition(":")[2])


async def asking(at: tuple[int, int], ask: Callable[[Any], Answer], **options: Any) -> Answer:
    """What *ask* gets from a client of its own, which waits for ten seconds at most, in a thread of its own."""

    def run() -> Answer:
        with BertClient(port=at[0], port_out=at[1], **{"timeout": 10_000, **options}) as client:
            return ask(client)

    return await asyncio.to_thread(run)


@contextmanager
def raw_sender(at: tuple[int, int]) -> Iterator["zmq.Socket[bytes]"]:
    with zmq.Context() as context, context.socket(zmq.PUSH) as sender:
        sender.linger = 1_000
        sender.connect(f"tcp://127.0.0.1:{at[0]}")
        yield sender


@asynccontextmanager
async def answering(embed: Embed, tokenizer_json: bytes, **limits: int) -> AsyncIterator[tuple[int, int]]:
    """Both ports before *embed* instead of a trunk; yields them."""
    telemetry = PrometheusTelemetry(CollectorRegistry())
    trunk = HostedTrunk(FakeBackend(tokenizer_json), QueueLimits(), telemetry.of_trunk("fake"))
    protocol = BertAsService(Infer([trunk], InputLimits(), telemetry))
    bounds = ZmqLimits(**limits)
    sockets = bind("127.0.0.1", 0, 0, bounds)
    async with serving(protocol, embed, sockets, bounds):
        yield sockets.port, sockets.port_out
    await trunk.batcher.drain(1.0)


async def until_all_are_answered() -> None:
    """No request is under way any more."""
    async with asyncio.timeout(10):
        while any("_answer" in repr(task) for task in asyncio.all_tasks()):
            await asyncio.sleep(0.01)


def vectors_of(call: EmbedCall, width: int, tokenizer_json: bytes) -> EmbedAnswer:
    array = np.ones((len(call.inputs), width), dtype=np.float32)
    return EmbedAnswer(FakeBackend(tokenizer_json).trunk, [ViewVectors(array)], [], Timings(0, 0, 0, 0))


async def test_texts_and_tokens_are_encoded(start: Start, tokenizer_json: bytes) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), **PORTS))

    texts = await asking(at, lambda client: client.encode(["w1 w2", " w3 "]))
    tokens = await asking(at, lambda client: client.encode([["w1", "w2"], ["unheard"]], is_tokenized=True))
    listed = await asking(at, lambda client: client.encode(["w1 w2"]), output_fmt="list")

    assert ("float32", (2, 8)) == (texts.dtype, texts.shape)
    np.testing.assert_array_equal([checksum_vector((2, 5, 6, 3)), checksum_vector((2, 7, 3))], texts)
    np.testing.assert_array_equal([checksum_vector((2, 5, 6, 3)), checksum_vector((2, 1, 3))], tokens)
    assert texts[:1].tolist() == listed


async def test_pairs_are_read_together(start: Start, tokenizer_json: bytes) -> None:
    backend = FakeBackend(tokenizer_json)
    at = ports(await start(backend, **PORTS))

    texts = await asking(at, lambda client: client.encode(["w1 ||| w2"]))
    tokens = await asking(at, lambda client: client.encode([["w3", "|||", "w4"]], is_tokenized=True))

    np.testing.assert_array_equal([checksum_vector((2, 5, 3, 6, 3))], texts)
    np.testing.assert_array_equal([checksum_vector((2, 7, 3, 8, 3))], tokens)
    pairs = [batch for batch in backend.batches if batch.pair_at]
    assert [((2, 5, 3, 6, 3), 3), ((2, 7, 3, 8, 3), 3)] == [(batch.token_ids[0], batch.pair_at[0]) for batch in pairs]


async def test_tokens_are_shown_where_that_is_set(start: Start, tokenizer_json: bytes) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), bert_show_tokens=True, **PORTS))
    vectors, tokens = await asking(at, lambda client: client.encode(["w1 unheard", "w2 ||| w3"], show_tokens=True))

    assert (2, 8) == vectors.shape
    assert [["[CLS]", "w1", "[UNK]", "[SEP]"], ["[CLS]", "w2", "[SEP]", "w3", "[SEP]"]] == tokens


async def test_a_client_that_wants_tokens_is_warned_where_they_are_not_shown(start: Start, tokenizer_json: bytes) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), **PORTS))
    with pytest.warns(UserWarning, match="does not support showing tokenization"):
        assert (1, 8) == (await asking(at, lambda client: client.encode(["w1"], show_tokens=True))).shape


@pytest.mark.parametrize(
    ("pooling", "shape"), [("REDUCE_MEAN", (2, 8)), ("NONE", (2, 4, 8))], ids=["one vector a text", "one a token"]
)
async def test_pooling_is_a_setting(start: Start, tokenizer_json: bytes, pooling: str, shape: tuple[int, ...]) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), bert_pooling=pooling, **PORTS))
    vectors = await asking(at, lambda client: client.encode(["w1", "w2 w3"]))

    assert shape == vectors.shape
    if pooling == "NONE":
        assert not vectors[0, 3].any()


async def test_answers_are_fetched_later_in_the_order_of_sending(start: Start, tokenizer_json: bytes) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), **PORTS))

    def ask(client: Any) -> tuple[list[Any], list[Any]]:
        for number in range(50):
            client.encode([f"w{number}"] * (1 + number % 20), blocking=False)
        together = client.fetch_all()
        batches = ([f"w{number}", f"w{number + 1}"] for number in range(10))
        one_by_one = list(client.encode_async(batches, max_num_batch=10, delay=0.0))
        while len(one_by_one) < 10:
            one_by_one += client.fetch()
        return together, one_by_one

    together, one_by_one = await asking(at, ask)

    assert [1 + number % 20 for number in range(50)] == [len(vectors) for vectors in together]
    for number, vectors in enumerate(together):
        np.testing.assert_array_equal(checksum_vector((2, 4 + number, 3)), vectors[-1])
    for number, answer in enumerate(sorted(one_by_one, key=lambda answer: int(answer.id))):
        np.testing.assert_array_equal(checksum_vector((2, 4 + number, 3)), answer.embedding[0])


async def test_large_requests_come_back_whole_and_in_order(start: Start, tokenizer_json: bytes) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), max_request_inputs=100, **PORTS))
    vectors = await asking(at, lambda client: client.encode([f"w{number % 200}" for number in range(1_234)]))

    np.testing.assert_array_equal([checksum_vector((2, 4 + number % 200, 3)) for number in range(1_234)], vectors)


async def test_the_concurrent_client_asks_from_many_threads(start: Start, tokenizer_json: bytes) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), **PORTS))
    with closing(await asyncio.to_thread(ConcurrentBertClient, 4, port=at[0], port_out=at[1], timeout=10_000)) as client:
        asked = [asyncio.to_thread(client.encode, texts=[f"w{number}"]) for number in range(4)]
        answers = await asyncio.gather(*asked)

    for number, vectors in enumerate(answers):
        np.testing.assert_array_equal([checksum_vector((2, 4 + number, 3))], vectors)


async def test_a_client_reads_config_and_status(start: Start, tokenizer_json: bytes) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), **PORTS))

    def ask(client: Any) -> tuple[Any, Any]:
        client.encode(["w1", "w2"])
        return client.server_config, client.server_status

    config, status = await asking(at, ask, identity=b"the-one")

    assert ("the-one", "1.10.0", *at) == (config["client"], config["server_version"], config["port"], config["port_out"])
    assert {"num_data_request": 1, "num_total_seq": 2, "num_total_client": 1}.items() <= status["statistic"].items()


async def test_a_client_gets_its_first_answer_whatever_it_asks_first(start: Start, tokenizer_json: bytes) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), **PORTS))
    for _ in range(5):
        shape = (await asking(at, lambda client: client.encode(["w1"]), ignore_all_checks=True)).shape
        assert (1, 8) == shape
        assert (1, 8) == (await asking(at, lambda client: client.encode(["w1"]), identity=b"again and again")).shape


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        pytest.param(["\u200b\u200b"], "server error 400: input 0 is empty", id="nothing once normalised"),
        pytest.param([SECRET * 20_000], "server error 400: the request is longer than 100000 bytes", id="too long"),
        pytest.param(["w"] * 16_385, "server error 400: a request has 1 to 16384 texts", id="too many"),
    ],
)
async def test_a_refusal_is_raised_in_the_client_and_does_not_echo(
    start: Start, tokenizer_json: bytes, texts: list[Any], message: str
) -> None:
    backend = FakeBackend(tokenizer_json)
    at = ports(await start(backend, max_body_bytes=100_000, **PORTS))
    with pytest.raises(TypeError, match=message) as raised:
        await asking(at, lambda client: client.encode(texts))

    assert SECRET not in str(raised.value)
    assert [] == backend.batches


async def test_a_full_queue_a_broken_trunk_and_a_passed_deadline_are_raised_in_the_client(
    start: Start, tokenizer_json: bytes
) -> None:
    gate = Gate()
    backend = FakeBackend(tokenizer_json, fault=gate)
    addresses = await start(backend, max_queued_tokens=8, max_batch_tokens=8, default_timeout_seconds=1.0, **PORTS)
    at = ports(addresses)

    async with httpx.AsyncClient(base_url=addresses.http) as http:
        calls = [asyncio.create_task(asking(at, lambda client: client.encode(["w1 w1 w1"])))]
        while not backend.batches:
            await asyncio.sleep(0.001)
        calls.append(asyncio.create_task(asking(at, lambda client: client.encode(["w2 w1 w1"]))))
        while 'queue_entries{trunk="fake"} 1.0' not in (await http.get("/metrics")).text:
            await asyncio.sleep(0.01)
        with pytest.raises(TypeError, match=r"server error 429: .*; retry in \d+ s"):
            await asking(at, lambda client: client.encode(["w7 w8 w9"]))
    late = await asyncio.gather(*calls, return_exceptions=True)
    gate.open()
    assert all(isinstance(error, TypeError) and "server error 504" in str(error) for error in late)

    backend.fault = lambda _: (_ for _ in ()).throw(RuntimeError(SECRET))
    with pytest.raises(TypeError, match="server error 503") as broken:
        await asking(at, lambda client: client.encode(["w9"]))
    assert SECRET not in str(broken.value)


async def test_too_many_requests_at_once_are_refused_at_once(tokenizer_json: bytes) -> None:
    held = asyncio.Event()

    async def embed(call: EmbedCall) -> EmbedAnswer:
        await held.wait()
        return vectors_of(call, 8, tokenizer_json)

    def ask(client: Any) -> list[Any]:
        for _ in range(3):
            client.encode(["w1"], blocking=False)
        with pytest.raises(TypeError, match="server error 429: too many requests"):
            client._recv_ndarray()
        loop.call_soon_threadsafe(held.set)
        return list(client.fetch())

    loop = asyncio.get_running_loop()
    async with answering(embed, tokenizer_json, max_open=2) as at:
        assert 2 == len(await asking(at, ask))


async def test_answers_that_nobody_reads_are_bounded_and_read_answers_make_room(tokenizer_json: bytes) -> None:
    async def embed(call: EmbedCall) -> EmbedAnswer:
        return vectors_of(call, 1_000_000, tokenizer_json)

    def fill(sender: "zmq.Socket[bytes]", client: Any) -> None:
        """What the buffers on the way take is not counted, so it takes a few until *client* is refused."""
        for number in range(50):
            sender.send_multipart([b"idle", b'["w1"]', b"%d" % number, b"1"])
            assert (1, 1_000_000) == client.encode(["w1"]).shape

    def ask(client: Any) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as idle, raw_sender(at) as sender:
            idle.rcvhwm, idle.rcvtimeo = 1, 10_000
            idle.connect(f"tcp://127.0.0.1:{at[1]}")
            idle.subscribe(b"idle")
            with pytest.raises(TypeError, match="server error 429: too many requests or unread answers"):
                fill(sender, client)
            while True:
                try:
                    assert (1, 1_000_000) == client.encode(["w1"]).shape
                    break
                except TypeError:
                    idle.recv_multipart()

    async with answering(embed, tokenizer_json, max_unsent_bytes=30_000_000) as at:
        await asking(at, ask)


async def test_requests_under_way_get_errors_when_their_vectors_would_be_too_much_to_hold(tokenizer_json: bytes) -> None:
    arrived, held = asyncio.Semaphore(0), asyncio.Event()

    async def embed(call: EmbedCall) -> EmbedAnswer:
        arrived.release()
        await held.wait()
        return vectors_of(call, 1_000_000, tokenizer_json)

    async with answering(embed, tokenizer_json, max_unsent_bytes=10_000_000) as at:
        with zmq.Context() as context, context.socket(zmq.SUB) as idle, raw_sender(at) as sender:
            idle.rcvhwm, idle.rcvtimeo = 1, 10_000
            idle.connect(f"tcp://127.0.0.1:{at[1]}")
            idle.subscribe(b"idle")
            for number in range(30):
                sender.send_multipart([b"idle", b'["w1"]', b"%d" % number, b"1"])
            for _ in range(30):
                await arrived.acquire()
            held.set()
            await until_all_are_answered()
            answers = await asyncio.to_thread(lambda: [idle.recv_multipart()[1] for _ in range(30)])

    assert {b"server error 429: too many unread answers" in facts for facts in answers} == {False, True}


async def test_nobody_but_a_signal_terminates_the_service(
    start: Start, tokenizer_json: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    at = ports(await start(FakeBackend(tokenizer_json), **PORTS))
    with raw_sender(at) as sender:
        sender.send_multipart([b"0", b"TERMINATION", b"0", b"0"])
        while "ignored 1 requests to terminate" not in caplog.text:
            await asyncio.sleep(0.01)

    assert (1, 8) == (await asking(at, lambda client: client.encode(["w1"]))).shape


async def test_what_is_no_request_is_ignored_and_counted_without_a_word_of_it(
    start: Start, tokenizer_json: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    at = ports(await start(FakeBackend(tokenizer_json), **PORTS))
    with raw_sender(at) as sender:
        for frames in ([b"x"], [SECRET.encode()] * 4, [b""] * 5, [b"me", b"[]", b"1", b"-1"]):
            sender.send_multipart(frames)
        while "ignored 4 messages" not in caplog.text:
            await asyncio.sleep(0.01)

    assert (1, 8) == (await asking(at, lambda client: client.encode(["w1"]))).shape
    assert SECRET not in caplog.text


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=40) | st.sampled_from([b"1", b"SHOW_STATUS"]), min_size=1, max_size=5), max_size=8))
def test_the_ports_survive_any_frames(tokenizer_json: bytes, messages: list[list[bytes]]) -> None:
    async def main() -> None:
        async with answering(embed, tokenizer_json) as at:
            with raw_sender(at) as sender:
                for frames in messages:
                    sender.send_multipart(frames)
                assert (1, 8) == (await asking(at, lambda client: client.encode(["w1"]))).shape

    async def embed(call: EmbedCall) -> EmbedAnswer:
        return vectors_of(call, 8, tokenizer_json)

    asyncio.run(main())


async def test_who_waits_when_the_service_stops_is_told(tokenizer_json: bytes) -> None:
    gate = Gate()
    backend = FakeBackend(tokenizer_json, fault=gate)
    async with running([backend], Settings(grpc_port=0, http_port=0, drain_seconds=0.1, **PORTS)) as addresses:  # type: ignore[arg-type]
        at = ports(addresses)
        waiting = asyncio.create_task(asking(at, lambda client: client.encode(["w1"])))
        while not backend.batches:
            await asyncio.sleep(0.001)
    gate.open()
    with pytest.raises(TypeError, match="server error 503: the embedding service is stopping"):
        await waiting

    assert {asyncio.current_task()} == asyncio.all_tasks()
    for port in at:
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("taken", ["bert_port", "bert_port_out"])
async def test_a_port_that_is_taken_is_named(start: Start, tokenizer_json: bytes, taken: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port} is taken.*--{taken.replace('_', '-')} "):
            await start(FakeBackend(tokenizer_json), **{**PORTS, taken: port})


async def test_without_pyzmq_the_ports_say_what_to_install(
    start: Start, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(embedding_service, "zmq_edge")
    monkeypatch.delitem(sys.modules, "embedding_service.zmq_edge")
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(ListenError, match=r"install trunkline\[zmq\]"):
        await start(FakeBackend(tokenizer_json), **PORTS)
    assert (await start(FakeBackend(tokenizer_json))).bert is None


async def test_a_name_is_as_good_as_an_address() -> None:
    sockets = bind("localhost", 0, 0, ZmqLimits())
    await sockets.close()
    assert 0 not in {sockets.port, sockets.port_out}


def test_one_port_alone_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="set both bert_port and bert_port_out"):
        Settings(bert_port=5555)


def test_the_ports_work_on_the_loop_the_service_runs_on(tokenizer_json: bytes) -> None:
    async def main() -> None:
        async with running([FakeBackend(tokenizer_json)], Settings(grpc_port=0, http_port=0, **PORTS)) as addresses:  # type: ignore[arg-type]
            vectors = await asking(ports(addresses), lambda client: client.encode([f"w{number}" for number in range(500)]))
            assert (500, 8) == vectors.shape

    uvloop.run(main())
