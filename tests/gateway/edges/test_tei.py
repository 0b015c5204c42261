import math
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError
from msgspec.structs import replace

from clients import Unavailable
from gateway.edges.tei import KINDS, PLAIN
from gateway.errors import HTTP_ONLY, STATUS
from tests.gateway.fakes import FakeGateway, FakePredictor, FakeTrunks, head, live, manifest, raises, state_of


@pytest.fixture(autouse=True)
def _client_may_reach_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run with the hub switched off, which this client takes for every address."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def gateway(trunks: FakeTrunks) -> FakeGateway:
    tags = live(replace(manifest("tags"), task="multi_label"), default=False)
    price = live(replace(manifest("price"), task="regression", labels=("value",)), default=False)
    predictor = FakePredictor(
        bad=raises(Unavailable("at 10.0.0.7")), price=lambda rows: np.array([[-2.5]] * len(rows), np.float32)
    )
    return FakeGateway(state_of(trunks, head("spam"), tags, price, head("bad", default=False), predictor=predictor))


async def test_the_hugging_face_client_labels_a_text_by_the_default_head_and_by_a_named_one(gateway: FakeGateway) -> None:
    async with gateway.served() as url:
        for path in ("/predict", "/heads/spam/predict"):
            async with AsyncInferenceClient(url + path) as client:
                # It takes the first element of whatever list comes back.
                best = await client.text_classification("a b", top_k=1)

            assert ("spam", 0.75) == (best.label, best.score)


@pytest.mark.parametrize("inputs", [[["a"]] * 1_025, ["a"] * 1_025, [["a"]] * 1_024 + ["a"]])
async def test_a_batch_of_too_many_is_refused(gateway: FakeGateway, inputs: list[Any]) -> None:
    async with gateway.http() as http:
        said = await http.post("/predict", json={"inputs": inputs})
    assert 422 == said.status_code
    assert "batch size 1025 > maximum allowed batch size 1024" == said.json()["error"]


async def test_the_hugging_face_client_sees_a_refusal_as_its_own_error(gateway: FakeGateway) -> None:
    async with gateway.served() as url, AsyncInferenceClient(f"{url}/heads/none/predict") as client:
        with pytest.raises(HfHubHTTPError):
            await client.text_classification("a")


@pytest.mark.parametrize(
    ("inputs", "answer"),
    [
        ("a", [["spam", 0.75], ["ham", 0.25]]),
        (["a"], [["spam", 0.75], ["ham", 0.25]]),
        ([["a"]], [[["spam", 0.75], ["ham", 0.25]]]),
        ([["a"], ["b"]], [[["spam", 0.75], ["ham", 0.25]]] * 2),
    ],
)
async def test_one_text_gets_a_list_of_labels_and_a_batch_a_list_of_those(gateway: FakeGateway, inputs: Any, answer: Any) -> None:
    def plain(said: Any) -> Any:
        return [said["label"], said["score"]] if isinstance(said, dict) else [plain(one) for one in said]

    async with gateway.http() as http:
        said = await http.post("/predict", json={"inputs": inputs, "truncate": True, "raw_scores": False})
    assert answer == plain(said.json())
    assert "cpu" == said.headers["x-compute-type"]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": ["a", "b"]}, 422, "Validation"),
        ({"inputs": [["a"], ["b", "c"]]}, 422, "Validation"),
        ({"inputs": ["a", ["b"]]}, 422, "Validation"),
        ({"inputs": ["a", "b", "c"]}, 422, "Validation"),
        ({"inputs": "a " * 200, "truncate": False}, 422, "Validation"),
        ({"inputs": " \n"}, 422, "Validation"),
        ({"inputs": ""}, 400, "Empty"),
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": [["a"], [""]]}, 400, "Empty"),
        ({"inputs": [["a"]] * 2_000}, 422, "Validation"),
    ],
)
async def test_what_cannot_be_labelled_is_refused_in_the_protocols_shape(
    gateway: FakeGateway, body: Any, status: int, kind: str
) -> None:
    async with gateway.http() as http:
        said = await http.post("/heads/spam/predict", json=body)
    assert (status, kind) == (said.status_code, said.json()["error_type"])
    assert {"error", "error_type"} == said.json().keys()


async def test_a_body_that_cannot_be_read_is_answered_in_plain_text(gateway: FakeGateway) -> None:
    async with gateway.http() as http:
        broken = await http.post("/predict", content=b"{")
        wrong = await http.post("/predict", json={"inputs": {"SECRET": 1}})
        packed = await http.post("/predict", content=b"", headers={"content-encoding": "gzip"})
    assert [400, 422, 415] == [one.status_code for one in (broken, wrong, packed)]
    assert all(one.headers["content-type"].startswith("text/plain") for one in (broken, wrong, packed))
    assert "SECRET" not in wrong.text


async def test_raw_scores_are_numbers_that_give_the_scores_again(gateway: FakeGateway) -> None:
    async with gateway.http() as http:
        single = (await http.post("/heads/spam/predict", json={"inputs": "a", "raw_scores": True})).json()
        several = (await http.post("/heads/tags/predict", json={"inputs": "a", "raw_scores": True})).json()
    raw = np.array([one["score"] for one in single])
    np.testing.assert_allclose([0.75, 0.25], np.exp(raw) / np.exp(raw).sum(), rtol=1e-6)
    np.testing.assert_allclose([0.75, 0.25], [1 / (1 + math.exp(-one["score"])) for one in several], rtol=1e-6)


async def test_a_regressions_value_is_its_score(gateway: FakeGateway) -> None:
    async with gateway.http() as http:
        said = await http.post("/heads/price/predict", json={"inputs": "a"})
    assert [{"score": -2.5, "label": "value"}] == said.json()


async def test_a_head_that_fails_is_an_error_of_the_protocol(gateway: FakeGateway) -> None:
    async with gateway.http() as http:
        said = await http.post("/heads/bad/predict", json={"inputs": "a"})
    assert (503, "Unhealthy") == (said.status_code, said.json()["error_type"])
    assert "10.0.0.7" not in said.text


async def test_there_is_no_default_where_several_heads_are(trunks: FakeTrunks) -> None:
    async with FakeGateway(state_of(trunks, head("one"), head("two"))).http() as http:
        said = await http.post("/predict", json={"inputs": "a"})
    assert 404 == said.status_code
    assert "/heads/NAME/predict" in said.json()["error"]


def test_every_error_of_ours_has_a_status_in_the_protocol() -> None:
    for error in (*STATUS, *HTTP_ONLY):
        assert error in PLAIN or any(base in KINDS for base in error.__mro__)
