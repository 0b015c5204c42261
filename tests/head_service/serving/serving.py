"""The embedded server in this process, and a client on our own stubs."""

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import numpy as np

from clients.wire.metadata import MODEL_SERVICE, PREDICTION_SERVICE
from clients.wire.tensors import from_tensor, to_tensor
from clients.wire.tfs import inference_pb2
from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.flags import parse_flags
from head_service.serving.listening import listening
from head_service.serving.server import running
from head_service.serving.settings import Settings, read_settings
from tests.head_service.serving.saved_models import WIDTH

ROWS = np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)


@dataclass(frozen=True)
class Client:
    """Calls one model."""

    channel: grpc.aio.Channel
    rest: str
    name: str = "m"

    def named(self, name: str) -> "Client":
        return Client(self.channel, self.rest, name)

    async def predict(self, rows: Any = ROWS, *, timeout: float = 10, **spec: Any) -> tuple[int, Any]:
        """The version that answered, and its logits."""
        request = pb.PredictRequest(model_spec=pb.ModelSpec(name=self.name, **spec), inputs={"embedding": to_tensor(rows)})
        response = await self._call(f"/{PREDICTION_SERVICE}/Predict", request, pb.PredictResponse, timeout)
        return response.model_spec.version.value, from_tensor(response.outputs["logits"])

    async def classify(self, request: inference_pb2.ClassificationRequest) -> Any:
        return await self._call(f"/{PREDICTION_SERVICE}/Classify", request, inference_pb2.ClassificationResponse, 10)

    async def regress(self, request: inference_pb2.RegressionRequest) -> Any:
        return await self._call(f"/{PREDICTION_SERVICE}/Regress", request, inference_pb2.RegressionResponse, 10)

    async def multi(self, request: inference_pb2.MultiInferenceRequest) -> Any:
        return await self._call(f"/{PREDICTION_SERVICE}/MultiInference", request, inference_pb2.MultiInferenceResponse, 10)

    async def states(self) -> dict[int, tuple[str, str]]:
        """Each version's state and error."""
        request = pb.GetModelStatusRequest(model_spec=pb.ModelSpec(name=self.name))
        response = await self._call(f"/{MODEL_SERVICE}/GetModelStatus", request, pb.GetModelStatusResponse, 10)
        return {
            item.version: (pb.ModelVersionStatus.State.Name(item.state), item.status.error_message)
            for item in response.model_version_status
        }

    async def reload(self, config: pb.ModelServerConfig) -> None:
        request = pb.ReloadConfigRequest(config=config)
        await self._call(f"/{MODEL_SERVICE}/HandleReloadConfigRequest", request, pb.ReloadConfigResponse, 10)

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://{self.rest}") as client:
            return await client.get(path)

    async def post(self, path: str, body: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://{self.rest}") as client:
            return await client.post(path, json=body)

    async def _call(self, path: str, request: Any, response: Any, timeout: float) -> Any:
        call = self.channel.unary_unary(
            path, request_serializer=lambda message: message.SerializeToString(), response_deserializer=response.FromString
        )
        return await call(request, timeout=timeout)


@contextlib.asynccontextmanager
async def server(
    base: Path,
    *flags: str,
    credentials: grpc.ChannelCredentials | None = None,
    path: Path | None = None,
) -> AsyncIterator[Client]:
    """A server of the model `m` below *base* (unless the flags say otherwise), which looks at its files all the time."""
    given = ["--port=0", "--rest_api_port=0", "--file_system_poll_wait_seconds=0.02", *flags]
    if not any(flag.startswith("--model_config_file=") for flag in flags):
        given += ["--model_name=m", f"--model_base_path={base}"]
    settings = read_settings(parse_flags(given))
    with listening(settings.flags) as listener:
        async with _client(settings, listener, credentials, path) as client:
            yield client


@contextlib.asynccontextmanager
async def _client(
    settings: Settings, listener: socket.socket, credentials: grpc.ChannelCredentials | None, path: Path | None
) -> AsyncIterator[Client]:
    async with running(settings, listener) as (rpc, rest):
        address = f"unix:{path}" if path else rpc
        if credentials is None:
            channel = grpc.aio.insecure_channel(address)
        else:
            options = [("grpc.ssl_target_name_override", "localhost")]
            channel = grpc.aio.secure_channel(address, credentials, options=options)
        async with channel:
            yield Client(channel, rest)
