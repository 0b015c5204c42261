"""The REST edge: TensorFlow Serving's predict, classify, regress, status and metadata.

Source: model_servers/{http_server,http_rest_api_handler}.cc. As there, a body is read whole before its model is looked up.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

import grpc
import msgspec
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from clients.wire.tfs import inference_pb2, serving_pb2
from head_service.serving.checks import check_size
from head_service.serving.errors import HTTP_STATUS, ServingError, echo, invalid
from head_service.serving.inference import Inference
from head_service.serving.predict import Predictor, check_name, model_status
from head_service.serving.rest_answers import (
    all_finite,
    classify_answer,
    column_answer,
    regress_answer,
    row_answer,
    written,
)
from head_service.serving.rest_body import BodyError, read_body
from head_service.serving.rest_examples import input_of
from head_service.serving.rest_json import parse_object, printable
from head_service.serving.rest_routes import Route as Asked
from head_service.serving.rest_routes import is_ours, route
from head_service.serving.rest_tensors import column_inputs, row_inputs
from head_service.serving.servable import Servable
from head_service.serving.signature import DEFAULT_SIGNATURE
from head_service.serving.versions import VersionManager

_log = logging.getLogger(__name__)

HEAVY_BYTES: Final = 64 * 1024
"""A body longer than this, or an answer of more numbers, is worked on beside the event loop."""

METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_ANY_ORIGIN: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_PREDICT_KEYS: Final = frozenset({"signature_name", "instances", "inputs"})
_EXAMPLES_KEYS: Final = frozenset({"signature_name", "context", "examples"})

Result = TypeVar("Result")


class RestEdge:
    """The routes. *timeout*: seconds a call may take, 0 for ever; *cors*: every answer may be read by any site's script."""

    def __init__(
        self, manager: VersionManager, predictor: Predictor, *, timeout: float, max_body_bytes: int, cors: bool = False
    ) -> None:
        self._manager = manager
        self._predictor = predictor
        self._inference = Inference(predictor)
        self._timeout = timeout
        self._max_body_bytes = max_body_bytes
        self._headers = _ANY_ORIGIN if cors else {}

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(routes=[Route("/{path:path}", self.handle, methods=METHODS)])

    async def handle(self, request: Request) -> Response:
        """Any path that nobody else answers."""
        path = request.scope["raw_path"].decode("latin-1") if "raw_path" in request.scope else request.url.path
        if not is_ours(path):
            return PlainTextResponse("Not Found", 404)
        try:
            content, status = await self._content(request, path), 200
        except ServingError as error:
            content, status = msgspec.json.encode({"error": error.message}), HTTP_STATUS[error.code]
        except BodyError as error:
            content, status = msgspec.json.encode({"error": error.message}), error.status
        # A caller gets an answer of the usual form whatever we did wrong.
        except Exception:
            _log.exception("a REST call met an error of ours")
            content, status = msgspec.json.encode({"error": "the server met an internal error"}), 500
        return Response(content, status, media_type="application/json", headers=self._headers)

    async def _content(self, request: Request, path: str) -> bytes:
        if request.method == "OPTIONS":
            if request.headers.get("origin", "").startswith(("http://", "https://")):
                return b""
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, "Origin header is missing in CORS preflight")
        asked = route(request.method, path)
        match asked.method:
            case "status":
                return self._status(asked)
            case "metadata":
                return self._metadata(asked)
        deadline = time.monotonic() + self._timeout if self._timeout > 0 else None
        body = await read_body(request.stream(), request.headers.get("content-encoding", ""), self._max_body_bytes)
        if asked.method == "predict":
            return await self._predict(asked, body, deadline)
        return await self._infer(asked, body, deadline)

    async def _predict(self, asked: Asked, body: bytes, deadline: float | None) -> bytes:
        is_heavy = len(body) > HEAVY_BYTES
        parsed, document = await _beside(is_heavy, lambda: parse_object(body, _PREDICT_KEYS))
        spec = asked.spec(_signature(parsed, document))
        check_name(spec)

        def decode(servable: Servable, signature: str) -> dict[str, NDArray[Any]]:
            return _inputs(parsed, document, servable, signature)

        _, outputs = await self._predictor.predict(spec, decode, deadline=deadline, heavy=is_heavy)

        def answer() -> bytes:
            shaped = row_answer(outputs) if "instances" in parsed else column_answer(outputs)
            return written(shaped, is_finite=all_finite(outputs))

        return await _beside(sum(array.size for array in outputs.values()) > HEAVY_BYTES, answer)

    async def _infer(self, asked: Asked, body: bytes, deadline: float | None) -> bytes:
        def read() -> tuple[serving_pb2.ModelSpec, inference_pb2.Input]:
            parsed, document = parse_object(body, _EXAMPLES_KEYS)
            return asked.spec(_signature(parsed, document)), input_of(parsed, document)

        spec, given = await _beside(len(body) > HEAVY_BYTES, read)
        if asked.method == "classify":
            request = inference_pb2.ClassificationRequest(model_spec=spec, input=given)
            answer = classify_answer((await self._inference.classify(request, deadline)).result)
        else:
            regression = inference_pb2.RegressionRequest(model_spec=spec, input=given)
            answer = regress_answer((await self._inference.regress(regression, deadline)).result)
        return written(answer, is_finite=False)

    def _status(self, asked: Asked) -> bytes:
        if not asked.name:
            raise invalid("Missing model name in request.")
        rows = [
            {
                # As the reference prints it: every field, 64-bit numbers as strings, the code by its name.
                "version": str(row.version),
                "state": serving_pb2.ModelVersionStatus.State.Name(row.state),
                "status": {"error_code": _code_name(row.status.error_code), "error_message": row.status.error_message},
            }
            for row in model_status(self._manager, asked.spec()).model_version_status
        ]
        return msgspec.json.encode({"model_version_status": rows})

    def _metadata(self, asked: Asked) -> bytes:
        if not asked.name:
            raise invalid("Missing model name in request.")
        with self._manager.use(asked.spec()) as (version, loaded):
            shown = cast("Servable", loaded).signature_dicts()
        model = {"name": asked.name, "signature_name": "", "version": str(version)}
        # A default may be NaN, so this is not msgspec's to write.
        return written({"model_spec": model, "metadata": {"signature_def": {"signature_def": shown}}}, is_finite=False)


def _signature(parsed: Mapping[str, Any], document: str) -> str:
    name = parsed.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"JSON Value: {document} not formatted correctly. 'signature_name' key must be a string value.")
    return printable(name)


def _inputs(parsed: Mapping[str, Any], document: str, servable: Servable, signature: str) -> dict[str, NDArray[Any]]:
    if signature not in servable.signatures:
        raise invalid(f'Serving signature name: "{echo(signature)}" not found in signature def')
    wanted = servable.signatures[signature].inputs
    if not wanted:
        raise invalid(f"Failed to get input map for signature: {'DEFAULT' if signature == DEFAULT_SIGNATURE else signature}")
    if "instances" in parsed and "inputs" in parsed:
        raise invalid(
            f"JSON Value: {document} Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if "inputs" in parsed:
        arrays = column_inputs(parsed["inputs"], wanted)
    elif "instances" in parsed:
        arrays = row_inputs(_instances(parsed["instances"], document), wanted)
    else:
        raise invalid("Missing 'inputs' or 'instances' key")
    check_size(wanted, {}, arrays)
    return arrays


def _instances(rows: object, document: str) -> list[Any]:
    if not isinstance(rows, list):
        raise invalid(f"JSON Value: {document} Expecting 'instances' to be an list/array")
    if not rows:
        raise invalid(f"JSON Value: {document} No values in 'instances' array")
    return rows


def _code_name(number: int) -> str:
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), "UNKNOWN")


async def _beside(is_heavy: bool, work: Callable[[], Result]) -> Result:
    """Do *work*, in a thread where it would hold up the event loop for long."""
    return await asyncio.to_thread(work) if is_heavy else work()
