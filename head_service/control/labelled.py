"""Texts with what they were said to be, and the files they travel in. Nothing of the database here: training reads them too."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from clients.wire.chain import StepFailedError, chain_of
from clients.wire.text import normalize_text
from head_service.training.dataset import LABEL_SEPARATOR

Form = Literal["csv", "jsonl"]
Given = str | tuple[str, ...]
"""What a text was said to be: its label, or number; of multi_label all its labels, sorted, each once, perhaps none."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and what most of its rows say."""

    text: str
    label: Given


def labels_of(given: Given) -> tuple[str, ...]:
    """One label, or several, as several."""
    return given if isinstance(given, tuple) else (given,)


def is_anything_left(text: str, preprocess: tuple[str, ...]) -> bool:
    """Whether there is something to read in *text* after the steps of *preprocess*, all of which are here."""
    try:
        return bool(normalize_text(chain_of(preprocess)(text) if preprocess else text))
    except StepFailedError:
        return False


def render(examples: Iterable[Labelled], form: Form) -> Iterator[str]:
    """*examples* in a form that training reads, by the line: columns `text` and `label`.

    In CSV several labels have `LABEL_SEPARATOR` between them, so that one that holds it is read as two; JSONL keeps it whole.
    """
    if form == "csv":
        yield "text,label\r\n"
    for example in examples:
        if form == "csv":
            line = io.StringIO()
            csv.writer(line).writerow((example.text, LABEL_SEPARATOR.join(labels_of(example.label))))
            yield line.getvalue()
        else:
            yield json.dumps({"text": example.text, "label": example.label}, ensure_ascii=False) + "\n"


def read_labelled(path: Path) -> Iterator[Labelled]:
    """What `render` made as JSONL; `msgspec.DecodeError` where *path* is something else."""
    decoder = msgspec.json.Decoder(Labelled)
    with path.open("rb") as lines:
        for line in lines:
            yield decoder.decode(line)
