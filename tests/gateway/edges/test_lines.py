import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients import InvalidRequest
from gateway.edges.lines import MAX_BATCH_BYTES, MAX_BATCH_LINES, Line, LineSplitter, batches_of, classification_of, read_lines
from gateway.schemas import StreamLine


def split(pieces: list[bytes], max_bytes: int = 1_000) -> list[bytes | None]:
    splitter = LineSplitter(max_bytes)
    return [line for piece in pieces for line in splitter.feed(piece)] + splitter.end()


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b""))), st.lists(st.integers(0, 60)))
def test_lines_are_the_same_however_a_body_is_cut(lines: list[bytes], cuts: list[int]) -> None:
    body = b"\n".join(lines)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[start:stop] for start, stop in pairwise(places)]

    assert [line.strip() for line in lines if line.strip()] == split(pieces)


@given(st.integers(1, 9))
def test_a_line_that_is_too_long_is_not_kept_and_the_next_one_is_read(size: int) -> None:
    splitter = LineSplitter(10)
    long = b"x" * 100
    found = [line for start in range(0, 100, size) for line in splitter.feed(long[start : start + size])]

    assert [] == found
    assert len(splitter._begun) <= 10
    assert [None, b"short"] == splitter.feed(b"x\nshort\n")


def line(index: int, text: str = "a", **options: object) -> Line:
    asked = StreamLine(text=text, **options)
    return Line(index, len(text), asked)


def test_lines_that_ask_for_the_same_go_together_in_order() -> None:
    lines = [line(0), line(1, heads=["one"]), line(2, heads=["one"]), line(3, heads=["one"], scores=True), line(4)]
    broken = [Line(5, 0, InvalidRequest("broken")), line(6, scores=True)]

    assert [[0], [1, 2], [3], [4, 5], [6]] == [[one.index for one in batch] for batch in batches_of(lines + broken)]


@given(st.lists(st.tuples(st.integers(0, MAX_BATCH_BYTES), st.booleans()), max_size=100))
def test_batches_are_bounded_and_lose_nothing(sizes: list[tuple[int, bool]]) -> None:
    lines = [Line(index, size, StreamLine(text="a", scores=scores)) for index, (size, scores) in enumerate(sizes)]
    batches = list(batches_of(lines))

    assert lines == [one for batch in batches for one in batch]
    for batch in batches:
        assert len(batch) <= MAX_BATCH_LINES
        assert len(batch) == 1 or sum(one.size for one in batch) <= MAX_BATCH_BYTES
        assert len({one.asked.scores for one in batch if isinstance(one.asked, StreamLine)}) == 1


def test_a_lines_own_sticky_key_wins() -> None:
    one = StreamLine(text="a", sticky_key="mine")
    assert "mine" == classification_of([one], sticky_key="header", may_reuse=True).sticky_key
    assert "header" == classification_of([StreamLine(text="a")], sticky_key="header", may_reuse=True).sticky_key


@pytest.mark.parametrize(
    "content",
    [
        b"SECRET",
        b"[]",
        b'"a"',
        b"{}",
        b'{"text": 3}',
        b'{"texts": ["a"]}',
        b'{"text": "a", "id": {}}',
        b'{"text": "a", "SECRET": 1}',
        b"\xff",
    ],
)
def test_what_is_no_line_is_told_without_its_content(content: bytes) -> None:
    [read] = read_lines([content], 3, 1_000)
    assert 3 == read.index
    assert isinstance(read.asked, InvalidRequest)
    assert "SECRET" not in read.asked.message
    assert "the line" in read.asked.message


@given(st.text(st.characters(codec="utf-8")), st.none() | st.text(st.characters(codec="utf-8"), max_size=50) | st.integers(-9, 9))
def test_a_line_is_read_as_it_was_written(text: str, name: str | int | None) -> None:
    [read] = read_lines([json.dumps({"text": text, "id": name}).encode()], 0, 10_000_000)
    assert isinstance(read.asked, StreamLine)
    assert (text, name) == (read.asked.text, read.id)
