import asyncio
import contextlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from clients import AsyncHeadClient, Deadline, Prediction
from gateway import app as app_module
from gateway import logs
from gateway.backends.heads import ClientPredictor
from gateway.coalesce import CallLimits
from gateway.exchange import MAX_HEADS_TOLD, Exchanges, RequestFacts, WithExchanges, head_ended, ids_passed_on
from gateway.settings import Settings
from gateway.traces import Traces
from tests.gateway.page_fakes import client_of, fake_gateway, manifest

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
SECRET = "zq7x"


@contextlib.contextmanager
def logged(log_format: logs.LogFormat = "json") -> Iterator[io.StringIO]:
    """What this process logs meanwhile, as the gateway would write it to stderr."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    logs.configure(log_format, stream)
    try:
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)


async def test_each_request_is_one_line_with_ids_sizes_and_stages_and_never_a_text_or_a_key(tmp_path: Path) -> None:
    with logged() as stream:
        async with fake_gateway(tmp_path, observers=[logs.access]) as (app, _), client_of(app) as http:
            headers = {"x-request-id": "r-1", "traceparent": SAMPLED, "authorization": f"Bearer {SECRET}"}
            await http.post("/v1/classify", json={"texts": [SECRET, "a b"], "heads": ["spam", "slow"]}, headers=headers)
            await http.post("/v1/classify", json={"text": SECRET, "heads": [SECRET]})
            await http.post("/v1/classify", content=b'{"text": "' + SECRET.encode())
            await http.get(f"/{SECRET}?{SECRET}={SECRET}")

    assert SECRET not in stream.getvalue()
    first, unknown, broken, lost = (json.loads(line) for line in stream.getvalue().splitlines())
    stages = {name: first.pop(name) for name in ("preprocess_ms", "embed_ms", "heads_ms", "total_ms")}
    assert all(value >= 0 for value in stages.values())
    for name in ("ts", "level", "logger", "message"):
        first.pop(name)
    assert {
        "request_id": "r-1",
        "trace_id": TRACE,
        "method": "/v1/classify",
        "status": 200,
        "num_heads": 2,
        "num_failed_heads": 1,
        "num_texts": 2,
        "num_tokens": 7,
    } == first
    assert (404, "not_found") == (unknown["status"], unknown["reason"])
    assert (400, "invalid_argument") == (broken["status"], broken["reason"])
    assert 404 == lost["status"]
    assert "method" not in lost


async def test_the_whole_application_tells_by_which_route_it_answered(tmp_path: Path) -> None:
    with logged() as stream:
        app = app_module.create_app(Settings(catalogue=str(tmp_path / "none.json"), access_log=True))
        async with app.router.lifespan_context(app) as state:

            async def served(scope: Any, receive: Any, send: Any) -> None:
                await app(scope | {"state": state}, receive, send)

            async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://gateway") as http:
                assert 200 == (await http.get("/healthz")).status_code
                assert 400 == (await http.post("/v1/classify", content=b"{")).status_code
                assert 200 == (await http.get("/")).status_code

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert ["/healthz", "/v1/classify", "/"] == [line["method"] for line in lines if line["logger"] == logs.ACCESS]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é"])
async def test_an_id_that_is_none_is_replaced(tmp_path: Path, given: str) -> None:
    async with fake_gateway(tmp_path) as (app, _), client_of(app) as http:
        headers = httpx.Headers({"x-request-id": given}, encoding="utf-8")
        found = (await http.post("/v1/classify", json={"text": "one"}, headers=headers)).headers["x-request-id"]

    assert 32 == len(found)
    assert found != given


class HeadServer:
    """Remembers the ids that calls came with; the first one waits for *gate*."""

    def __init__(self) -> None:
        self.came: list[tuple[str, str]] = []
        self.gate = asyncio.Event()

    async def predict(self, head: str, inputs: dict[str, Any], *, request_id: str, traceparent: str, **_: Any) -> Prediction:
        self.came.append((request_id, traceparent))
        if len(self.came) == 1:
            await self.gate.wait()
        return Prediction({"scores": np.zeros((len(inputs["embedding"]), 2), np.float32)}, 1)


async def test_ids_go_on_to_the_head_server_but_not_with_a_call_that_several_requests_share() -> None:
    server = HeadServer()
    predictor = ClientPredictor([cast("AsyncHeadClient", server)], CallLimits(max_calls=1))
    spam = manifest("spam", 1, ("a", "b"))

    async def work(scope: Any, receive: Any, send: Any) -> None:
        await predictor.predict(spam, [np.zeros(4, np.float32)], Deadline.after(5))

    app = WithExchanges(work, Exchanges())

    async def ask(headers: Sequence[tuple[bytes, bytes]]) -> None:
        await app({"type": "http", "headers": headers}, cast("Any", None), cast("Any", None))

    first = asyncio.create_task(ask([(b"x-request-id", b"r-1"), (b"traceparent", SAMPLED.encode())]))
    while not server.came:
        await asyncio.sleep(0)
    others = [asyncio.create_task(ask([(b"x-request-id", name)])) for name in (b"r-2", b"r-3")]
    await asyncio.sleep(0)
    server.gate.set()
    await asyncio.gather(first, *others)
    await ask([(b"x-request-id", b"r-4")])
    await ask([(b"traceparent", b"nonsense")])
    await predictor.close()

    assert [("r-1", SAMPLED), ("", ""), ("r-4", ""), ("", "")] == server.came
    assert ("", "") == ids_passed_on()


async def test_an_observer_that_fails_disturbs_nobody(tmp_path: Path) -> None:
    told: list[RequestFacts] = []

    def fail(_: RequestFacts) -> None:
        raise ValueError(SECRET)

    with logged() as stream:
        async with fake_gateway(tmp_path, observers=[fail, told.append]) as (app, _), client_of(app) as http:
            assert 200 == (await http.post("/v1/classify", json={"text": "one"})).status_code

    assert [200] == [facts.status for facts in told]
    assert "ValueError" in stream.getvalue()
    assert SECRET not in stream.getvalue()


async def spans_of(folder: Path, *, headers: dict[str, str] | None = None, ratio: float = 1.0) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(exporter), ratio)
    async with fake_gateway(folder, traces=traces) as (app, _), client_of(app) as http:
        await http.post("/v1/classify", json={"text": SECRET, "heads": ["spam", "slow"]}, headers=headers)
        await http.post("/v1/classify", json={"text": SECRET, "heads": [SECRET]}, headers=headers)
    await traces.aclose()
    return list(exporter.get_finished_spans())


async def test_a_request_is_a_span_and_stages_and_heads_are_its_children(tmp_path: Path) -> None:
    *parts, request, refused = await spans_of(tmp_path, headers={"traceparent": SAMPLED, "x-request-id": "r-1"})

    assert ("request", SpanKind.SERVER) == (request.name, request.kind)
    assert request.parent is not None
    assert request.context is not None
    assert (TRACE, PARENT) == (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}")
    assert {"preprocess", "embed", "head spam", "head slow"} == {part.name for part in parts}
    assert {request.context.span_id} == {part.parent and part.parent.span_id for part in parts}
    for part in parts:
        assert (request.start_time or 0) <= (part.start_time or 0) + 1_000_000
        assert (part.end_time or 0) <= (request.end_time or 0) + 1_000_000
    assert {"head slow"} == {part.name for part in parts if part.status.status_code is StatusCode.ERROR}
    attributes = dict(request.attributes or {})
    assert ("/v1/classify", 200, "r-1", 2) == tuple(
        attributes[name] for name in ("http.route", "http.response.status_code", "request_id", "num_heads")
    )
    assert StatusCode.UNSET is refused.status.status_code
    assert not any(SECRET in str(span.to_json()) for span in (*parts, request, refused))


async def test_a_trace_that_is_not_sampled_stays_so(tmp_path: Path) -> None:
    assert [] == await spans_of(tmp_path, headers={"traceparent": SAMPLED[:-2] + "00"})
    assert [] == await spans_of(tmp_path, ratio=0.0)
    assert 6 == len(await spans_of(tmp_path, headers={"traceparent": SAMPLED}, ratio=0.0))


async def test_what_is_done_for_a_request_names_its_span_as_parent() -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(exporter), 1.0)
    passed: list[str] = []

    async def work(scope: Any, receive: Any, send: Any) -> None:
        passed.append(ids_passed_on().traceparent)

    headers = [(b"traceparent", SAMPLED.encode())]
    await WithExchanges(work, Exchanges(traces=traces))(
        {"type": "http", "headers": headers}, cast("Any", None), cast("Any", None)
    )
    await traces.aclose()

    [span] = exporter.get_finished_spans()
    assert span.context is not None
    assert [f"00-{TRACE}-{span.context.span_id:016x}-01"] == passed


def test_missing_packages_are_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("gateway.traces", "clients.wire.spans"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # type: ignore[arg-type]
    with pytest.raises(app_module.MissingExtra, match=r"install trunkline\[otel\]"):
        app_module.create_app(Settings(otlp_endpoint="http://127.0.0.1:4318"))


@pytest.mark.parametrize(
    "url", ["collector", "http://", "http://user:s3cret@host", "http://host:port", "http://host?token=s3cret"]
)
def test_an_address_that_is_no_collectors_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings(otlp_endpoint=url)

    [problem] = refusal.value.errors(include_url=False, include_input=False)
    assert "OTEL_EXPORTER_OTLP_HEADERS" in problem["msg"]
    assert "s3cret" not in problem["msg"]


async def test_of_a_request_that_goes_on_for_ever_the_first_calls_are_kept() -> None:
    told: list[RequestFacts] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for number in range(2 * MAX_HEADS_TOLD):
            head_ended("spam", 7, "ok", float(number), 0.1)

    async def nothing(*_: object) -> Any:
        return None

    await WithExchanges(app, Exchanges([told.append]))({"type": "http", "headers": []}, nothing, nothing)

    assert [MAX_HEADS_TOLD] == [len(facts.heads) for facts in told]
