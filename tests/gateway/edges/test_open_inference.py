import contextlib
import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from clients import Deadline, InvalidRequest, Unavailable
from clients.wire.catalogue import Catalogue, CatalogueHead, Metrics
from gateway.classification import Classification
from gateway.edges.open_inference import JSON_LENGTH, InferAnswer, InferInput, ModelMetadata, split_body, texts_of
from gateway.fanout import FanOut
from gateway.outputs import OutputCache, OutputRules
from gateway.pipeline import Pipeline
from gateway.plan import Planner
from tests.gateway.fakes import (
    FakeCatalogue,
    FakeEmbedder,
    FakeGateway,
    FakePredictor,
    FakeTrunks,
    head,
    live,
    manifest,
    raises,
    state_of,
)


@pytest.fixture
def gateway(trunks: FakeTrunks) -> FakeGateway:
    price = live(replace(manifest("price"), task="regression", labels=("value",)))
    spam = CatalogueHead(stable=7, versions={6: manifest("spam", version=6), 7: manifest("spam")})
    predictor = FakePredictor(
        bad=raises(Unavailable("at 10.0.0.7")), price=lambda rows: np.array([[-2.5]] * len(rows), np.float32)
    )
    return FakeGateway(state_of(trunks, spam, price, head("bad"), head("old", trunk="sha256:other"), predictor=predictor))


def tensor(*texts: str, **more: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts), **more}


def packed(*texts: str) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


async def infer(app: FakeGateway, body: Any, path: str = "/v2/models/spam/infer") -> Any:
    async with app.http() as http:
        return await http.post(path, json=body)


async def test_texts_come_back_as_tensors_of_labels_and_scores(gateway: FakeGateway) -> None:
    said = await infer(gateway, {"id": "mine", "inputs": [tensor("a", "b")]})

    msgspec.json.decode(said.content, type=InferAnswer)
    assert {
        "model_name": "spam",
        "model_version": "7",
        "id": "mine",
        "outputs": [
            {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["spam", "spam"]},
            {"name": "score", "shape": [2], "datatype": "FP32", "data": [0.75, 0.75]},
        ],
    } == said.json()


async def test_all_scores_come_in_the_order_of_the_labels_that_the_metadata_tells(gateway: FakeGateway) -> None:
    said = await infer(gateway, {"inputs": [tensor("a", "b", shape=[2, 1])], "outputs": [{"name": "scores"}]})
    async with gateway.http() as http:
        told = msgspec.json.decode((await http.get("/v2/models/spam")).content, type=ModelMetadata)

    assert {"name": "scores", "shape": [2, 2], "datatype": "FP32", "data": [0.25, 0.75] * 2} == said.json()["outputs"][0]
    assert [["ham", "spam"]] == [output.labels for output in told.outputs if output.name == "scores"]
    assert ["6", "7"] == told.versions


async def test_a_version_and_a_regression_answer(gateway: FakeGateway) -> None:
    older = await infer(gateway, {"inputs": [tensor("a")]}, "/v2/models/spam/versions/6/infer")
    outputs = [{"name": "label"}, {"name": "score"}, {"name": "scores"}]
    price = await infer(gateway, {"inputs": [tensor("a")], "outputs": outputs}, "/v2/models/price/infer")

    assert "6" == older.json()["model_version"]
    assert [[""], [-2.5], [-2.5]] == [output["data"] for output in price.json()["outputs"]]


async def test_texts_and_answers_may_travel_as_bytes(gateway: FakeGateway) -> None:
    behind = packed("a", "zwölf b")
    asked = {
        "inputs": [{"name": "x", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(behind)}}],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "label"}, {"name": "score"}, {"name": "scores", "parameters": {"binary_data": False}}],
    }
    said = json.dumps(asked).encode()
    async with gateway.http() as http:
        answer = await http.post("/v2/models/spam/infer", content=said + behind, headers={JSON_LENGTH: str(len(said))})
    length = int(answer.headers[JSON_LENGTH])
    outputs = json.loads(answer.content[:length])["outputs"]
    rest = answer.content[length:]

    assert "application/octet-stream" == answer.headers["content-type"]
    assert [16, 8, None] == [output.get("parameters", {}).get("binary_data_size") for output in outputs]
    assert packed("spam", "spam") == rest[:16]
    assert [0.75, 0.75] == np.frombuffer(rest[16:], "<f4").tolist()
    assert [0.25, 0.75, 0.25, 0.75] == outputs[2]["data"]


async def test_the_server_and_its_heads_tell_whether_they_answer(gateway: FakeGateway) -> None:
    async with gateway.http() as http:

        async def status(path: str) -> int:
            return (await http.get(path)).status_code

        assert ["binary_tensor_data"] == (await http.get("/v2")).json()["extensions"]
        assert {"live": True} == (await http.get("/v2/health/live")).json()
        assert {"ready": True} == (await http.get("/v2/health/ready")).json()
        assert [200, 200, 400, 404, 404, 404] == [
            await status(f"/v2/models/{path}")
            for path in ("spam/ready", "spam/versions/6/ready", "old/ready", "none/ready", "spam/versions/9", "spam/versions/x")
        ]
        gateway.state.drain.begin()
        assert 400 == await status("/v2/health/ready")


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": []},
        {"inputs": [tensor("a"), tensor("b")]},
        {"inputs": [tensor("a", datatype="SECRET")]},
        {"inputs": [tensor("a", datatype="FP32")]},
        {"inputs": [tensor("a", shape=[2])]},
        {"inputs": [tensor("a", shape=[1, 2])]},
        {"inputs": [tensor("a", "b", shape=[1, 2])]},
        {"inputs": [tensor(shape=[0])]},
        {"inputs": [tensor("a", shape=[-1])]},
        {"inputs": [tensor("a", shape=[2**31 - 1, 2**31 - 1])]},
        {"inputs": [tensor("a", shape=[])]},
        {"inputs": [tensor("a", parameters={"binary_data_size": 3})]},
        {"inputs": [tensor("a")], "outputs": [{"name": "SECRET"}]},
        {"inputs": [tensor("a")], "outputs": [{"name": "label"}, {"name": "label"}]},
        {"inputs": [tensor(*["a"] * 1_025)]},
        {"inputs": [tensor("")]},
    ],
)
async def test_what_is_no_tensor_of_texts_is_refused_in_the_protocols_shape(gateway: FakeGateway, body: Any) -> None:
    said = await infer(gateway, body)
    assert 400 == said.status_code, said.text
    assert {"error"} == said.json().keys()
    assert "SECRET" not in said.text


async def test_a_head_that_fails_or_is_not_there_is_an_error_of_the_protocol(gateway: FakeGateway) -> None:
    bad = await infer(gateway, {"inputs": [tensor("a")]}, "/v2/models/bad/infer")
    none = await infer(gateway, {"inputs": [tensor("a")]}, "/v2/models/none/infer")

    assert (503, {"error": "head 'bad' is not available"}) == (bad.status_code, bad.json())
    assert (404, {"error"}) == (none.status_code, set(none.json()))


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([9], ["a"]),
        ([3, 3], ["a"]),
        ([1], ["a"] * 9),
        ([2], [["a"] * 9]),
        ([8], [["a"] * 9] * 2),
    ],
)
def test_more_texts_than_one_request_may_have_are_refused(shape: list[int], data: list[str | list[str]]) -> None:
    with pytest.raises(InvalidRequest):
        texts_of(InferInput("x", shape, "BYTES", data=data), b"", 8)


def test_more_texts_than_one_request_may_have_are_refused_behind_the_json_too() -> None:
    behind = packed(*["a"] * 9)
    for count in (1, 8, 9):
        with pytest.raises(InvalidRequest):
            texts_of(InferInput("x", [count], "BYTES", {"binary_data_size": len(behind)}), behind, 8)


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_texts_survive_the_binary_tensor(texts: list[str]) -> None:
    behind = packed(*texts)
    described = InferInput("x", [len(texts)], "BYTES", {"binary_data_size": len(behind)})
    assert texts == texts_of(described, behind, len(texts))


@given(st.binary(), st.lists(st.integers(0, 9), min_size=1, max_size=2))
def test_a_binary_tensor_of_noise_is_texts_or_a_refusal(behind: bytes, shape: list[int]) -> None:
    described = InferInput("x", shape, "BYTES", {"binary_data_size": len(behind)})
    with contextlib.suppress(InvalidRequest):
        assert shape[0] == len(texts_of(described, behind, 100))


@given(st.binary(), st.text())
def test_a_body_of_noise_is_refused(content: bytes, length: str) -> None:
    with pytest.raises(InvalidRequest):
        split_body(content, length)


async def test_an_output_kept_of_a_version_that_is_gone_is_answered_as_that_versions(trunks: FakeTrunks) -> None:
    measured = Metrics(0.9, 0.9, 100, 100, "sha256:data")
    old, new = (replace(manifest("spam", version=version), metrics=measured) for version in (1, 2))
    state = state_of(trunks, live(new))
    outputs = OutputCache(1_000_000, OutputRules(), state.telemetry)
    for one in (old, new):
        outputs.follow(Catalogue({"spam": live(one)}))
        if one is old:
            kept = Pipeline(
                trunks,
                FakeEmbedder(trunks),
                FanOut(FakePredictor(), head_timeout=1),
                FakeCatalogue(live(old)),
                outputs,
                Planner(),
            )
            await kept.classify(Classification(["a"]), Deadline.after(5))
    state.pipeline = Pipeline(
        trunks, FakeEmbedder(trunks), FanOut(FakePredictor(), head_timeout=1), state.catalogue, outputs, Planner()
    )

    said = await infer(FakeGateway(state), {"inputs": [tensor("a")], "outputs": [{"name": "scores"}]})

    assert 200 == said.status_code
    assert "1" == said.json()["model_version"]
    assert [0.25, 0.75] == said.json()["outputs"][0]["data"]
