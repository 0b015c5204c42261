"""The gRPC edge: tensorflow.serving's PredictionService and ModelService, by upstream's paths and our own messages."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from clients.wire.metadata import MODEL_SERVICE, PREDICTION_SERVICE
from clients.wire.tfs import serving_pb2 as pb
from clients.wire.tfs.inference_pb2 import (
    ClassificationRequest,
    ClassificationResponse,
    MultiInferenceRequest,
    MultiInferenceResponse,
    RegressionRequest,
    RegressionResponse,
)
from head_service.serving.checks import decode_request
from head_service.serving.errors import ServingError, echo, invalid
from head_service.serving.inference import Inference
from head_service.serving.predict import Predictor, check_name, model_status
from head_service.serving.rpc_tensors import encode_tensor
from head_service.serving.servable import Servable
from head_service.serving.versions import VersionManager

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[Any, Any]

SIGNATURE_DEF = "signature_def"
SIGNATURE_MAP_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


class RpcEdge:
    """Answers both services. *as_content*: outputs as raw bytes instead of typed fields, which is quicker."""

    def __init__(self, manager: VersionManager, predictor: Predictor, *, as_content: bool) -> None:
        self._manager = manager
        self._predictor = predictor
        self._inference = Inference(predictor)
        self._as_content = as_content

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What `grpc.aio.Server.add_generic_rpc_handlers` takes."""
        prediction = {
            "Predict": _method(self.predict, pb.PredictRequest),
            "Classify": _method(self.classify, ClassificationRequest),
            "Regress": _method(self.regress, RegressionRequest),
            "MultiInference": _method(self.multi_inference, MultiInferenceRequest),
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
        return await _answered(context, self._predict(request, _deadline(context)))

    async def classify(self, request: ClassificationRequest, context: Context) -> ClassificationResponse:
        """`PredictionService.Classify`."""
        return await _answered(context, self._classify(request, _deadline(context)))

    async def regress(self, request: RegressionRequest, context: Context) -> RegressionResponse:
        """`PredictionService.Regress`."""
        return await _answered(context, self._regress(request, _deadline(context)))

    async def multi_inference(self, request: MultiInferenceRequest, context: Context) -> MultiInferenceResponse:
        """`PredictionService.MultiInference`."""
        return await _answered(context, self._multi_inference(request, _deadline(context)))

    async def metadata(self, request: pb.GetModelMetadataRequest, context: Context) -> pb.GetModelMetadataResponse:
        """`PredictionService.GetModelMetadata`."""
        return await _answered(context, self._metadata(request))

    async def status(self, request: pb.GetModelStatusRequest, context: Context) -> pb.GetModelStatusResponse:
        """`ModelService.GetModelStatus`."""
        return await _answered(context, self._status(request))

    async def reload(self, request: pb.ReloadConfigRequest, context: Context) -> pb.ReloadConfigResponse:
        """`ModelService.HandleReloadConfigRequest`."""
        return await _answered(context, self._reload(request))

    async def _predict(self, request: pb.PredictRequest, deadline: float | None) -> pb.PredictResponse:
        _check_spec(request)
        spec, outputs = await self._predictor.predict(
            request.model_spec,
            lambda servable, signature: decode_request(servable.signatures, signature, request.inputs),
            tuple(request.output_filter),
            deadline=deadline,
        )
        response = pb.PredictResponse(model_spec=spec)
        for alias, array in outputs.items():
            encode_tensor(response.outputs[alias], array, as_content=self._as_content)
        return response

    async def _classify(self, request: ClassificationRequest, deadline: float | None) -> ClassificationResponse:
        _check_spec(request)
        return await self._inference.classify(request, deadline)

    async def _regress(self, request: RegressionRequest, deadline: float | None) -> RegressionResponse:
        _check_spec(request)
        return await self._inference.regress(request, deadline)

    async def _multi_inference(self, request: MultiInferenceRequest, deadline: float | None) -> MultiInferenceResponse:
        # The model is looked up by its first task's spec; without one the empty name is what is wrong.
        check_name(request.tasks[0].model_spec if request.tasks else pb.ModelSpec())
        return await self._inference.multi(request, deadline)

    async def _metadata(self, request: pb.GetModelMetadataRequest) -> pb.GetModelMetadataResponse:
        _check_present(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != SIGNATURE_DEF:
                raise invalid(f"Metadata field {echo(name)} is not supported")
        check_name(request.model_spec)
        response = pb.GetModelMetadataResponse()
        with self._manager.use(request.model_spec) as (version, loaded):
            signatures = pb.SignatureDefMap(signature_def=cast("Servable", loaded).signature_bytes())
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        packed = response.metadata[SIGNATURE_DEF]
        packed.type_url, packed.value = SIGNATURE_MAP_URL, signatures.SerializeToString()
        return response

    async def _status(self, request: pb.GetModelStatusRequest) -> pb.GetModelStatusResponse:
        _check_present(request)
        return model_status(self._manager, request.model_spec)

    async def _reload(self, request: pb.ReloadConfigRequest) -> pb.ReloadConfigResponse:
        self._manager.configure(request.config)
        await self._manager.settle()
        return pb.ReloadConfigResponse(status=pb.Status())


def _check_spec(request: pb.PredictRequest | ClassificationRequest | RegressionRequest) -> None:
    _check_present(request)
    check_name(request.model_spec)


def _check_present(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _deadline(context: Context) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


async def _answered(context: Context, work: Awaitable[Answer]) -> Answer:
    try:
        return await work
    except ServingError as error:
        await context.abort(error.code, error.message)
    # What went wrong on our side is for our log; the caller learns that it was not the request.
    except Exception:
        _log.exception("a gRPC call met an error of ours")
        await context.abort(grpc.StatusCode.INTERNAL, "the server met an internal error")


def _method(function: Callable[..., Any], request: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    return grpc.unary_unary_rpc_method_handler(
        function, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )
