import asyncio
import contextlib
import gc
import io
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta

import grpc
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import AsyncEmbeddingClient, Overloaded, TrunklineError
from clients.wire import embedding_pb2 as pb
from clients.wire.metadata import EMBEDDING_SERVICE
from embedding_service import logs
from embedding_service.backend import Batch
from embedding_service.backend.fake import FakeBackend
from embedding_service.errors import Unavailable
from embedding_service.exchange import Exchanges, RequestFacts, heard
from embedding_service.infer import EmbedAnswer, EmbedCall
from embedding_service.service import Addresses, running
from embedding_service.settings import Settings
from tests.embedding_service.conftest import Start
from tests.embedding_service.test_batching import Gate
from tests.embedding_service.test_zmq_edge import asking, ports

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LEFT, RIGHT = "zq7x", "k9vw"


@contextlib.contextmanager
def logged(log_format: logs.LogFormat = "json") -> Iterator[io.StringIO]:
    """What this process logs meanwhile, as the service would write it to stderr."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    logs.configure(log_format, stream)
    try:
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)


def events(stream: io.StringIO, logger: str = logs.ACCESS) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in stream.getvalue().split("\n") if line]
    return [line for line in lines if line["logger"] == logger]


def test_a_json_line_has_its_time_level_logger_message_and_fields() -> None:
    with logged() as stream:
        logging.getLogger("embedding_service.x").info("two\nlines %d", 7, extra={"fields": {"request_id": "r1", "n": 2}})

    [line] = stream.getvalue().splitlines()
    event = json.loads(line)
    assert datetime.fromisoformat(event.pop("ts")).utcoffset() == timedelta(0)
    assert {
        "level": "info",
        "logger": "embedding_service.x",
        "message": "two\nlines 7",
        "request_id": "r1",
        "n": 2,
    } == event


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_of_an_exception_only_its_class_and_place_are_told(log_format: logs.LogFormat) -> None:
    with logged(log_format) as stream:
        try:
            int(LEFT)
        except ValueError:
            logging.getLogger("any").exception("it failed")

    assert "ValueError" in stream.getvalue()
    assert "test_logs.py" in stream.getvalue()
    assert LEFT not in stream.getvalue()


def test_what_has_no_place_in_json_is_replaced() -> None:
    with logged() as stream:
        logging.getLogger("any").warning("\ud800 %s", "\u2028", extra={"fields": {"what": object()}})

    [line, _] = stream.getvalue().split("\n")
    assert ("? \u2028", "object") == (json.loads(line)["message"], json.loads(line)["what"])


def test_the_text_format_is_the_message_and_its_fields() -> None:
    with logged("text") as stream:
        logging.getLogger("embedding_service").info("draining")
        logging.getLogger("embedding_service").info("request", extra={"fields": {"outcome": "ok"}})

    assert "embedding: draining\nembedding: request outcome=ok\n" == stream.getvalue()


def test_a_repeated_message_passes_once_in_a_while() -> None:
    passing = logs.AtMostEvery(60)
    records = [logging.LogRecord("n", 30, "p", 1, message, (), None) for message in ("a", "a", "b", "a")]

    assert [True, False, True, False] == [passing.filter(record) for record in records]


@given(st.one_of(st.text(), st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True)))
def test_a_trace_id_is_hexadecimal_or_nothing(header: str) -> None:
    found = logs.trace_id(header)

    assert found == "" or (len(found) == 32 and set(found) <= set("0123456789abcdef"))


async def test_a_fault_of_the_event_loop_is_told_without_its_message() -> None:
    async def fail() -> None:
        raise ValueError(LEFT)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.on_loop_fault)
    with logged() as stream:
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task
        gc.collect()

    [event] = events(stream, "embedding_service.logs")
    assert "never retrieved" in str(event["message"])
    assert "ValueError" in str(event["exception"])
    assert LEFT not in stream.getvalue()


async def test_each_request_is_one_access_event(start: Start, tokenizer_json: bytes) -> None:
    with logged() as stream:
        addresses = await start(FakeBackend(tokenizer_json), access_log=True)
        async with AsyncEmbeddingClient(addresses.grpc) as client:
            await client.embed(["w1 w2", "w3"], request_id="r-1")
        async with httpx.AsyncClient(base_url=addresses.http) as http:
            headers = {"x-request-id": "r-2", "traceparent": TRACE}
            await http.post("/v1/embeddings", json={"input": "w1 w2"}, headers=headers)
            await http.post("/trunks/fake/embed", json={"inputs": ["w1", "w2"]})
            await http.post("/embed", json={"inputs": ""}, headers={"x-request-id": "x" * 129})
            await http.post("/nothing/here")
            await http.get("/metrics")

    found = events(stream)
    durations = {"tokenization_ms", "queue_ms", "inference_ms", "total_ms"}
    for event in found:
        assert "request" == event.pop("message")
        answered = event["outcome"] == "ok"
        assert durations & event.keys() == (durations if answered else {"total_ms"})
        for name in (*durations, "ts", "level", "logger"):
            event.pop(name, None)
    assert [
        {
            "request_id": "r-1",
            "protocol": "grpc",
            "method": "Embed",
            "outcome": "ok",
            "trunk": "fake",
            "num_inputs": 2,
            "num_tokens": 7,
        },
        {
            "request_id": "r-2",
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "protocol": "http",
            "method": "/v1/embeddings",
            "outcome": "ok",
            "trunk": "fake",
            "num_inputs": 1,
            "num_tokens": 4,
        },
        {
            "protocol": "http",
            "method": "/trunks/{trunk}/embed",
            "outcome": "ok",
            "trunk": "fake",
            "num_inputs": 2,
            "num_tokens": 6,
        },
        {"protocol": "http", "method": "/embed", "outcome": "invalid_argument", "num_inputs": 0, "num_tokens": 0},
        {"protocol": "http", "outcome": "not_found", "num_inputs": 0, "num_tokens": 0},
    ] == found


async def test_a_message_of_a_stream_is_one_event_once_all_its_inputs_have_settled(start: Start, tokenizer_json: bytes) -> None:
    gate = Gate()
    with logged() as stream:
        addresses = await start(FakeBackend(tokenizer_json, fault=gate), access_log=True)
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            call = channel.stream_stream(
                f"/{EMBEDDING_SERVICE}/EmbedStream",
                request_serializer=pb.EmbedStreamRequest.SerializeToString,
                response_deserializer=pb.EmbedStreamResponse.FromString,
            )(metadata=(("x-request-id", "s-1"),))
            texts = [["w1", "w2"], ["", "w3"], ["w4"]]
            for number, inputs in zip((0, 2, 4), texts, strict=True):
                request = pb.EmbedRequest(inputs=[pb.Input(text=text) for text in inputs])
                await call.write(pb.EmbedStreamRequest(request=request, first_number=number))
            await call.write(pb.EmbedStreamRequest(abandoned=[4]))
            async with asyncio.timeout(5):
                while len(events(stream)) < 1:
                    await asyncio.sleep(0.005)
            gate.open()
            await call.done_writing()
            async for _ in call:
                pass

    found = events(stream)
    assert [("cancelled", 1, 0), ("invalid_argument", 2, 3), ("ok", 2, 6)] == sorted(
        (str(event["outcome"]), event["num_inputs"], event["num_tokens"]) for event in found
    )
    assert {("s-1", "grpc-stream")} == {(event["request_id"], event["protocol"]) for event in found}


async def test_a_request_of_the_old_client_is_told_too(start: Start, tokenizer_json: bytes) -> None:
    with logged() as stream:
        addresses = await start(FakeBackend(tokenizer_json), access_log=True, bert_port=0, bert_port_out=0)
        vectors = await asking(ports(addresses), lambda client: client.encode(["w1 w2", "w3"]))
        async with httpx.AsyncClient(base_url=addresses.http) as http:
            await http.post("/encode", json={"id": 1, "texts": [f"w{number % 200}" for number in range(300)]})

    assert (2, 8) == vectors.shape
    assert [("zmq", "encode", "ok", 2, 7), ("http", "/encode", "ok", 300, 900)] == [
        tuple(event[name] for name in ("protocol", "method", "outcome", "num_inputs", "num_tokens")) for event in events(stream)
    ]


async def test_what_leaves_an_exchange_is_its_outcome() -> None:
    told: list[RequestFacts] = []
    exchanges = Exchanges([told.append])

    async def fails(error: BaseException) -> None:
        async def embed(_: EmbedCall) -> EmbedAnswer:
            raise error

        with contextlib.suppress(BaseException):
            await heard(embed, lambda: exchanges.begin("zmq", "encode", tuple))(EmbedCall(["w1"], 1.0))

    for error in (Unavailable("stopping"), asyncio.CancelledError(), KeyError(LEFT)):
        await fails(error)

    assert ["unavailable", "cancelled", "internal"] == [facts.outcome for facts in told]
    assert {1} == {facts.num_inputs for facts in told}


async def test_nothing_is_told_of_requests_unless_it_is_asked_for(start: Start, tokenizer_json: bytes) -> None:
    with logged() as stream:
        addresses = await start(FakeBackend(tokenizer_json))
        async with AsyncEmbeddingClient(addresses.grpc) as client:
            await client.embed(["w1"])

    assert "" == stream.getvalue()


@pytest.mark.parametrize("edge", ["grpc", "http"])
async def test_a_failed_pass_is_told_however_it_was_asked_for_but_not_with_the_engines_words(
    start: Start, tokenizer_json: bytes, edge: str
) -> None:
    def fault(_: Batch) -> None:
        raise RuntimeError(LEFT)

    with logged() as stream:
        addresses = await start(FakeBackend(tokenizer_json, fault=fault))
        async with AsyncEmbeddingClient(addresses.grpc) as client, httpx.AsyncClient(base_url=addresses.http) as http:
            if edge == "grpc":
                with pytest.raises(TrunklineError):
                    await client.embed(["w1"])
            else:
                assert 503 == (await http.post("/v1/embeddings", json={"input": "w1"})).status_code

    [event] = events(stream, "embedding_service.batching")
    assert "RuntimeError, " in str(event["message"])
    assert LEFT not in stream.getvalue()


@contextlib.asynccontextmanager
async def small_service(tokenizer_json: bytes, fault: Gate) -> AsyncIterator[Addresses]:
    def breaks_or_waits(batch: Batch) -> None:
        fault(batch)
        if any(28_177 in ids for ids in batch.token_ids):
            raise RuntimeError(f"{batch.token_ids}")

    options = Settings(grpc_port=0, http_port=0, access_log=True, max_request_inputs=4, max_body_bytes=4_096, drain_seconds=2)  # type: ignore[arg-type]
    async with running([FakeBackend(tokenizer_json, fault=breaks_or_waits)], options) as addresses:
        yield addresses


async def ask_in_all_ways(addresses: Addresses, text: str, gate: Gate) -> None:
    """Requests with *text* in every place a caller can put it, and of every outcome."""
    ids = [2, 28_177, 29_178, 3]
    async with AsyncEmbeddingClient(addresses.grpc, timeout=5) as client, httpx.AsyncClient(base_url=addresses.http) as http:
        calls = [
            client.embed([text]),
            client.embed([text] * 5),
            client.embed([f"{text} " * 70], truncation="error"),
            client.embed([text], trunk="other " + text),
            client.embed([ids]),
            client.embed([[2, 28_177, 99_999]]),
            http.post("/v1/embeddings", json={"input": text, "model": text, "user": text}),
            http.post("/v1/embeddings", json={"input": {text: text}}),
            http.post("/v1/embeddings", content=b'{"input": "' + text.encode("utf-16")),
            http.post("/v1/embeddings", json={"input": [ids]}),
            http.post("/embed", json={"inputs": [text, text + text], "truncate": False}),
            http.post("/embed", json={"inputs": text, "prompt_name": text}),
            http.post("/embed", json={"inputs": text * 1_000}),
            http.post("/tokenize", json={"inputs": text}),
            http.post("/similarity", json={"inputs": {"source_sentence": text, "sentences": [text]}}),
            http.post(f"/trunks/{LEFT}{RIGHT}/embed", json={"inputs": text}),
            http.post(f"/{LEFT}{RIGHT}?{LEFT}={RIGHT}", json={"inputs": text}),
        ]
        gate.open()
        stream = client.stream()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await stream.close()
    assert not any(isinstance(answer, Overloaded | AssertionError) for answer in answers)


@settings(max_examples=12, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(["json", "text"]))
def test_no_input_is_in_any_log_line_whatever_becomes_of_it(
    tokenizer_json: bytes, middle: str, log_format: logs.LogFormat
) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with small_service(tokenizer_json, gate) as addresses:
            await ask_in_all_ways(addresses, f"{LEFT} {middle} {RIGHT}", gate)

    with logged(log_format) as stream:
        asyncio.run(scenario())

    told = re.sub(r'_ms"?[:=][\d.]+|"ts":"[^"]+"', "", stream.getvalue())
    assert told.count("outcome") >= 16
    for secret in (LEFT, RIGHT, LEFT.encode("utf-16-le").decode("latin-1"), "28177", "29178", "99999"):
        assert secret not in told


def test_the_log_goes_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.configure()
        logging.getLogger("embedding_service").info("here")
    finally:
        root.handlers[:] = before
        root.setLevel(level)

    assert ("", "embedding: here\n") == capsys.readouterr()
    assert sys.stderr is not None
