"""The embedding service's log lines; their format is `clients.wire.logs`. What a request was about is in none of them."""

import logging
from typing import Final, TextIO

from clients.wire.logs import AtMostEvery, LogFormat, describe, event_fields, loop_faults, milliseconds, trace_id
from clients.wire.logs import configure as configure_service
from embedding_service.exchange import RequestFacts

__all__ = ["ACCESS", "AtMostEvery", "LogFormat", "access", "configure", "describe", "on_loop_fault", "trace_id"]

ACCESS: Final = "embedding.access"
_access = logging.getLogger(ACCESS)

on_loop_fault: Final = loop_faults(logging.getLogger(__name__))
"""For `loop.set_exception_handler`."""


def configure(log_format: LogFormat = "text", stream: TextIO | None = None) -> None:
    """Have this process log in *log_format*, to stderr: warnings of all, and what our own parts do."""
    configure_service(log_format, stream, service="embedding", info=("embedding_service", ACCESS))


def access(facts: RequestFacts) -> None:
    """One event for one request; see `exchange.Observer`. Durations are in milliseconds."""
    timings = facts.timings
    extra = event_fields(
        request_id=facts.request_id,
        trace_id=trace_id(facts.traceparent),
        protocol=facts.protocol,
        method=facts.method,
        outcome=facts.outcome,
        trunk=facts.trunk,
        num_inputs=facts.num_inputs,
        num_tokens=facts.num_tokens,
        tokenization_ms=None if timings is None else milliseconds(timings.tokenization),
        queue_ms=None if timings is None else milliseconds(timings.queue),
        inference_ms=None if timings is None else milliseconds(timings.inference),
        total_ms=milliseconds(facts.total),
    )
    _access.info("request", extra=extra)
