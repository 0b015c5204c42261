"""The gateway's log lines; their format is `clients.wire.logs`. Neither a text nor a key is in any of them."""

import logging
from typing import Final, TextIO

from clients.wire.logs import LogFormat, event_fields, loop_faults, milliseconds, trace_id
from clients.wire.logs import configure as configure_service
from gateway.exchange import RequestFacts

__all__ = ["ACCESS", "LogFormat", "access", "configure", "on_loop_fault"]

ACCESS: Final = "gateway.access"
_access = logging.getLogger(ACCESS)

on_loop_fault: Final = loop_faults(logging.getLogger(__name__))
"""For `loop.set_exception_handler`."""


def configure(log_format: LogFormat = "text", stream: TextIO | None = None) -> None:
    """Have this process log in *log_format*, to stderr: warnings of all, and each request where it is asked for."""
    configure_service(log_format, stream, service="gateway", info=(ACCESS,))


def access(facts: RequestFacts) -> None:
    """One event for one request; see `exchange.Observer`. Durations are in milliseconds, *failed* counts heads."""
    timings = facts.timings
    num_failed = sum(head.outcome != "ok" for head in facts.heads)
    extra = event_fields(
        request_id=facts.request_id,
        trace_id=trace_id(facts.traceparent),
        method=facts.method,
        status=facts.status,
        reason=facts.reason,
        num_heads=facts.num_heads,
        num_failed_heads=num_failed or None,
        num_texts=facts.num_texts,
        num_tokens=facts.num_tokens,
        preprocess_ms=None if timings is None else milliseconds(timings.preprocess),
        embed_ms=None if timings is None else milliseconds(timings.embed),
        heads_ms=None if timings is None else milliseconds(timings.heads),
        total_ms=milliseconds(facts.total),
    )
    _access.info("request", extra=extra)
