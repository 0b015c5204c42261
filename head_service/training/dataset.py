"""Labelled texts out of a file, and every complaint about them in words with line numbers."""

import csv
import hashlib
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients.wire.text import normalize_text
from head_service.errors import DataError

TEXT_COLUMNS: Final = ("text", "sentence", "review", "content", "body", "message", "tweet")
LABEL_COLUMNS: Final = ("label", "class", "category", "topic", "sentiment", "target")
MAX_COMPLAINTS: Final = 20
MIN_PER_LABEL: Final = 2


@dataclass(frozen=True, slots=True)
class Example:
    """One row; *line* is where it starts in its file, counted from 1."""

    text: str
    label: str
    line: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples without repetitions; *num_repeated* rows said what another one said already."""

    examples: tuple[Example, ...]
    num_repeated: int = 0

    @property
    def texts(self) -> list[str]:
        """In order."""
        return [example.text for example in self.examples]

    @property
    def labels(self) -> list[str]:
        """In order."""
        return [example.label for example in self.examples]

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all texts and labels."""
        whole = hashlib.sha256()
        for example in self.examples:
            whole.update(json.dumps([example.text, example.label]).encode())
        return whole.hexdigest()


def read_dataset(
    path: Path, text_column: str | None = None, label_column: str | None = None, *, for_training: bool = True
) -> Dataset:
    """The examples of a .csv, .tsv or .jsonl file.

    Not *for_training*, held-out rows are taken as they are: repetitions, rare and contradicting labels included.

    Raises:
        DataError: with every problem found, each with its lines.
    """
    content = _read(path)
    if path.suffix.lower() == ".jsonl":
        rows = _jsonl_rows(content)
    elif path.suffix.lower() in {".csv", ".tsv"}:
        rows = _csv_rows(content, "\t" if path.suffix.lower() == ".tsv" else ",")
    else:
        raise DataError(f"{path.name} is of an unknown kind: training data is read from .csv, .tsv and .jsonl")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    text = _column(names, text_column, TEXT_COLUMNS, "text")
    label = _column(names, label_column, LABEL_COLUMNS, "label")
    # A label is one line: labels.txt holds one a line.
    examples = [Example(row.get(text) or "", " ".join((row.get(label) or "").split()), line) for line, row in rows]
    return _checked(examples) if for_training else _complete(examples)


def split(dataset: Dataset, share: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(train, held out): *share* of each label's examples held out, at least one and never all; the same for the same data."""
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in dataset.examples:
        by_label[example.label].append(example)
    held: set[Example] = set()
    for label in sorted(by_label):
        shuffled = sorted(by_label[label], key=lambda example: example.line)
        random.Random(f"{seed} {label}").shuffle(shuffled)  # noqa: S311 (a repeatable split, no secret)
        held.update(shuffled[: min(max(1, round(len(shuffled) * share)), len(shuffled) - 1)])
    return (
        Dataset(tuple(example for example in dataset.examples if example not in held)),
        Dataset(tuple(example for example in dataset.examples if example in held)),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name} is not UTF-8: line {line} has a byte that cannot be read") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _csv_rows(content: str, delimiter: str) -> list[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    filled: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for cells in reader:
            if cells:
                filled.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"line {start} is not a row: {error}") from None
    if len(filled) < 2:
        raise DataError("there are no rows")
    names = filled[0][1]
    return [(line, dict.fromkeys(names, "") | dict(zip(names, cells, strict=False))) for line, cells in filled[1:]]


def _jsonl_rows(content: str) -> list[tuple[int, dict[str, str]]]:
    rows = []
    # Not splitlines: a JSON string may hold the other separators of Unicode as they are.
    for number, line in enumerate(content.removesuffix("\n").split("\n") if content else (), 1):
        try:
            row = {str(name): "" if value is None else str(value) for name, value in json.loads(line).items()}
        except (ValueError, AttributeError, RecursionError):
            raise DataError(f"line {number} is not a JSON object") from None
        rows.append((number, row))
    if not rows:
        raise DataError("there are no rows")
    return rows


def _column(names: Sequence[str], asked: str | None, usual: Iterable[str], what: str) -> str:
    lowered = {name.lower(): name for name in reversed(names) if name}
    if asked is not None:
        if asked in names:
            return asked
        raise DataError(f"there is no column {asked!r}; the file has: {', '.join(names)}")
    found = next((lowered[name] for name in usual if name in lowered), None)
    if found is None:
        raise DataError(f"which column is the {what}? Name it with --{what}-column; the file has: {', '.join(names)}")
    return found


def _checked(examples: list[Example]) -> Dataset:
    usable = [example for example in examples if normalize_text(example.text) and example.label]
    kept, conflicts, repeated = _without_repetitions(usable)
    _complain(_empty(examples) + conflicts + _labels(kept))
    return Dataset(tuple(kept), repeated)


def _complete(examples: list[Example]) -> Dataset:
    _complain(_empty(examples))
    return Dataset(tuple(examples))


def _complain(complaints: list[str]) -> None:
    if complaints:
        more = len(complaints) - MAX_COMPLAINTS
        shown = complaints[:MAX_COMPLAINTS] + ([f"and {more} more"] if more > 0 else [])
        raise DataError("the data cannot be used:\n" + "\n".join(f"  - {line}" for line in shown))


def _empty(examples: list[Example]) -> list[str]:
    texts = [example.line for example in examples if not normalize_text(example.text)]
    labels = [example.line for example in examples if not example.label]
    return [f"{what} is empty in {_lines(lines)}" for what, lines in (("the text", texts), ("the label", labels)) if lines]


def _without_repetitions(examples: list[Example]) -> tuple[list[Example], list[str], int]:
    by_text: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_text[normalize_text(example.text)].append(example)
    conflicts = [
        f"one text has different labels in {_lines([example.line for example in same])}"
        for same in by_text.values()
        if len({example.label for example in same}) > 1
    ]
    return [same[0] for same in by_text.values()], conflicts, len(examples) - len(by_text)


def _labels(examples: list[Example]) -> list[str]:
    counts = Counter(example.label for example in examples)
    if not counts:
        return []
    if len(counts) == 1:
        return ["there is only one label; a classifier needs at least two"]
    rare = {label: count for label, count in counts.items() if count < MIN_PER_LABEL}
    lines = {example.label: example.line for example in examples}
    return [f"the label {label!r} has a single example (line {lines[label]}); give it more or leave it out" for label in rare]


def _lines(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:10])) + (f" and {len(lines) - 10} more" if len(lines) > 10 else "")
    return f"line{'s' if len(lines) > 1 else ''} {shown}"
