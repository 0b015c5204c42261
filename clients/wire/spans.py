"""OpenTelemetry as our services use it; needs the packages of the extra `otel`, and is imported only where it is asked for.

Protocol facts: W3C trace context, whose `traceparent` is the parent when it can be read; OTLP over HTTP, which posts to
ENDPOINT/v1/traces. Spans leave by a thread of the SDK's, in batches; what cannot be sent is lost and costs no request anything.
"""

import asyncio
import contextlib
import logging
import threading
from importlib.metadata import version
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from clients.wire.logs import AtMostEvery
from clients.wire.metadata import TRACEPARENT

SEND_SECONDS: Final = 5.0
"""One batch of spans, its retries included."""

FLUSH_SECONDS: Final = 2.0
"""Given to the last spans when the service stops."""

_SELDOM: Final = AtMostEvery(60)
"""For the exporter, which has a line to say of every batch that it cannot send."""


def to_collector(endpoint: str) -> SpanProcessor:
    """What sends spans to the collector at *endpoint*, the address without its path."""
    exporter = trace_exporter.OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_SECONDS)
    logging.getLogger(trace_exporter.__name__).addFilter(_SELDOM)
    return BatchSpanProcessor(exporter)


class SpanSource:
    """Spans of *service* for *processor*: of requests whose parent is sampled, and of *ratio* of those without a parent."""

    def __init__(self, service: str, processor: SpanProcessor, ratio: float) -> None:
        resource = Resource.create({"service.name": service, "service.version": version("trunkline")})
        # Not the process's global one, and closed by whoever made it.
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._propagator = TraceContextTextMapPropagator()
        self.tracer = self._provider.get_tracer(service)

    def context_of(self, traceparent: str) -> Context:
        """Where the parent is that *traceparent* names; nowhere when it cannot be read."""
        return self._propagator.extract({TRACEPARENT: traceparent} if traceparent else {}, Context())

    def traceparent_of(self, span: Span) -> str:
        """The header that makes *span* the parent."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span, Context()))
        return carrier.get(TRACEPARENT, "")

    async def aclose(self, flush_seconds: float = FLUSH_SECONDS) -> None:
        """Send what is left if that is quick. A collector that hangs is left to a thread that ends with the process."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has gone meanwhile
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="traces-flush", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(flush_seconds):
                await done.wait()


def failed(span: Span) -> None:
    """*span* is of something that went wrong by the service's own fault."""
    span.set_status(Status(StatusCode.ERROR))


def nanoseconds(seconds: float) -> int:
    """As OpenTelemetry counts."""
    return round(seconds * 1e9)
