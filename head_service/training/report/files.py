"""The two files of a report."""

from pathlib import Path
from typing import Final

import msgspec

from head_service.repository import replace_file
from head_service.training.report.facts import Report

HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"


def encode_report(report: Report) -> bytes:
    """As JSON with two-space indentation; equal reports are equal bytes."""
    return msgspec.json.format(msgspec.json.encode(report, order="deterministic"), indent=2) + b"\n"


def decode_report(data: bytes) -> Report:
    """Parse a report.json; `msgspec.ValidationError` or `msgspec.DecodeError` says what is wrong with it."""
    return msgspec.json.decode(data, type=Report)


def write_report(report: Report, directory: Path) -> Path:
    """Put report.html and report.json into *directory*, each whole or not at all; the path of the page."""
    # Matplotlib and jinja2 take a second and 50 MB: for a process that writes a report, not for one that could.
    from head_service.training.report.page import render_page  # noqa: PLC0415

    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / JSON_NAME, encode_report(report))
    replace_file(directory / HTML_NAME, render_page(report).encode())
    return directory / HTML_NAME
