"""Classify a file: texts in, one JSON line a text out, in order, resumable after any interruption."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from clients import AsyncClient, DeadlineExceeded, HeadError, HeadResult, InvalidRequest, NotFound, Result, Unavailable
from head_service.errors import DataError
from head_service.training.rows import TEXT_COLUMNS, column_of, delimited_rows, read_text

KINDS: Final = (".txt", ".csv", ".tsv", ".jsonl")
TEXTS_A_REQUEST: Final = 64
REQUESTS_IN_FLIGHT: Final = 4
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
PATIENCE_SECONDS: Final = 120.0
"""How long a gateway that is full or away is asked again."""


class BulkError(Exception):
    """The file cannot be classified; one sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: *done* of *total* texts, *failed* of them with an error of their own."""

    done: int
    total: int
    failed: int


def read_texts(path: Path, text_column: str | None = None) -> list[str]:
    """The texts of a .txt (one a line), .csv, .tsv or .jsonl file.

    Raises:
        BulkError: no such file, another kind of file, or no text in it where one was looked for.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise BulkError(f"{path} is of an unknown kind: texts are read from {', '.join(KINDS)}")
    try:
        content = read_text(path)
        if kind == ".txt":
            return _lines(content)
        return _from_jsonl(content, text_column) if kind == ".jsonl" else _from_cells(content, kind, text_column)
    except DataError as error:
        raise BulkError(str(error)) from None


def _lines(content: str) -> list[str]:
    """Not splitlines: a text may hold the other separators of Unicode as they are."""
    lines = _LINE_END.split(content)
    return lines if lines[-1] else lines[:-1]


def _from_cells(content: str, kind: str, column: str | None) -> list[str]:
    file = delimited_rows(content, kind)
    found = column_of(file.names, column, TEXT_COLUMNS, "text")
    return [str(row.cells.get(found, "")) for row in file.rows]


def _from_jsonl(content: str, column: str | None) -> list[str]:
    texts = []
    for number, line in enumerate(_lines(content), 1):
        try:
            value = json.loads(line)
            text = value[column or "text"] if isinstance(value, dict) else value
        except (ValueError, KeyError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise BulkError(f"line {number} is neither a JSON string nor an object with a string {column or 'text'!r}")
        texts.append(text)
    return texts


def digest(text: str) -> str:
    """What a result line is recognised by: 16 hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def resume(out: Path, texts: Sequence[str]) -> int:
    """How many of *texts* have their line in *out*; a line cut short by an interruption is removed.

    Raises:
        BulkError: *out* holds the results of other texts.
    """
    if not out.exists():
        return 0
    lines = out.read_bytes().split(b"\n")
    complete = lines[:-1]
    for number, line in enumerate(complete, 1):
        if number > len(texts) or _digest_of(line) != digest(texts[number - 1]):
            raise BulkError(f"{out} holds results of other texts (line {number}); remove it or name another --out")
    with out.open("r+b") as file:
        file.truncate(sum(len(line) + 1 for line in complete))
    return len(complete)


def _digest_of(line: bytes) -> object:
    try:
        return json.loads(line)["digest"]
    except (ValueError, KeyError, TypeError):
        return None


async def classify_file(
    client: AsyncClient, texts: Sequence[str], out: Path, *, heads: Sequence[str] | None, on_progress: Callable[[Progress], None]
) -> Progress:
    """Classify what *out* does not hold yet, appending a line a text as soon as all before it are written."""
    done = resume(out, texts)
    failed = 0
    with out.open("a", encoding="utf-8") as file:
        async for first, results in _in_order(client, texts, done, heads):
            for index, result in enumerate(results, first):
                failed += "error" in result
                file.write(json.dumps({"line": index + 1, "digest": digest(texts[index]), **result}, ensure_ascii=False) + "\n")
            file.flush()
            done = first + len(results)
            on_progress(Progress(done, len(texts), failed))
    return Progress(done, len(texts), failed)


async def _in_order(
    client: AsyncClient, texts: Sequence[str], start: int, heads: Sequence[str] | None
) -> AsyncIterator[tuple[int, list[dict[str, Any]]]]:
    """Blocks of results in the texts' order, a few requests ahead of the reader."""
    ahead: list[tuple[int, asyncio.Task[list[dict[str, Any]]]]] = []
    starts = iter(range(start, len(texts), TEXTS_A_REQUEST))
    try:
        while True:
            while len(ahead) < REQUESTS_IN_FLIGHT and (first := next(starts, None)) is not None:
                block = texts[first : first + TEXTS_A_REQUEST]
                ahead.append((first, asyncio.create_task(_classify_block(client, block, heads))))
            if not ahead:
                return
            first, task = ahead.pop(0)
            yield first, await task
    finally:
        for _, task in ahead:
            task.cancel()


async def _classify_block(client: AsyncClient, block: Sequence[str], heads: Sequence[str] | None) -> list[dict[str, Any]]:
    try:
        return [as_json(result) for result in await patiently(client, block, heads)]
    except NotFound:
        raise
    except InvalidRequest as error:
        if len(block) == 1:
            return [{"error": {"code": error.code, "message": error.message}}]
    # One text the gateway refuses must not cost the others theirs.
    middle = len(block) // 2
    left = await _classify_block(client, block[:middle], heads)
    return left + await _classify_block(client, block[middle:], heads)


async def patiently(client: AsyncClient, block: Sequence[str], heads: Sequence[str] | None) -> list[Result]:
    """Classify *block*; a gateway that is full or away is asked again for `PATIENCE_SECONDS`, when it says so."""
    give_up = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        try:
            return await client.classify(list(block), heads=heads, timeout=60.0)
        except (Unavailable, DeadlineExceeded) as error:
            pause = error.retry_after or 0.5
            if asyncio.get_running_loop().time() + pause > give_up:
                raise
            await asyncio.sleep(pause)


def as_json(result: Result) -> dict[str, Any]:
    """*result* as the gateway said it."""
    heads = {name: _head_json(head) for name, head in result.heads.items()}
    return {"heads": heads, "num_tokens": result.num_tokens, "truncated": result.truncated}


def _head_json(head: HeadResult | HeadError) -> dict[str, Any]:
    if isinstance(head, HeadError):
        return {"error": asdict(head)}
    return {key: value for key, value in asdict(head).items() if value is not None}
