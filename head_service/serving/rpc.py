"""The gRPC edge: tensorflow.serving's PredictionService and ModelService, by upstream's paths and our own messages."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from numpy.typing import NDArray

from clients.wire.metadata import MODEL_SERVICE, PREDICTION_SERVICE
from clients.wire.tensors import TensorError, fill_tensor, from_tensor
from clients.wire.tfs import serving_pb2 as pb
from clients.wire.tfs import tensor_pb2
from head_service.serving.errors import ServingError, invalid
from head_service.serving.predict import Predictor, check_inputs, model_status
from head_service.serving.servable import Servable
from head_service.serving.versions import VersionManager

Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[Any, Any]

SIGNATURE_DEF = "signature_def"
SIGNATURE_MAP_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


class RpcEdge:
    """Answers both services. *as_content*: outputs as raw bytes instead of typed fields, which is quicker."""

    def __init__(self, manager: VersionManager, predictor: Predictor, *, as_content: bool) -> None:
        self._manager = manager
        self._predictor = predictor
        self._as_content = as_content

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What `grpc.aio.Server.add_generic_rpc_handlers` takes."""
        prediction = {
            "Predict": _method(self.predict, pb.PredictRequest),
            "GetModelMetadata": _method(self.metadata, pb.GetModelMetadataRequest),
        }
        model = {
            "GetModelStatus": _method(self.status, pb.GetModelStatusRequest),
            "HandleReloadConfigRequest": _method(self.reload, pb.ReloadConfigRequest),
        }
        return (
            grpc.method_handlers_generic_handler(PREDICTION_SERVICE, prediction),
            grpc.method_handlers_generic_handler(MODEL_SERVICE, model),
        )

    async def predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """`PredictionService.Predict`."""
        return await _answered(context, self._predict(request, context))

    async def metadata(self, request: pb.GetModelMetadataRequest, context: Context) -> pb.GetModelMetadataResponse:
        """`PredictionService.GetModelMetadata`."""
        return await _answered(context, self._metadata(request))

    async def status(self, request: pb.GetModelStatusRequest, context: Context) -> pb.GetModelStatusResponse:
        """`ModelService.GetModelStatus`."""
        return await _answered(context, self._status(request))

    async def reload(self, request: pb.ReloadConfigRequest, context: Context) -> pb.ReloadConfigResponse:
        """`ModelService.HandleReloadConfigRequest`."""
        return await _answered(context, self._reload(request))

    async def _predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        _check_spec(request.HasField("model_spec"), request.model_spec)
        remaining = context.time_remaining()
        spec, outputs = await self._predictor.predict(
            request.model_spec,
            lambda servable, signature: _decode(request, servable, signature),
            tuple(request.output_filter),
            deadline=None if remaining is None else time.monotonic() + remaining,
        )
        response = pb.PredictResponse(model_spec=spec)
        for alias, array in outputs.items():
            self._encode(response.outputs[alias], array)
        return response

    def _encode(self, tensor: tensor_pb2.Tensor, array: NDArray[Any]) -> None:
        fill_tensor(tensor, array)
        if not self._as_content and tensor.dtype == tensor_pb2.DT_FLOAT:
            tensor.float_val.extend(array.ravel().tolist())
            tensor.ClearField("tensor_content")

    async def _metadata(self, request: pb.GetModelMetadataRequest) -> pb.GetModelMetadataResponse:
        _check_spec(request.HasField("model_spec"), request.model_spec)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != SIGNATURE_DEF:
                raise invalid(f"Metadata field {name[:64]} is not supported")
        response = pb.GetModelMetadataResponse()
        with self._manager.use(request.model_spec) as (version, loaded):
            signatures = pb.SignatureDefMap(signature_def=cast("Servable", loaded).signature_bytes())
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        packed = response.metadata[SIGNATURE_DEF]
        packed.type_url, packed.value = SIGNATURE_MAP_URL, signatures.SerializeToString()
        return response

    async def _status(self, request: pb.GetModelStatusRequest) -> pb.GetModelStatusResponse:
        _check_spec(request.HasField("model_spec"), request.model_spec)
        return model_status(self._manager, request.model_spec)

    async def _reload(self, request: pb.ReloadConfigRequest) -> pb.ReloadConfigResponse:
        self._manager.configure(request.config)
        await self._manager.settle()
        return pb.ReloadConfigResponse(status=pb.Status())


def _decode(request: pb.PredictRequest, servable: Servable, signature: str) -> dict[str, NDArray[Any]]:
    check_inputs(servable, signature, request.inputs)
    arrays = {}
    for alias in servable.signatures[signature].inputs:
        try:
            arrays[alias] = from_tensor(request.inputs[alias])
        except TensorError:
            raise invalid(f"tensor parsing error: {alias}") from None
    return arrays


def _check_spec(present: bool, spec: pb.ModelSpec) -> None:
    if not present:
        raise invalid("Missing ModelSpec")
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")


async def _answered(context: Context, work: Awaitable[Answer]) -> Answer:
    try:
        return await work
    except ServingError as error:
        await context.abort(error.code, error.message)


def _method(function: Callable[..., Any], request: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    return grpc.unary_unary_rpc_method_handler(
        function, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )
