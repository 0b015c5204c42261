"""The head server of the running stack, through the official stubs in a process of their own, and by plain HTTP."""

import json
import subprocess
import sys

import httpx
import pytest

from tests.e2e.conftest import RunningStack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WIDTH = 384


def test_the_official_client_is_answered_as_tensorflow_serving_would(stack: RunningStack) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.e2e.official_client", stack.addresses["heads-grpc"], "sentiment", str(WIDTH)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    seen = json.loads(ended.stdout)

    assert seen["outputs"] == ["logits", "scores"]
    assert [sum(row) for row in seen["scores"]] == pytest.approx([1, 1], abs=1e-5)
    assert seen["typed"] == seen["scores"]
    assert (seen["version"], seen["signature"]) == (1, "serving_default")
    assert seen["inputs"] == {"embedding": 1}
    assert seen["states"] == [[1, 30, 0]]
    errors = seen["errors"]
    assert errors["no spec"] == ["INVALID_ARGUMENT", "Missing ModelSpec"]
    assert errors["unknown"] == ["NOT_FOUND", "Servable not found for request: Latest(nobody)"]
    assert errors["version"] == ["NOT_FOUND", "Servable not found for request: Specific(sentiment, 99)"]
    assert errors["label"] == ["INVALID_ARGUMENT", "Unrecognized servable version label: nobody"]
    assert errors["signature"] == ["FAILED_PRECONDITION", 'Serving signature key "nothing" not found.']
    assert errors["missing"][0] == "INVALID_ARGUMENT"
    assert errors["missing"][1].startswith("input size does not match signature: 0!=1 len({}) != len({embedding}).")
    assert errors["extra"][1].startswith("input size does not match signature: 2!=1")
    assert errors["wrong"][1].startswith("Signature input alias: embedding(feed name: ")
    assert errors["broken"] == ["INVALID_ARGUMENT", "tensor parsing error: embedding"]
    assert errors["unfiltered"][1].startswith("output tensor alias not found in signature: nothing")
    assert errors["twice"] == ["INVALID_ARGUMENT", "duplicate output tensor alias: scores"]
    assert errors["shape"][0] == "INVALID_ARGUMENT"
    assert seen["no status"] == ["NOT_FOUND", "Could not find any versions of model nobody"]


def test_rest_takes_rows_and_columns(stack: RunningStack) -> None:
    url = f"{stack.addresses['heads']}/v1/models/sentiment"
    row = [0.05] * WIDTH
    rows = httpx.post(f"{url}:predict", json={"instances": [row, row]}).json()
    columns = httpx.post(f"{url}/versions/1:predict", json={"inputs": {"embedding": [row]}}).json()
    metadata = httpx.get(f"{url}/metadata").json()

    assert len(rows["predictions"]) == 2
    assert rows["predictions"][0]["scores"] == pytest.approx(columns["outputs"]["scores"][0], abs=1e-6)
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["embedding"]["dtype"] == "DT_FLOAT"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("nobody:predict", b'{"instances": [[1]]}', 404, "Servable not found for request: Latest(nobody)"),
        ("sentiment:predict", b"", 400, "JSON Parse error: The document is empty"),
        ("sentiment:predict", b"{", 400, "JSON Parse error"),
        ("sentiment:predict", b"{}", 400, "Missing 'inputs' or 'instances' key"),
        ("sentiment:predict", b'{"instances": [["a"]]}', 400, "is not of expected type"),
        ("sentiment:predict", b'{"instances": [[1], [1, 2]]}', 400, "Expecting tensor size: 1 but got: 2"),
        ("sentiment:predict", b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, ""),
        ("sentiment:predict", b"x" * 17_000_000, 413, "longer than"),
        ("sentiment:nonsense", b"{}", 400, "Malformed request: POST"),
    ],
)
def test_rest_says_what_is_wrong(stack: RunningStack, path: str, body: bytes, status: int, message: str) -> None:
    answer = httpx.post(f"{stack.addresses['heads']}/v1/models/{path}", content=body, timeout=20)

    assert answer.status_code == status
    assert message in answer.json()["error"]
    assert len(answer.content) < 2_048
