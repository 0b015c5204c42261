"""Lines of JSON: from pieces of a body to lines, to what one request to the pipeline can answer. Pure: nothing here waits."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from clients import InvalidRequest, TrunklineError
from gateway.classification import Classification
from gateway.schemas import StreamLine, parse_line

MAX_BATCH_LINES: Final = 32
"""Answered by one request to the pipeline."""

MAX_BATCH_BYTES: Final = 256 * 1024
"""Of several lines together; a longer one is alone."""


class LineSplitter:
    """Owner of the line that has begun and not ended. *max_bytes*: of one line; what is above it is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._begun = bytearray()
        self._is_too_long = False

    def feed(self, content: bytes) -> list[bytes | None]:
        """The lines that *content* ends, without those of white space alone; None for one that is too long."""
        *ended, begun = content.split(b"\n")
        lines: list[bytes | None] = []
        for part in ended:
            self._keep(part)
            lines += self.end()
        self._keep(begun)
        return lines

    def end(self) -> list[bytes | None]:
        """The line that has begun, as the last one of a body need not end."""
        line = None if self._is_too_long else bytes(self._begun).strip()
        self._begun.clear()
        self._is_too_long = False
        return [] if line == b"" else [line]

    def _keep(self, part: bytes) -> None:
        if self._is_too_long or len(self._begun) + len(part) > self._max_bytes:
            self._is_too_long = True
            self._begun.clear()
        else:
            self._begun += part


@dataclass(frozen=True, slots=True)
class Line:
    """Line *index* of a stream, *size* bytes long: what it asks for, or why that cannot be told."""

    index: int
    size: int
    asked: StreamLine | TrunklineError

    @property
    def id(self) -> str | int | None:
        """Its name, where it could be read and has one."""
        return self.asked.id if isinstance(self.asked, StreamLine) else None


def read_lines(lines: Iterable[bytes | None], first: int, max_bytes: int) -> list[Line]:
    """*lines* numbered from *first*; None stands for one longer than *max_bytes*."""
    return [_read(index, line, max_bytes) for index, line in enumerate(lines, first)]


def _read(index: int, line: bytes | None, max_bytes: int) -> Line:
    if line is None:
        return Line(index, 0, InvalidRequest(f"the line is longer than {max_bytes} bytes"))
    try:
        return Line(index, len(line), parse_line(line))
    except InvalidRequest as error:
        return Line(index, 0, InvalidRequest(error.message.replace("the body", "the line")))


def batches_of(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """*lines* in runs that one request can answer: they ask for the same, and are not too many. What is no request goes along."""
    batch: list[Line] = []
    size = 0
    wanted: object = None
    for line in lines:
        asks = _wanted(line.asked)
        is_other = asks is not None and wanted is not None and asks != wanted
        if batch and (is_other or len(batch) == MAX_BATCH_LINES or size + line.size > MAX_BATCH_BYTES):
            yield batch
            batch, size, wanted = [], 0, None
        batch.append(line)
        size += line.size
        wanted = asks if wanted is None else wanted
    if batch:
        yield batch


def _wanted(asked: StreamLine | TrunklineError) -> object:
    """What lines must have in common."""
    if not isinstance(asked, StreamLine):
        return None
    words = tuple(None if words is None else tuple(words) for words in (asked.heads, asked.tags))
    return (words, asked.scores, asked.top_k, asked.threshold, asked.truncation, asked.sticky_key)


def classification_of(asked: Sequence[StreamLine], *, sticky_key: str, may_reuse: bool) -> Classification:
    """One request for lines that ask for the same; streams are bulk."""
    one = asked[0]
    return Classification(
        [line.text for line in asked],
        one.heads,
        one.tags,
        one.scores,
        one.top_k,
        one.threshold,
        one.truncation,
        "bulk",
        sticky_key if one.sticky_key is None else one.sticky_key,
        may_reuse,
    )
