"""OpenTelemetry traces of the gateway: a span a request, with one for preprocess, one for embed, and one for each head called.

The request's span begins when the request does, as calls to the backends name it as their parent; the others are made when it
has ended.
"""

from collections.abc import Mapping

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import Span, SpanKind, set_span_in_context

from clients.wire.spans import SpanSource, failed, nanoseconds, to_collector
from gateway.exchange import RequestFacts

__all__ = ["Traces", "to_collector"]


class Traces:
    """Makes spans for *processor*: of requests whose parent is sampled, and of *ratio* of those without a parent."""

    def __init__(self, processor: SpanProcessor, ratio: float) -> None:
        self._source = SpanSource("trunkline-gateway", processor, ratio)

    def begin(self, traceparent: str) -> tuple[Span, str]:
        """The span of a request that arrives, and the `traceparent` of what is done for it."""
        span = self._source.tracer.start_span("request", context=self._source.context_of(traceparent), kind=SpanKind.SERVER)
        return span, self._source.traceparent_of(span)

    def end(self, span: Span, facts: RequestFacts) -> None:
        """The request is over."""
        if span.is_recording():
            span.set_attributes(_attributes(facts))
            if facts.status >= 500:
                failed(span)
            self._stages(span, facts)
        span.end(facts.ended_ns)

    async def aclose(self) -> None:
        """Send what is left if that is quick."""
        await self._source.aclose()

    def _stages(self, span: Span, facts: RequestFacts) -> None:
        around = set_span_in_context(span, self._source.context_of(""))
        timings = facts.timings
        # The answer is written and sent between the last stage and the end, too quickly to be a stage.
        at = facts.ended_ns - nanoseconds(facts.total if timings is None else timings.total)
        for name, seconds in () if timings is None else (("preprocess", timings.preprocess), ("embed", timings.embed)):
            stage = self._source.tracer.start_span(name, context=around, start_time=at)
            at += nanoseconds(seconds)
            stage.end(at)
        for head in facts.heads:
            start = facts.ended_ns - nanoseconds(facts.ended - head.started)
            called = self._source.tracer.start_span(
                f"head {head.name}",
                context=around,
                kind=SpanKind.CLIENT,
                start_time=start,
                attributes={"head": head.name, "version": head.version, "outcome": head.outcome},
            )
            if head.outcome != "ok":
                failed(called)
            called.end(start + nanoseconds(head.seconds))


def _attributes(facts: RequestFacts) -> Mapping[str, str | int]:
    found: dict[str, str | int] = {
        "http.route": facts.method,
        "http.response.status_code": facts.status,
        "request_id": facts.request_id,
        "reason": facts.reason,
        "num_heads": facts.num_heads,
        "num_texts": facts.num_texts,
        "num_tokens": facts.num_tokens,
    }
    return {name: value for name, value in found.items() if value != ""}
