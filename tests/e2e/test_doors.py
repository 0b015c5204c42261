"""One text through every door of the gateway: the answers agree, whatever the protocol, on the real encoder."""

import httpx
import numpy as np
import openai
import pytest

from clients import EmbeddingClient, HeadResult, Result, View
from tests.e2e.conftest import RunningStack
from trunkline import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TEXTS = ["oil prices rose as opec agreed to cut crude output", "the company said its net profit rose to 12 mln dlrs"]


def test_every_protocol_gives_the_same_labels(stack: RunningStack) -> None:
    url = stack.addresses["ready"]
    with Client(url) as client:
        expected = [result.heads["topic"] for result in client.classify(TEXTS, heads=["topic"], scores=True)]
        streamed = list(client.classify_stream(TEXTS * 200, heads=["topic"]))
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": TEXTS}
    with httpx.Client(base_url=url, timeout=30) as http:
        one_head = http.post("/v1/heads/topic/classify", json={"texts": TEXTS})
        tei = http.post("/heads/topic/predict", json={"inputs": [[text] for text in TEXTS]}).json()
        oip = http.post("/v2/models/topic/infer", json={"inputs": [tensor]}).json()

    labels = [head.label for head in expected if isinstance(head, HeadResult)]
    assert ["crude", "earn"] == labels
    assert labels * 200 == [one.heads["topic"].label for one in streamed if isinstance(one, Result)]
    assert labels == [result["heads"]["topic"]["label"] for result in one_head.json()["results"]]
    assert "embed;dur=" in one_head.headers["server-timing"]
    assert labels == [ranked[0]["label"] for ranked in tei]
    assert labels == oip["outputs"][0]["data"]
    np.testing.assert_allclose([head.score for head in expected], oip["outputs"][1]["data"], atol=1e-4)
    np.testing.assert_allclose([head.score for head in expected], [ranked[0]["score"] for ranked in tei], atol=1e-4)


def test_the_openai_client_gets_the_vectors_that_the_embedding_service_gives(stack: RunningStack) -> None:
    with EmbeddingClient(stack.addresses["embedding-grpc"]) as client:
        expected = client.embed(TEXTS, views=[View()]).views[0].array
    with openai.OpenAI(base_url=f"{stack.addresses['ready']}/v1", api_key="any", max_retries=0) as client:
        found = client.embeddings.create(input=TEXTS, model="any")
        shorter = client.embeddings.create(input=TEXTS, model="any", dimensions=32)

    vectors = np.array([one.embedding for one in found.data])
    np.testing.assert_allclose(expected, vectors, atol=1e-3)
    cut = vectors[:, :32] / np.linalg.norm(vectors[:, :32], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, [one.embedding for one in shorter.data], atol=1e-3)
