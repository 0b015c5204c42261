"""The REST edge: TensorFlow Serving's predict, status and metadata. Source of routes and words: http_rest_api_handler.cc."""

import json
import re
import time
from typing import Any, Final, cast
from urllib.parse import unquote

import msgspec
import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.errors import HTTP_STATUS, ServingError, invalid
from head_service.serving.predict import Predictor, model_status
from head_service.serving.servable import DEFAULT_SIGNATURE, Servable
from head_service.serving.tensors import JsonTensorError, array_of, json_of
from head_service.serving.versions import VersionManager

_WHICH: Final = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
PREDICT: Final = re.compile(rf"(?i)/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)")
STATUS: Final = re.compile(rf"(?i)/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?:/(?P<metadata>metadata))?")
MAX_VERSION: Final = 2**63 - 1


class PredictBody(msgspec.Struct):
    """What is read of a predict request; other keys are ignored."""

    signature_name: str = DEFAULT_SIGNATURE
    instances: Any = msgspec.UNSET
    inputs: Any = msgspec.UNSET


class RestEdge:
    """The routes."""

    def __init__(self, manager: VersionManager, predictor: Predictor, *, timeout: float, max_body_bytes: int) -> None:
        self._manager = manager
        self._predictor = predictor
        self._timeout = timeout
        self._max_body_bytes = max_body_bytes

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(routes=[Route("/v1/{rest:path}", self.handle, methods=["GET", "POST"])])

    async def handle(self, request: Request) -> Response:
        """Any path below /v1/."""
        try:
            return await self._route(request)
        except ServingError as error:
            return _json({"error": error.message}, HTTP_STATUS[error.code])

    async def _route(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode("latin-1") if "raw_path" in request.scope else request.url.path
        if request.method == "POST" and (match := PREDICT.fullmatch(path)):
            return await self._predict(request, match)
        if request.method == "GET" and (match := STATUS.fullmatch(path)):
            if match["name"] is None:
                raise invalid("Missing model name in request.")
            return self._metadata(match) if match["metadata"] else self._status(match)
        raise invalid(f"Malformed request: {request.method} {path[:64]}")

    async def _predict(self, request: Request, match: re.Match[str]) -> Response:
        body, refusal = await self._body(request)
        if refusal is not None:
            return refusal
        if match["method"].lower() != "predict":
            raise invalid(f"{match['method']} is not served here; use predict")
        parsed = _parse(body)
        spec = _spec(match, parsed.signature_name)
        is_row = parsed.instances is not msgspec.UNSET

        def decode(servable: Servable, signature: str) -> dict[str, NDArray[Any]]:
            return (_row_inputs if is_row else _columnar_inputs)(parsed, servable, signature)

        _, outputs = await self._predictor.predict(spec, decode, deadline=time.monotonic() + self._timeout)
        return _json(_row_answer(outputs) if is_row else _columnar_answer(outputs))

    def _status(self, match: re.Match[str]) -> Response:
        response = model_status(self._manager, _spec(match))
        return _json(_explicit(response))

    def _metadata(self, match: re.Match[str]) -> Response:
        from tensorflow.core.protobuf import meta_graph_pb2  # noqa: PLC0415 (loaded already, by the servable)

        spec = _spec(match)
        with self._manager.use(spec) as (version, loaded):
            signatures = cast("Servable", loaded).signature_bytes()
        parsed = {name: meta_graph_pb2.SignatureDef.FromString(data) for name, data in signatures.items()}
        shown = {
            name: json_format.MessageToDict(
                definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for name, definition in parsed.items()
        }
        model = {"name": spec.name, "signature_name": "", "version": str(version)}
        return _json({"model_spec": model, "metadata": {"signature_def": {"signature_def": shown}}})

    async def _body(self, request: Request) -> tuple[bytes, Response | None]:
        if request.headers.get("content-encoding", "identity") != "identity":
            return b"", _json({"error": "compressed bodies are not accepted"}, 415)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                return b"", _json({"error": f"the body is longer than {self._max_body_bytes} bytes"}, 413)
        return bytes(body), None


def _parse(body: bytes) -> PredictBody:
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        parsed = msgspec.json.decode(body, type=PredictBody)
    except msgspec.ValidationError as error:
        if "signature_name" in str(error):
            raise invalid("JSON body: 'signature_name' key must be a string value.") from None
        raise invalid("JSON body must be an object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("JSON Parse error: Invalid value.") from None
    if (parsed.instances is msgspec.UNSET) == (parsed.inputs is msgspec.UNSET):
        raise invalid(
            "Missing 'inputs' or 'instances' key" if parsed.inputs is msgspec.UNSET else "Both 'inputs' and 'instances' keys"
        )
    return parsed


def _row_inputs(body: PredictBody, servable: Servable, signature: str) -> dict[str, NDArray[Any]]:
    wanted = _signature_inputs(servable, signature)
    rows = body.instances
    if not isinstance(rows, list) or not rows:
        raise invalid("'instances' must be a list with at least one element")
    if len(wanted) == 1 and not isinstance(rows[0], dict):
        [alias] = wanted
        return {alias: _array(rows, wanted[alias], "instances")}
    if not all(isinstance(row, dict) and row.keys() == wanted.keys() for row in rows):
        raise invalid(f"Failed to process element of 'instances' list. Error: its keys must be {', '.join(wanted)}")
    return {alias: _array([row[alias] for row in rows], dtype, alias) for alias, dtype in wanted.items()}


def _columnar_inputs(body: PredictBody, servable: Servable, signature: str) -> dict[str, NDArray[Any]]:
    wanted = _signature_inputs(servable, signature)
    given = body.inputs
    if len(wanted) == 1 and not (isinstance(given, dict) and given.keys() == wanted.keys()):
        [alias] = wanted
        return {alias: _array(given, wanted[alias], alias)}
    missing = [alias for alias in wanted if not isinstance(given, dict) or alias not in given]
    if missing:
        raise invalid(f"Missing named input: {missing[0]} in 'inputs' object.")
    return {alias: _array(given[alias], dtype, alias) for alias, dtype in wanted.items()}


def _signature_inputs(servable: Servable, signature: str) -> dict[str, np.dtype[Any]]:
    return {alias: info.dtype for alias, info in servable.signatures[signature].inputs.items()}


def _array(value: object, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    try:
        return array_of(value, dtype)
    except (JsonTensorError, OverflowError, TypeError) as error:
        raise invalid(f"{where}: {error}"[:512]) from None


def _row_answer(outputs: dict[str, NDArray[Any]]) -> dict[str, Any]:
    listed = {alias: _listed(alias, array) for alias, array in outputs.items()}
    sizes = {array.shape[0] if array.ndim else None for array in outputs.values()}
    if len(sizes) != 1 or None in sizes:
        raise invalid("the outputs do not share one batch size; ask in columnar format")
    if len(listed) == 1:
        return {"predictions": next(iter(listed.values()))}
    return {"predictions": [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)]}


def _columnar_answer(outputs: dict[str, NDArray[Any]]) -> dict[str, Any]:
    listed = {alias: _listed(alias, array) for alias, array in outputs.items()}
    return {"outputs": next(iter(listed.values())) if len(listed) == 1 else listed}


def _listed(alias: str, array: NDArray[Any]) -> Any:
    return json_of(array, as_base64=alias.endswith("_bytes"))


def _spec(match: re.Match[str], signature: str = "") -> pb.ModelSpec:
    spec = pb.ModelSpec(name=unquote(match["name"]), signature_name=signature)
    if match["version"] is not None:
        number = int(match["version"]) if len(match["version"]) < 20 else MAX_VERSION + 1
        if number > MAX_VERSION:
            raise invalid("the version is out of range")
        spec.version.value = number
    elif match["label"] is not None:
        spec.version_label = unquote(match["label"])
    return spec


def _explicit(response: pb.GetModelStatusResponse) -> dict[str, Any]:
    """As the reference prints it: every field, 64-bit numbers as strings, the code by name."""
    rows = [
        {
            "version": str(row.version),
            "state": pb.ModelVersionStatus.State.Name(row.state),
            "status": {"error_code": "UNKNOWN" if row.status.error_code else "OK", "error_message": row.status.error_message},
        }
        for row in response.model_version_status
    ]
    return {"model_version_status": rows}


def _json(content: dict[str, Any], status: int = 200) -> Response:
    # Python's writer, not msgspec's: the reference writes NaN and Infinity as bare words, and so does this one.
    return Response(json.dumps(content), status, media_type="application/json")
