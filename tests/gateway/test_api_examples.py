"""docs/api.md tells the truth: each of its examples is asked, and answers with the fields and types that stand there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.page_fakes import client_of, fake_gateway

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
EXAMPLES = re.findall(r"```http\n(GET|POST) (\S+)\n(.*?)```\n\n```json (\d+)\n(.*?)```", TEXT, re.DOTALL)


def differences(said: Any, real: Any, at: str = "") -> list[str]:
    """Where *real* is not of the shape of *said*; null is of any. A list may show some of its elements."""
    if said is None or real is None:
        return []
    if at.endswith(".scores") and isinstance(real, dict):
        # Labels are the head's words, not the contract's.
        said, real = sorted(said.values()), sorted(real.values())
        return [] if len(said) == len(real) else [f"{at} has {len(real)} labels, not {len(said)}"]
    if isinstance(said, dict) and isinstance(real, dict):
        missing = [f"{at}.{key} is in one of them only" for key in said.keys() ^ real.keys()]
        return missing + [line for key in said.keys() & real.keys() for line in differences(said[key], real[key], f"{at}.{key}")]
    if isinstance(said, list) and isinstance(real, list):
        tries = [[differences(one, other, f"{at}[]") for other in real] for one in said]
        return [min(lines, key=len, default=["there is nothing"])[0] for lines in tries if all(lines)]
    numbers = (int, float)
    if type(said) is type(real) or (isinstance(said, numbers) and isinstance(real, numbers) and not isinstance(said, bool)):
        return []
    return [f"{at} is {type(real).__name__}, not {type(said).__name__}"]


def test_the_document_has_examples_of_each_kind() -> None:
    assert {"200", "400", "404"} == {status for *_, status, _ in EXAMPLES}
    assert len(re.findall("```http", TEXT)) == len(EXAMPLES)


@pytest.mark.parametrize(("method", "path", "body", "status", "answer"), EXAMPLES, ids=range(len(EXAMPLES)))
async def test_an_example_answers_as_it_is_written(
    tmp_path: Path, method: str, path: str, body: str, status: str, answer: str
) -> None:
    async with fake_gateway(tmp_path) as (app, _), client_of(app) as http:
        real = await http.request(method, path, content=body.strip() or None)

    assert (int(status), []) == (real.status_code, differences(json.loads(answer), real.json()))
    if "error" in json.loads(answer):
        assert json.loads(answer)["error"]["code"] == real.json()["error"]["code"]
        assert json.loads(answer)["error"]["message"] == real.json()["error"]["message"]


def test_differences_are_seen() -> None:
    assert [] == differences({"a": [1, 2.5], "b": None}, {"a": [3], "b": "x"})
    assert [".a is str, not int"] == differences({"a": 1}, {"a": "x"})
    assert [".b is in one of them only"] == differences({"a": 1}, {"a": 1, "b": 2})
    assert [".a[] is str, not int"] == differences({"a": [1]}, {"a": ["x"]})
    assert ["there is nothing"] == differences([{"a": 1}], [])
    assert [" is int, not bool"] == differences(True, 1)
