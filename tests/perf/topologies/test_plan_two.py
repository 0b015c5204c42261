from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import text_format

from clients import AsyncHeadClient, NotFound
from clients.wire.tensors import fill_tensor, from_tensor
from clients.wire.text import TextEncoder
from clients.wire.tfs import serving_pb2 as pb
from perf.topologies.plan import HeadWeights
from perf.topologies.plan_two import PLAN, WholeModelCaller, embedded_server, real_server, write_config
from tests.clients.fakes import serving
from tests.perf.topologies.weighted import head
from tests.tiny_trunk import make_tiny_trunk

PREDICT = "/tensorflow.serving.PredictionService/Predict"
HEADS = (head("first", "x", "y"), head("second", "u", "v", "w", width=3))


class WholeModels:
    """Scores that say the label in the place of the number of tokens, as far as there are so many."""

    def __init__(self, *heads: HeadWeights) -> None:
        self._heads = {head.name: head for head in heads}
        self.requests: list[pb.PredictRequest] = []

    async def predict(self, data, context):
        request = pb.PredictRequest.FromString(data)
        self.requests.append(request)
        if request.model_spec.name not in self._heads:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        num_labels = len(self._heads[request.model_spec.name].labels)
        lengths = from_tensor(request.inputs["padding_mask"]).sum(axis=1) - 2
        response = pb.PredictResponse()
        fill_tensor(response.outputs["scores"], np.eye(num_labels, dtype=np.float32)[np.minimum(lengths, num_labels - 1)])
        return response.SerializeToString()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    trunk = make_tiny_trunk(tmp_path_factory.mktemp("trunk") / "tiny")
    return TextEncoder((trunk / "tokenizer.json").read_bytes(), max_tokens=16)


async def test_the_caller_pads_token_ids_and_maps_each_model_s_scores_to_labels(encoder: TextEncoder) -> None:
    models = WholeModels(*HEADS)
    async with serving({PREDICT: models.predict}) as address, AsyncHeadClient(address) as client:
        labels = await WholeModelCaller(client, encoder, HEADS).classify(["", "a", "a b"])

    assert [{"first": "x", "second": "u"}, {"first": "y", "second": "v"}, {"first": "y", "second": "w"}] == labels
    assert 2 == len(models.requests)
    token_ids = from_tensor(models.requests[0].inputs["token_ids"])
    assert ((3, 4), np.int32) == (token_ids.shape, token_ids.dtype)
    assert [2, 3, 0, 0] == token_ids[0].tolist()


async def test_a_model_that_is_missing_is_raised(encoder: TextEncoder) -> None:
    models = WholeModels(HEADS[0])
    async with serving({PREDICT: models.predict}) as address, AsyncHeadClient(address) as client:
        with pytest.raises(NotFound):
            await WholeModelCaller(client, encoder, HEADS).classify(["a"])


def test_every_head_is_a_model_of_its_own_in_the_configuration(tmp_path: Path) -> None:
    write_config(tmp_path / "models.config", tmp_path, HEADS)
    config = text_format.Parse((tmp_path / "models.config").read_text(), pb.ModelServerConfig())

    assert {"first": f"{tmp_path}/first", "second": f"{tmp_path}/second"} == {
        one.name: one.base_path for one in config.model_config_list.config
    }
    assert {"tensorflow"} == {one.model_platform for one in config.model_config_list.config}


def test_a_server_of_whole_models_does_not_inherit_what_our_modules_set_for_tensorflow(tmp_path: Path) -> None:
    environ = {"PATH": "/bin", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    real, embedded = (
        real_server("/bin/server", tmp_path / "models.config", environ),
        embedded_server(tmp_path / "models.config", environ),
    )

    assert {"PATH": "/bin", "TF_CPP_MIN_LOG_LEVEL": "0"} == real.env
    assert {"PATH": "/bin", "TF_ENABLE_ONEDNN_OPTS": "1", "PYTHONUNBUFFERED": "1"} == embedded.env


def test_the_address_is_known_before_or_told_when_the_server_is_ready(tmp_path: Path) -> None:
    real, embedded = real_server("/bin/server", tmp_path / "m", {}), embedded_server(tmp_path / "m", {})
    said = "I tensorflow_serving/model_servers/server.cc:423] Running gRPC ModelServer at 0.0.0.0:8500 ..."
    match = embedded.ready.search("serving grpc=127.0.0.1:4711 rest=127.0.0.1:4712")

    assert real.ready.search(said)
    assert f"--port={real.address.removeprefix('127.0.0.1:')}" in real.command
    assert match is not None
    assert ("127.0.0.1:4711", "") == (match[1], embedded.address)


def test_labels_may_differ_in_one_of_a_hundred() -> None:
    assert 0.99 == PLAN.least_agreement
