"""OpenTelemetry traces: a span a request with one for tokenization, queue and inference each, made when the request has ended."""

from collections.abc import Mapping
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, set_span_in_context

from clients.wire.spans import SpanSource, failed, nanoseconds, to_collector
from embedding_service.exchange import RequestFacts

__all__ = ["FLUSH_SECONDS", "Traces", "to_collector"]

FLUSH_SECONDS: Final = 2.0
"""Given to the last spans when the service stops."""

_SERVER_FAULTS: Final = frozenset({"internal", "unavailable", "overloaded", "deadline_exceeded"})


class Traces:
    """Makes spans for *processor*: of requests whose parent is sampled, and of *ratio* of those without a parent."""

    def __init__(self, processor: SpanProcessor, ratio: float) -> None:
        self._source = SpanSource("trunkline-embedding", processor, ratio)

    def observe(self, facts: RequestFacts) -> None:
        """See `exchange.Observer`."""
        around = self._source.context_of(facts.traceparent)
        span = self._source.tracer.start_span(
            "embed",
            context=around,
            kind=SpanKind.SERVER,
            attributes=_attributes(facts),
            start_time=facts.ended_ns - nanoseconds(facts.total),
        )
        if span.is_recording():
            self._stages(facts, set_span_in_context(span, around))
            if facts.outcome in _SERVER_FAULTS:
                failed(span)
        span.end(facts.ended_ns)

    async def aclose(self) -> None:
        """Send what is left if that is quick."""
        await self._source.aclose(FLUSH_SECONDS)

    def _stages(self, facts: RequestFacts, around: Context) -> None:
        timings = facts.timings
        if timings is None:
            return
        at = facts.ended_ns - nanoseconds(facts.idle) - nanoseconds(timings.total)
        for name, seconds in (("tokenization", timings.tokenization), ("queue", timings.queue), ("inference", timings.inference)):
            stage = self._source.tracer.start_span(name, context=around, start_time=at)
            at += nanoseconds(seconds)
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
