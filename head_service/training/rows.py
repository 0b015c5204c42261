"""Rows with line numbers out of a .csv, .tsv or .jsonl file. What a row means is the dataset's business."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from head_service.errors import DataError

KINDS: Final = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True, slots=True)
class DataLimits:
    """What a file of training data may bring along; more is told, never cut."""

    max_bytes: int = 256 * 2**20
    max_rows: int = 1_000_000
    max_labels: int = 1_000


@dataclass(frozen=True, slots=True)
class Row:
    """One row; *line* is where it starts in its file, counted from 1. A row that is too short lacks its last *cells*.

    Cells are strings, out of .jsonl whatever JSON holds.
    """

    line: int
    cells: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a file; *names* are the columns in order, and *overfull* the lines that have more cells than those."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    overfull: tuple[int, ...] = ()


def read_rows(path: Path, limits: DataLimits) -> Rows:
    """The rows of *path*; its kind is told by its name.

    Raises:
        DataError: it cannot be read, is too large, is no UTF-8, has no rows, or one of them is broken.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise DataError(f"{path.name} is of an unknown kind: training data is read from .csv, .tsv and .jsonl")
    content = _read(path, limits.max_bytes)
    return _jsonl_rows(content, limits) if kind == ".jsonl" else _csv_rows(content, "\t" if kind == ".tsv" else ",", limits)


def _read(path: Path, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise DataError(f"{path.name} is larger than {max_bytes:,} bytes; leave out what is not needed, or take a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name} is not UTF-8: line {line} has a byte that cannot be read") from None


def _csv_rows(content: str, delimiter: str, limits: DataLimits) -> Rows:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    rows: list[Row] = []
    overfull: list[int] = []
    start = 1
    try:
        for cells in reader:
            if cells and names is None:
                names = cells
            elif cells and names is not None:
                rows.append(Row(start, dict(zip(names, cells, strict=False))))
                _check_count(rows, limits)
                if len(cells) > len(names):
                    overfull.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"line {start} is not a row: {error}") from None
    if names is None or not rows:
        raise DataError("there are no rows")
    return Rows(tuple(names), tuple(rows), tuple(overfull))


def _jsonl_rows(content: str, limits: DataLimits) -> Rows:
    rows: list[Row] = []
    names: dict[str, None] = {}
    # Not splitlines: a JSON string may hold the other separators of Unicode as they are.
    for number, line in enumerate(content.removesuffix("\n").split("\n") if content else (), 1):
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):
            cells = None
        if not isinstance(cells, dict):
            raise DataError(f"line {number} is not a JSON object")
        rows.append(Row(number, cells))
        names.update(dict.fromkeys(cells))
        _check_count(rows, limits)
    if not rows:
        raise DataError("there are no rows")
    return Rows(tuple(names), tuple(rows))


def _check_count(rows: list[Row], limits: DataLimits) -> None:
    if len(rows) > limits.max_rows:
        raise DataError(f"there are more than {limits.max_rows:,} rows; take a part of them")
