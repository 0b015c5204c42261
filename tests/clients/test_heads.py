import asyncio

import grpc
import numpy as np
import pytest

from clients import (
    AsyncHeadClient,
    FailedPrecondition,
    HeadClient,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    ServerFault,
    VersionStatus,
)
from clients.wire.tensors import fill_tensor, from_tensor
from clients.wire.tfs import serving_pb2 as pb
from tests.clients.fakes import serving

PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
EMBEDDING = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


class FakeHeadServer:
    """Versions 1 and 2 of the head "double", which doubles its input; *answers* replaces an RPC's answer."""

    def __init__(self) -> None:
        self.predicts: list[pb.PredictRequest] = []
        self.configs: list[pb.ModelServerConfig] = []
        self.answers: dict[str, bytes] = {}

    def handlers(self):
        own = {PREDICT: self.predict, METADATA: self.metadata, STATUS: self.status, RELOAD: self.reload}
        return {path: self._answering(path, handler) for path, handler in own.items()}

    def _answering(self, path, handler):
        async def answer(data, context):
            return self.answers[path] if path in self.answers else await handler(data, context)

        return answer

    async def predict(self, data, context):
        request = pb.PredictRequest.FromString(data)
        self.predicts.append(request)
        if request.model_spec.name != "double":
            await context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(other)")
        doubled = from_tensor(request.inputs["embedding"]) * 2
        response = pb.PredictResponse()
        response.model_spec.version.value = request.model_spec.version.value or 2
        for name in request.output_filter or ["scores", "logits"]:
            fill_tensor(response.outputs[name], doubled)
        return response.SerializeToString()

    async def metadata(self, data, context):
        request = pb.GetModelMetadataRequest.FromString(data)
        assert list(request.metadata_field) == ["signature_def"]
        response = pb.GetModelMetadataResponse()
        response.metadata["signature_def"].value = pb.SignatureDefMap(
            signature_def={"serving_default": b"\n\x00"}
        ).SerializeToString()
        return response.SerializeToString()

    async def status(self, data, context):
        asked = pb.GetModelStatusRequest.FromString(data).model_spec
        response = pb.GetModelStatusResponse()
        for version, state in ((2, 30), (1, 50)):
            if asked.version.value in {0, version}:
                response.model_version_status.add(
                    version=version, state=state, status=pb.Status(error_code=0 if state == 30 else 13)
                )
        return response.SerializeToString()

    async def reload(self, data, context):
        self.configs.append(pb.ReloadConfigRequest.FromString(data).config)
        return pb.ReloadConfigResponse().SerializeToString()


@pytest.fixture
def server():
    return FakeHeadServer()


@pytest.fixture
async def client(server):
    async with serving(server.handlers()) as address, AsyncHeadClient(address) as client:
        yield client


async def test_a_head_answers_all_its_outputs_and_says_which_version_it_was(client, server):
    found = await client.predict("double", {"embedding": EMBEDDING})
    assert found.version == 2
    assert set(found.outputs) == {"scores", "logits"}
    np.testing.assert_array_equal(found.outputs["scores"], EMBEDDING * 2)
    spec = server.predicts[0].model_spec
    assert spec.WhichOneof("version_choice") is None
    assert spec.signature_name == ""


async def test_a_version_a_signature_and_a_filter_travel_in_the_request(client, server):
    found = await client.predict("double", {"embedding": EMBEDDING}, version=1, signature_name="other", output_filter=["scores"])
    assert found.version == 1
    assert list(found.outputs) == ["scores"]
    assert server.predicts[0].model_spec.version.value == 1
    assert server.predicts[0].model_spec.signature_name == "other"


async def test_a_label_travels_in_place_of_a_version(client, server):
    await client.predict("double", {"embedding": EMBEDDING}, label="stable")
    assert server.predicts[0].model_spec.version_label == "stable"


async def test_version_and_label_together_are_refused_here(client, server):
    with pytest.raises(InvalidRequest, match="not both"):
        await client.predict("double", {"embedding": EMBEDDING}, version=1, label="stable")
    assert server.predicts == []


async def test_an_array_without_a_wire_form_is_refused_here_by_its_input(client):
    with pytest.raises(InvalidRequest, match="embedding"):
        await client.predict("double", {"embedding": np.array([object()])})


@pytest.mark.parametrize("name", [1, "\ud800", None])
async def test_what_cannot_name_an_input_is_refused_here(client, server, name):
    with pytest.raises(InvalidRequest, match="the name of an input"):
        await client.predict("double", {name: EMBEDDING})
    assert server.predicts == []


@pytest.mark.parametrize("output_filter", ["scores", [1], ["\ud800"]])
async def test_outputs_are_asked_for_by_a_list_of_names(client, server, output_filter):
    with pytest.raises(InvalidRequest, match="output_filter is a list"):
        await client.predict("double", {"embedding": EMBEDDING}, output_filter=output_filter)
    assert server.predicts == []


async def test_a_version_that_is_no_64_bit_integer_is_refused_here(client):
    with pytest.raises(InvalidRequest, match="64-bit"):
        await client.predict("double", {"embedding": EMBEDDING}, version=2**63)


async def test_an_unknown_head_is_not_found(client):
    with pytest.raises(NotFound, match="Servable not found"):
        await client.predict("other", {"embedding": EMBEDDING})


async def test_a_tensor_that_is_not_what_it_promises_is_an_invalid_response(client, server):
    response = pb.PredictResponse()
    fill_tensor(response.outputs["scores"], EMBEDDING)
    response.outputs["scores"].tensor_content += b"x"
    server.answers[PREDICT] = response.SerializeToString()
    with pytest.raises(InvalidResponse, match="scores"):
        await client.predict("double", {"embedding": EMBEDDING})


async def test_another_version_than_asked_for_is_an_invalid_response(client, server):
    response = pb.PredictResponse()
    response.model_spec.version.value = 7
    server.answers[PREDICT] = response.SerializeToString()
    with pytest.raises(InvalidResponse, match="version 7 answered"):
        await client.predict("double", {"embedding": EMBEDDING}, version=1)


async def test_an_output_that_is_missing_is_an_invalid_response(client, server):
    server.answers[PREDICT] = pb.PredictResponse().SerializeToString()
    with pytest.raises(InvalidResponse, match="scores"):
        await client.predict("double", {"embedding": EMBEDDING}, output_filter=["scores"])


@pytest.mark.parametrize("path", [PREDICT, METADATA, STATUS, RELOAD])
async def test_bytes_that_are_no_message_are_an_invalid_response(client, server, path):
    server.answers[path] = b"\xff\xff\xff"
    calls = {
        PREDICT: lambda: client.predict("double", {"embedding": EMBEDDING}),
        METADATA: lambda: client.metadata("double"),
        STATUS: lambda: client.status("double"),
        RELOAD: lambda: client.reload_config(pb.ModelServerConfig()),
    }
    with pytest.raises(InvalidResponse):
        await calls[path]()


async def test_status_tells_each_versions_state(client):
    assert await client.status("double") == (
        VersionStatus(2, "AVAILABLE", 0, ""),
        VersionStatus(1, "END", 13, ""),
    )
    assert [one.version for one in await client.status("double", version=1)] == [1]


async def test_a_state_this_library_does_not_know_is_unknown(client, server):
    response = pb.GetModelStatusResponse()
    response.model_version_status.add(version=3, state=35)
    server.answers[STATUS] = response.SerializeToString()
    assert (await client.status("double"))[0].state == "UNKNOWN"


async def test_metadata_gives_signatures_by_name(client):
    assert await client.metadata("double") == {"serving_default": b"\n\x00"}


async def test_metadata_without_signatures_is_an_invalid_response(client, server):
    server.answers[METADATA] = b""
    with pytest.raises(InvalidResponse, match="no signatures"):
        await client.metadata("double")


async def test_a_configuration_arrives_as_it_was_written(client, server):
    config = pb.ModelServerConfig()
    config.model_config_list.config.add(name="double", base_path="/heads/double", version_labels={"stable": 2})
    await client.reload_config(config)
    assert server.configs == [config]


@pytest.mark.parametrize(("code", "error"), [(9, FailedPrecondition), (2, ServerFault), (999, ServerFault)])
async def test_a_reload_that_failed_in_its_own_status_is_raised(client, server, code, error):
    failed = pb.ReloadConfigResponse(status=pb.Status(error_code=code, error_message="no such version"))
    server.answers[RELOAD] = failed.SerializeToString()
    with pytest.raises(error, match="no such version"):
        await client.reload_config(pb.ModelServerConfig())


async def test_the_blocking_twin_answers_the_same(server):
    def calls(address):
        with HeadClient(address) as blocking:
            blocking.reload_config(pb.ModelServerConfig())
            found = blocking.predict("double", {"embedding": EMBEDDING}, version=1)
            return found, blocking.status("double", version=2), blocking.metadata("double")

    async with serving(server.handlers()) as address:
        found, status, metadata = await asyncio.to_thread(calls, address)
    np.testing.assert_array_equal(found.outputs["scores"], EMBEDDING * 2)
    assert found.version == 1
    assert status == (VersionStatus(2, "AVAILABLE", 0, ""),)
    assert metadata == {"serving_default": b"\n\x00"}
    assert len(server.configs) == 1


async def test_a_predict_request_has_upstreams_field_numbers():
    """The wire is checked against field numbers written down here from upstream, not against our .proto files."""
    from clients._heads_wire import build_predict

    data = build_predict(
        "h",
        {"e": np.array([1.0], np.float32)},
        version=3,
        label=None,
        signature_name="s",
        output_filter=["o"],
    )
    spec = b"\x0a\x01h" + b"\x12\x02\x08\x03" + b"\x1a\x01s"
    tensor = b"\x08\x01" + b"\x12\x04\x12\x02\x08\x01" + b"\x22\x04\x00\x00\x80\x3f"
    entry = b"\x0a\x01e" + b"\x12" + bytes([len(tensor)]) + tensor
    expected = b"\x0a" + bytes([len(spec)]) + spec + b"\x12" + bytes([len(entry)]) + entry + b"\x1a\x01o"
    assert data == expected
