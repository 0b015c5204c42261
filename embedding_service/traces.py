"""OpenTelemetry traces: a span a request with one for tokenization, queue and inference each, made when the request has ended.

Protocol facts: W3C trace context, whose `traceparent` is the parent when it can be read; OTLP over HTTP, which posts to
ENDPOINT/v1/traces. Spans leave by a thread of the SDK's, in batches; what cannot be sent is lost and costs no request anything.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from clients.wire.metadata import TRACEPARENT
from embedding_service.exchange import RequestFacts
from embedding_service.logs import AtMostEvery

SEND_SECONDS: Final = 5.0
"""One batch of spans, its retries included."""

FLUSH_SECONDS: Final = 2.0
"""Given to the last spans when the service stops."""

_SERVER_FAULTS: Final = frozenset({"internal", "unavailable", "overloaded", "deadline_exceeded"})


_SELDOM: Final = AtMostEvery(60)
"""For the exporter, which has a line to say of every batch that it cannot send."""


def to_collector(endpoint: str) -> SpanProcessor:
    """What sends spans to the collector at *endpoint*, the address without its path."""
    exporter = trace_exporter.OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_SECONDS)
    logging.getLogger(trace_exporter.__name__).addFilter(_SELDOM)
    return BatchSpanProcessor(exporter)


class Traces:
    """Makes spans for *processor*: of requests whose parent is sampled, and of *ratio* of those without a parent."""

    def __init__(self, processor: SpanProcessor, ratio: float) -> None:
        resource = Resource.create({"service.name": "trunkline-embedding", "service.version": version("trunkline")})
        # Not the process's global one, and closed by whoever made it.
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("embedding_service")
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, facts: RequestFacts) -> None:
        """See `exchange.Observer`."""
        around = self._propagator.extract({TRACEPARENT: facts.traceparent} if facts.traceparent else {}, Context())
        span = self._tracer.start_span(
            "embed",
            context=around,
            kind=SpanKind.SERVER,
            attributes=_attributes(facts),
            start_time=facts.ended_ns - _nanoseconds(facts.total),
        )
        if span.is_recording():
            self._stages(facts, set_span_in_context(span, around))
            _judge(span, facts.outcome)
        span.end(facts.ended_ns)

    async def aclose(self) -> None:
        """Send what is left if that is quick. A collector that hangs is left to a thread that ends with the process."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has gone meanwhile
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="traces-flush", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()

    def _stages(self, facts: RequestFacts, around: Context) -> None:
        timings = facts.timings
        if timings is None:
            return
        at = facts.ended_ns - _nanoseconds(facts.idle) - _nanoseconds(timings.total)
        for name, seconds in (("tokenization", timings.tokenization), ("queue", timings.queue), ("inference", timings.inference)):
            stage = self._tracer.start_span(name, context=around, start_time=at)
            at += _nanoseconds(seconds)
            stage.end(at)


def _attributes(facts: RequestFacts) -> Mapping[str, str | int]:
    found: dict[str, str | int] = {
        "protocol": facts.protocol,
        "method": facts.method,
        "request_id": facts.request_id,
        "trunk": facts.trunk,
        "engine": facts.engine,
        "outcome": facts.outcome,
        "num_inputs": facts.num_inputs,
        "num_tokens": facts.num_tokens,
    }
    return {name: value for name, value in found.items() if value != ""}


def _judge(span: Span, outcome: str) -> None:
    if outcome in _SERVER_FAULTS:
        span.set_status(Status(StatusCode.ERROR))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
