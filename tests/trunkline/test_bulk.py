import json
from pathlib import Path

import httpx
import pytest

from clients import AsyncClient, NotFound
from trunkline.bulk import TEXTS_A_REQUEST, BulkError, Progress, classify_file, digest, read_texts, resume


class FakeGateway:
    """Labels a text by its length; refuses empty ones; can be down for its first requests, or die after some."""

    def __init__(self, *, down_for: int = 0, dies_after: int | None = None) -> None:
        self.down_for = down_for
        self.dies_after = dies_after
        self.requests = 0
        self.texts: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self.requests <= self.down_for:
            return _error(503, "unavailable", {"retry-after-ms": "1"})
        if self.dies_after is not None and self.requests > self.dies_after:
            return _error(404, "not_found", {})
        texts = json.loads(request.content)["texts"]
        if not all(texts):
            return _error(400, "invalid_argument", {})
        self.texts += texts
        results = [
            {"heads": {"size": {"label": str(len(text)), "score": 1.0, "version": 1}}, "num_tokens": 3, "truncated": False}
            for text in texts
        ]
        return httpx.Response(200, json={"results": results})


def _error(status: int, code: str, headers: dict[str, str]) -> httpx.Response:
    return httpx.Response(status, json={"error": {"code": code, "message": code, "request_id": ""}}, headers=headers)


async def classify(gateway: FakeGateway, texts: list[str], out: Path) -> Progress:
    async with AsyncClient("http://gateway", transport=httpx.MockTransport(gateway)) as client:
        return await classify_file(client, texts, out, heads=None, on_progress=lambda _: None)


def labels(out: Path) -> list[str]:
    return [json.loads(line)["heads"]["size"]["label"] for line in out.read_text().splitlines()]


async def test_each_text_gets_its_line_in_order(tmp_path: Path) -> None:
    texts = ["a" * (1 + n % 50) for n in range(3 * TEXTS_A_REQUEST + 5)]

    done = await classify(FakeGateway(), texts, tmp_path / "out.jsonl")

    assert Progress(len(texts), len(texts), 0) == done
    assert [str(len(text)) for text in texts] == labels(tmp_path / "out.jsonl")


async def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(4 * TEXTS_A_REQUEST)]
    out = tmp_path / "out.jsonl"
    with pytest.raises(NotFound):
        await classify(FakeGateway(dies_after=2), texts, out)
    written = len(out.read_text().splitlines())
    with out.open("a") as file:
        file.write('{"line": 9, "dig')

    second = FakeGateway()
    await classify(second, texts, out)

    assert 0 < written < len(texts)
    assert len(texts) - written == len(second.texts)
    assert [digest(text) for text in texts] == [json.loads(line)["digest"] for line in out.read_text().splitlines()]


async def test_one_text_the_gateway_refuses_does_not_cost_the_others_theirs(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    done = await classify(FakeGateway(), ["a", "", "ccc"], out)

    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert 1 == done.failed
    assert "invalid_argument" == lines[1]["error"]["code"]
    assert ["1", "3"] == [lines[n]["heads"]["size"]["label"] for n in (0, 2)]


async def test_a_gateway_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    gateway = FakeGateway(down_for=3)

    done = await classify(gateway, ["a"], tmp_path / "out.jsonl")

    assert 1 == done.done
    assert 4 == gateway.requests


def test_results_of_other_texts_are_not_continued(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(json.dumps({"digest": digest("other")}) + "\n")

    with pytest.raises(BulkError, match="other texts"):
        resume(out, ["mine"])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\ntwo\n", ["one", "two"]),
        ("a.csv", 'label,text\nx,"one\ntwo"\ny,three\n', ["one\ntwo", "three"]),
        ("a.csv", "label;Text\nx;one, two\ny;three\n", ["one, two", "three"]),
        ("a.csv", "label,text\nx\ny,two\n", ["", "two"]),
        ("a.tsv", "review\tstars\none\t5\n", ["one"]),
        ("a.tsv", "id\tTweet\n1\tone, two; three\n", ["one, two; three"]),
        ("a.jsonl", '"one"\n{"text": "two"}\n', ["one", "two"]),
    ],
)
def test_texts_are_read_from_what_people_have(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    (tmp_path / name).write_text(content)

    assert expected == read_texts(tmp_path / name)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_the_ends_of_lines_part_texts(tmp_path: Path, separator: str, end: str) -> None:
    text = f"good{separator}not bad"
    for name, lines in {
        "a.txt": [text, "second"],
        "a.csv": ["text", text, "second"],
        "a.tsv": ["text", text, "second"],
        "a.jsonl": [json.dumps(each, ensure_ascii=False) for each in (text, "second")],
    }.items():
        (tmp_path / name).write_bytes(end.join([*lines, ""]).encode())
        # A control character stands escaped in JSON.
        assert [text, "second"] == read_texts(tmp_path / name), name


def test_the_line_ends_within_a_text_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text\r\n"one\r\ntwo\nthree"\r\n')
    assert ["one\r\ntwo\nthree"] == read_texts(tmp_path / "a.csv")


def test_an_empty_file_has_no_texts(tmp_path: Path) -> None:
    for name, content in {"a.txt": b"", "a.jsonl": b"", "a.csv": b"text,label\n", "a.tsv": b"text\tlabel\n"}.items():
        (tmp_path / name).write_bytes(content)
        assert [] == read_texts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text\n" + 200_000 * b"x" + b"\n", "line 2 is not a row"),
        ("a.csv", b"", "which column is the text"),
        ("a.csv", b'text\none\n"two\nthree\n', "line 3 is not a row"),
        ("a.csv", b"text,text\none,two\n", "2 columns of one name"),
        ("a.jsonl", 100_000 * b"[" + b"\n", "line 1 is neither"),
        ("a.csv", b"x,y\n1,2\n", "which column is the text\\? .*; the file has: x, y"),
        ("a.jsonl", b'"one"\n{"t": 1}\n', "line 2"),
        ("a.jsonl", b'"one"\n{"text": null}\n', "line 2"),
        ("a.jsonl", b"null\n", "line 1"),
        ("a.jsonl", b'["text"]\n', "line 1"),
        ("a.jsonl", b'{"text": 5}\n', "line 1"),
        ("a.txt", b"one\n\xff\n", "line 2"),
        ("a.pdf", b"", "unknown kind"),
    ],
)
def test_a_file_without_texts_is_told_in_words(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(BulkError, match=message):
        read_texts(tmp_path / name)
