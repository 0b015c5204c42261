import pytest
from typer.testing import CliRunner

from tests.tiny_trunk import make_tiny_trunk
from trunkline.cli import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUNKLINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    trunk = str(make_tiny_trunk(tmp_path / "tiny"))
    return lambda *words: CliRunner().invoke(app, ["models", *(trunk if word == "TRUNK" else word for word in words)])


def test_a_trunk_is_prepared_listed_verified_and_compared(run, tmp_path):
    prepared = run("prepare", "TRUNK", "--engine", "onnx-fp32")
    listed, verified = run("list"), run("verify")
    compared = run("compare", "TRUNK", "--engines", "onnx-fp32, openvino-fp32")

    assert 0 == prepared.exit_code, prepared.output
    assert "tiny is ready: onnxruntime fp32, 32 wide" in prepared.output
    assert "onnxruntime fp32" in listed.output
    assert "tiny, onnxruntime fp32: whole" in verified.output
    assert 0 == compared.exit_code, compared.output
    assert "100.00%" in compared.output
    assert "openvino fp32" in compared.output

    [graph] = (tmp_path / "cache" / "graphs").glob("*-onnx-fp32-*/graph.onnx")
    graph.write_bytes(b"broken")
    assert 1 == run("verify").exit_code
    assert "0 MB removed" in run("prune").output


def test_an_unknown_engine_is_named_with_those_there_are(run):
    asked = run("prepare", "TRUNK", "--engine", "gpt")
    assert 2 == asked.exit_code
    assert "onnx-fp32" in asked.output
