import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError

from clients import AsyncEmbeddingClient
from embedding_service import traces as module
from embedding_service.backend.fake import FakeBackend
from embedding_service.exchange import Exchanges, RequestFacts
from embedding_service.service import MissingExtra, running
from embedding_service.settings import Settings
from embedding_service.telemetry import Timings
from embedding_service.traces import Traces
from tests.embedding_service.conftest import Start

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


def facts(**values: Any) -> RequestFacts:
    given: dict[str, Any] = {
        "protocol": "grpc",
        "method": "Embed",
        "request_id": "r-1",
        "traceparent": "",
        "outcome": "ok",
        "num_inputs": 2,
        "num_tokens": 7,
        "trunk": "fake",
        "engine": "fake bf16",
        "ended_ns": 2_000_000_000,
        "total": 1.0,
        "timings": Timings(0.1, 0.2, 0.3, 0.7),
        "idle": 0.1,
    }
    return RequestFacts(**given | values)


def spans_of(*told: RequestFacts, ratio: float = 1.0) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(exporter), ratio)
    for one in told:
        traces.observe(one)
    return list(exporter.get_finished_spans())


def test_a_request_is_a_span_and_its_three_parts_are_children_at_their_times() -> None:
    *stages, request = spans_of(facts())

    assert ("embed", SpanKind.SERVER, 1_000_000_000, 2_000_000_000) == (
        request.name,
        request.kind,
        request.start_time,
        request.end_time,
    )
    assert {
        "protocol": "grpc",
        "method": "Embed",
        "request_id": "r-1",
        "trunk": "fake",
        "engine": "fake bf16",
        "outcome": "ok",
        "num_inputs": 2,
        "num_tokens": 7,
    } == dict(request.attributes or {})
    assert [
        ("tokenization", 1_200_000_000, 1_300_000_000),
        ("queue", 1_300_000_000, 1_500_000_000),
        ("inference", 1_500_000_000, 1_800_000_000),
    ] == [(stage.name, stage.start_time, stage.end_time) for stage in stages]
    assert request.context is not None
    assert {request.context.span_id} == {stage.parent and stage.parent.span_id for stage in stages}


def test_the_callers_trace_goes_on_and_its_choice_is_kept() -> None:
    *_, request = spans_of(facts(traceparent=SAMPLED), facts(traceparent=NOT_SAMPLED), ratio=0)

    assert request.context is not None
    assert request.parent is not None
    assert TRACE == f"{request.context.trace_id:032x}"
    assert PARENT == f"{request.parent.span_id:016x}"
    assert 4 == len(spans_of(facts(traceparent=SAMPLED), facts(traceparent=NOT_SAMPLED), ratio=0))


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + PARENT + "-01", SAMPLED.upper(), "\ud800", "é" * 60])
def test_a_header_that_cannot_be_read_begins_a_trace_of_its_own(header: str) -> None:
    *_, request = spans_of(facts(traceparent=header))

    assert request.parent is None
    assert [] == spans_of(facts(traceparent=header), ratio=0)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("ok", StatusCode.UNSET), ("invalid_argument", StatusCode.UNSET), ("cancelled", StatusCode.UNSET)]
    + [(outcome, StatusCode.ERROR) for outcome in ("internal", "unavailable", "overloaded", "deadline_exceeded")],
)
def test_only_what_is_the_services_fault_is_an_error(outcome: str, status: StatusCode) -> None:
    *_, request = spans_of(facts(outcome=outcome, timings=None))

    assert status == request.status.status_code


def test_a_request_without_vectors_has_no_children_and_no_trunk() -> None:
    [request] = spans_of(facts(outcome="invalid_argument", timings=None, trunk="", engine="", request_id=""))

    assert {"protocol", "method", "outcome", "num_inputs", "num_tokens"} == set(request.attributes or {})


def test_an_observer_that_fails_disturbs_neither_the_request_nor_the_others() -> None:
    def fail(_: RequestFacts) -> None:
        raise ValueError

    told: list[RequestFacts] = []
    exchange = Exchanges([fail, told.append]).begin("http", "/embed", tuple)
    exchange.end()

    assert ["ok"] == [one.outcome for one in told]


class Collector(ThreadingHTTPServer):
    """An OTLP collector on a free port: remembers what it is sent, answers *status*, and hangs first where *hangs* is not set."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        self.status = status
        self.may_answer = threading.Event()
        self.may_answer.set()
        super().__init__(("127.0.0.1", 0), _Post)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spans(self) -> list[Any]:
        return [
            span
            for _, request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Post(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.may_answer.wait(10)
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        with contextlib.suppress(ConnectionError):
            self.send_response(self.server.status)
            self.send_header("content-length", "0")
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name there)
        pass


@contextlib.contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    with Collector(status) as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            collector.may_answer.set()
            collector.shutdown()
            thread.join()


async def ask(backend: FakeBackend, url: str, **settings: object) -> None:
    """Start, ask once by each protocol, with and without a parent, and stop."""
    values = {"grpc_port": 0, "http_port": 0, "otlp_endpoint": url, "otlp_sample_ratio": 1.0, **settings}
    async with running([backend], Settings(**values)) as addresses:  # type: ignore[arg-type]
        async with AsyncEmbeddingClient(addresses.grpc) as client:
            await client.embed(["w1 secret", "w3"], request_id="r-1")
        async with httpx.AsyncClient(base_url=addresses.http) as http:
            answer = await http.post("/embed", json={"inputs": "w2 secret"}, headers={"traceparent": SAMPLED})
            assert 200 == answer.status_code


async def until_threads_are(names: set[str]) -> None:
    """The SDK's threads end by themselves, some after the service."""
    async with asyncio.timeout(10):
        while {thread.name for thread in threading.enumerate() if thread.name.startswith(("Otel", "traces"))} - names:
            await asyncio.sleep(0.01)


async def test_a_collector_gets_the_spans_when_the_service_stops_at_the_latest(tokenizer_json: bytes) -> None:
    began = time.time_ns()
    with collecting() as collector:
        await ask(FakeBackend(tokenizer_json), collector.url + "/")

    assert {"/v1/traces"} == {path for path, _ in collector.requests}
    requests = [span for span in collector.spans() if span.name == "embed"]
    assert ["", TRACE] == sorted(span.trace_id.hex() if span.parent_span_id else "" for span in requests)
    assert 6 == len([span for span in collector.spans() if span.name in {"tokenization", "queue", "inference"}])
    for span in collector.spans():
        assert began <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    assert not any(b"secret" in request.SerializeToString() for _, request in collector.requests)
    assert b"trunkline-embedding" in collector.requests[0][1].SerializeToString()
    await until_threads_are(set())


async def test_a_collector_that_refuses_is_no_matter(tokenizer_json: bytes) -> None:
    with collecting(status=400) as collector:
        await ask(FakeBackend(tokenizer_json), collector.url)

    assert collector.requests
    await until_threads_are(set())


async def test_a_collector_that_is_not_there_is_no_matter(tokenizer_json: bytes) -> None:
    with collecting() as collector:
        gone = collector.url
    await ask(FakeBackend(tokenizer_json), gone)
    await until_threads_are(set())


async def test_a_collector_that_hangs_does_not_hold_the_service_up(
    tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.1)
    with collecting() as collector:
        collector.may_answer.clear()
        await ask(FakeBackend(tokenizer_json), collector.url)
        assert not collector.requests
    await until_threads_are(set())


async def test_nothing_is_sampled_at_a_ratio_of_zero(tokenizer_json: bytes) -> None:
    with collecting() as collector:
        await ask(FakeBackend(tokenizer_json), collector.url, otlp_sample_ratio=0.0)

    assert {TRACE} == {span.trace_id.hex() for span in collector.spans()}
    await until_threads_are(set())


async def test_missing_packages_are_named_at_the_start(
    start: Start, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "embedding_service.traces")
    monkeypatch.delitem(sys.modules, "clients.wire.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtra, match=r"install trunkline\[otel\]"):
        await start(FakeBackend(tokenizer_json), otlp_endpoint="http://127.0.0.1:4318")


@pytest.mark.parametrize(
    "url", ["collector", "grpc://host:4317", "http://", "http://user:s3cret@host", "http://host:port", "http://host?token=s3cret"]
)
def test_an_address_that_is_no_collectors_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings(otlp_endpoint=url)

    [problem] = refusal.value.errors(include_url=False, include_input=False)
    assert "OTEL_EXPORTER_OTLP_HEADERS" in problem["msg"]
    assert "s3cret" not in problem["msg"]
