"""The one shape of an error over HTTP, `{"error": {"code", "message", "request_id"}}`, and what stands beside it. For servers."""

from pathlib import Path
from typing import Final

import msgspec

from clients.wire.metadata import RETRY_AFTER, RETRY_AFTER_MS

MAX_MESSAGE_CHARACTERS: Final = 1_000

MAX_MESSAGE_BYTES: Final = 1_700
"""As JSON: a character may take six."""


def error_body(code: str, message: str, request_id: str) -> bytes:
    """The body, below 2 KB."""
    return msgspec.json.encode({"error": {"code": code, "message": clipped(message), "request_id": request_id}})


def clipped(message: str) -> str:
    """*message*, short enough that an error stays below 2 KB."""
    message = message[:MAX_MESSAGE_CHARACTERS]
    while len(msgspec.json.encode(message)) > MAX_MESSAGE_BYTES:
        message = message[: len(message) * 3 // 4]
    return message


def retry_headers(seconds: float) -> dict[str, str]:
    """When to come back, in whole seconds and in milliseconds."""
    return {RETRY_AFTER: str(max(1, round(seconds))), RETRY_AFTER_MS: str(round(seconds * 1000))}


def place_of(error: BaseException) -> str:
    """Where *error* was raised, as " (FILE:LINE)"; its words may quote a text, its place does not."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
