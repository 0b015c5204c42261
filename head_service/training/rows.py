"""Rows with line numbers out of a .csv, .tsv or .jsonl file, and its columns. What a row means is the dataset's business."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from head_service.errors import DataError

KINDS: Final = (".csv", ".tsv", ".jsonl")

TEXT_COLUMNS: Final = ("text", "sentence", "review", "content", "body", "message", "tweet")
"""What a column of texts is usually called."""

_MAX_NAMES_SHOWN: Final = 20
_DELIMITERS: Final = (",", ";", "\t")


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
    content = read_text(path, limits.max_bytes)
    file = _jsonl_rows(content, limits) if kind == ".jsonl" else delimited_rows(content, kind, limits)
    if not file.rows:
        raise DataError("there are no rows")
    return file


def column_of(names: Sequence[str], asked: str | None, usual: Iterable[str], what: str) -> str:
    """Which of *names* is the *what*, a text or a label: the one *asked* for, else the first of the *usual* ones, in any case.

    Raises:
        DataError: none is, or two have its name.
    """
    lowered = {name.lower(): name for name in reversed(names) if name}
    if asked is not None and asked not in names:
        raise DataError(f"there is no column {asked!r}; the file has: {_listed(names)}")
    found = asked if asked is not None else next((lowered[name] for name in usual if name in lowered), None)
    if found is None:
        raise DataError(f"which column is the {what}? Name it with --{what}-column; the file has: {_listed(names)}")
    if names.count(found) > 1:
        raise DataError(f"there are {names.count(found)} columns of one name, and one of them is the {what}; give each its own")
    return found


def shown(name: str) -> str:
    """A name of a column or label in quotes, cut, and fit for any terminal."""
    kept = "".join(character if character.isprintable() else "\ufffd" for character in name[:61])
    return f"'{kept[:60]}…'" if len(kept) > 60 else f"'{kept}'"


def read_text(path: Path, max_bytes: int | None = None) -> str:
    """What *path* holds, which is UTF-8 with or without a byte order mark; line ends as they are.

    Raises:
        DataError: it cannot be read, is larger than *max_bytes*, or is no UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(-1 if max_bytes is None else max_bytes + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if max_bytes is not None and len(content) > max_bytes:
        raise DataError(f"{path.name} is larger than {max_bytes:,} bytes; leave out what is not needed, or take a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name} is not UTF-8: line {line} has a byte that cannot be read; save it as UTF-8") from None


def delimited_rows(content: str, kind: str, limits: DataLimits | None = None) -> Rows:
    """The rows of a file of *kind* .csv or .tsv, perhaps none.

    Raises:
        DataError: it has more than *limits* allow, or one of them is broken.
    """
    delimiter = "\t" if kind == ".tsv" else _delimiter_of(content)
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
                if limits is not None:
                    _check_count(rows, limits)
                if len(cells) > len(names):
                    overfull.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"line {start} is not a row: {error}") from None
    return Rows(tuple(names or ()), tuple(rows), tuple(overfull))


def _listed(names: Sequence[str]) -> str:
    """Columns for a person: a header that is none may be of any length."""
    more = len(names) - _MAX_NAMES_SHOWN
    return ", ".join(shown(name).strip("'") for name in names[:_MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _delimiter_of(content: str) -> str:
    """What stands between the cells of a .csv: spreadsheets write semicolons where a comma is part of a number.

    The names of the columns tell it, commas before all else.
    """
    names = re.match(r"[\r\n]*([^\r\n]*)", content)
    return next((each for each in _DELIMITERS if names and each in names[1]), ",")


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
    return Rows(tuple(names), tuple(rows))


def _check_count(rows: list[Row], limits: DataLimits) -> None:
    if len(rows) > limits.max_rows:
        raise DataError(f"there are more than {limits.max_rows:,} rows; take a part of them")
