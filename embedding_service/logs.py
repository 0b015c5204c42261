"""Log lines on stderr, for people or one JSON object each. What a request was about is in none of them.

An exception's message can hold anything, the caller's text too, so of an exception only its class and where it happened is told.
"""

import asyncio
import logging
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import msgspec

from embedding_service.exchange import RequestFacts

LogFormat = Literal["text", "json"]

ACCESS: Final = "embedding.access"
_TRACEPARENT: Final = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_access = logging.getLogger(ACCESS)
_log = logging.getLogger(__name__)


class TextFormatter(logging.Formatter):
    """For people: `embedding: MESSAGE NAME=VALUE`."""

    def __init__(self) -> None:
        super().__init__("embedding: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """See `logging.Formatter`."""
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in _fields(record).items())])

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        """See `logging.Formatter`; without the exception's message."""
        return "\n".join(f"  {place}" for place in describe(ei[1]))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts (RFC 3339), level, logger, message, and what a record has in `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            # A lone surrogate, as in a file's name that is not UTF-8, has no place in JSON.
            "message": record.getMessage().encode("utf-8", "replace").decode(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = describe(record.exc_info[1])
        return msgspec.json.encode(line, enc_hook=lambda value: type(value).__name__).decode()


class AtMostEvery(logging.Filter):
    """Lets a message pass once in *seconds*, however often it comes."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._passed: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        now = time.monotonic()
        passes = now - self._passed.get(record.msg, -self._seconds) >= self._seconds
        if passes:
            self._passed[record.msg] = now
        return passes


def configure(log_format: LogFormat = "text", stream: TextIO | None = None) -> None:
    """Have this process log in *log_format*, to stderr: warnings of all, and what our own parts do."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(log_format == "json")
    for name in ("embedding_service", ACCESS):
        logging.getLogger(name).setLevel(logging.INFO)


def access(facts: RequestFacts) -> None:
    """One event for one request; see `exchange.Observer`. Durations are in milliseconds."""
    fields: dict[str, str | int | float] = {
        "request_id": facts.request_id,
        "trace_id": trace_id(facts.traceparent),
        "protocol": facts.protocol,
        "method": facts.method,
        "outcome": facts.outcome,
        "trunk": facts.trunk,
        "num_inputs": facts.num_inputs,
        "num_tokens": facts.num_tokens,
    }
    if facts.timings is not None:
        fields["tokenization_ms"] = _milliseconds(facts.timings.tokenization)
        fields["queue_ms"] = _milliseconds(facts.timings.queue)
        fields["inference_ms"] = _milliseconds(facts.timings.inference)
    fields["total_ms"] = _milliseconds(facts.total)
    _access.info("request", extra={"fields": {name: value for name, value in fields.items() if value != ""}})


def trace_id(traceparent: str) -> str:
    """The trace of a W3C `traceparent`, VERSION-TRACE-PARENT-FLAGS in lower-case hexadecimal; "" where it is not one."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else ""


def describe(error: BaseException | None) -> list[str]:
    """An exception's class and then where it came from, innermost last; not its message."""
    if error is None:
        return []
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    return [type(error).__name__, *places]


def on_loop_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`: asyncio's own one prints the exception's message."""
    error = context.get("exception")
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    _log.error("%s", context.get("message", "a fault in the event loop"), exc_info=exc_info)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
