"""Log lines on stderr, as every service of ours writes them: for people, or one JSON object each.

An exception's message can hold anything, a caller's text too, so of an exception only its class and where it happened is told.
"""

import asyncio
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

import msgspec

if TYPE_CHECKING:
    from pydantic import ValidationError

LogFormat = Literal["text", "json"]

MAX_ID_CHARACTERS: Final = 128
"""Of a request id that is repeated in logs and traces; a longer one is left out."""

_TRACEPARENT: Final = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def problems_of(error: "ValidationError") -> list[str]:
    """What is wrong with settings, a sentence each; without their values, which may be secret."""
    found = []
    for problem in error.errors(include_url=False, include_input=False):
        where, what = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
        found.append(f"{where}: {what}" if where else what)
    return found


class TextFormatter(logging.Formatter):
    """For people: `SERVICE: MESSAGE NAME=VALUE`."""

    def __init__(self, service: str) -> None:
        super().__init__(f"{service}: %(message)s")

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


def configure(log_format: LogFormat, stream: TextIO | None = None, *, service: str, info: Iterable[str]) -> None:
    """Have this process log as *service* in *log_format*, to stderr: warnings of all, and what the loggers in *info* tell."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(service))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(log_format == "json")
    for name in info:
        logging.getLogger(name).setLevel(logging.INFO)


def event_fields(**fields: str | float | None) -> dict[str, dict[str, str | int | float]]:
    """What a log call's *extra* is, to have *fields* in the line; those that are "" or None are left out."""
    return {"fields": {name: value for name, value in fields.items() if value != "" and value is not None}}


def trace_id(traceparent: str) -> str:
    """The trace of a W3C `traceparent`, VERSION-TRACE-PARENT-FLAGS in lower-case hexadecimal; "" where it is not one."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else ""


def clean_id(value: str) -> str:
    """*value* where it may be repeated in a log line, else ""."""
    return value if len(value) <= MAX_ID_CHARACTERS and value.isascii() and value.isprintable() else ""


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


def loop_faults(log: logging.Logger) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """For `loop.set_exception_handler`: asyncio's own one prints the exception's message; this one's go to *log* without it."""

    def on_loop_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        exc_info = None if error is None else (type(error), error, error.__traceback__)
        log.error("%s", context.get("message", "a fault in the event loop"), exc_info=exc_info)

    return on_loop_fault


def milliseconds(seconds: float) -> float:
    """As log lines and headers tell durations."""
    return round(seconds * 1000, 3)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields
