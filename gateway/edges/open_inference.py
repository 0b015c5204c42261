"""The Open Inference Protocol, version 2, for heads: what KServe, Triton and MLServer speak, over HTTP.

Protocol facts: https://github.com/kserve/open-inference-protocol, and its binary tensor data extension: with the header
`Inference-Header-Content-Length` the body is JSON of that length and behind it the tensors that have a `binary_data_size`; a text
there is its length, four bytes little-endian, and its bytes. Errors are {"error": message}. A text goes in as one BYTES tensor.
"""

import math
import struct
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from clients import Deadline, InvalidRequest, NotFound, TrunklineError, Unavailable
from clients.wire.asgi import header_of
from clients.wire.catalogue import CatalogueHead, Manifest
from clients.wire.http_errors import clipped
from gateway.classification import Classification, HeadAnswer
from gateway.errors import headers_of, status_of
from gateway.plan import refusal
from gateway.ports import FloatArray
from gateway.routes import (
    HEAD_NAME,
    REQUEST_HEADERS,
    State,
    classified,
    header,
    may_reuse,
    patience,
    read_body,
    ref,
    respond,
    sticky_key_of,
)
from gateway.schemas import Asked, components_of, decode

JSON_LENGTH: Final = "inference-header-content-length"
PLATFORM: Final = "trunkline_head"
OutputName = Literal["label", "score", "scores"]

Name = Annotated[str, msgspec.Meta(max_length=256)]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Parameters = dict[Name, bool | int | float | str | None]

router = APIRouter()


class InferInput(msgspec.Struct):
    """A tensor of texts: its *data*, or *parameters* with its `binary_data_size`."""

    name: Name
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]], msgspec.Meta(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    parameters: Parameters | None = None
    data: list[str | list[str]] | None = None


class InferOutput(msgspec.Struct):
    """A tensor that is asked for; *parameters*: `binary_data`."""

    name: OutputName
    parameters: Parameters | None = None


class InferBody(msgspec.Struct):
    """The body of `POST /v2/models/{name}/infer`; *parameters*: `binary_data_output`."""

    inputs: Annotated[list[InferInput], msgspec.Meta(min_length=1, max_length=1)]
    id: Name | None = None
    parameters: Parameters | None = None
    outputs: Annotated[list[InferOutput], msgspec.Meta(max_length=3)] | None = None


class OutputTensor(msgspec.Struct, omit_defaults=True):
    """An answer's tensor; without *data* it lies behind the JSON, `binary_data_size` bytes of it."""

    name: OutputName
    shape: list[int]
    datatype: Literal["BYTES", "FP32"]
    parameters: dict[str, int] | None = None
    data: list[str | float] | None = None


class InferAnswer(msgspec.Struct, omit_defaults=True):
    """label, BYTES [texts]; score, FP32 [texts]; scores, FP32 [texts, labels], in the order that the metadata tells."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | None = None


class TensorMetadata(msgspec.Struct, omit_defaults=True):
    """*labels*, an addition of ours, are those of the columns."""

    name: str
    datatype: str
    shape: list[int]
    labels: list[str] | None = None


class ModelMetadata(msgspec.Struct):
    """A head."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct):
    """The gateway."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(msgspec.Struct):
    """Whether the process lives."""

    live: bool


class ServerReady(msgspec.Struct):
    """Whether requests may be sent here."""

    ready: bool


class ModelReady(msgspec.Struct):
    """Whether a head answers."""

    name: str
    ready: bool


class InferError(msgspec.Struct):
    """An error in this protocol's shape."""

    error: str


SCHEMAS: Final = components_of(
    [InferBody, InferAnswer, ModelMetadata, ServerMetadata, ServerLive, ServerReady, ModelReady, InferError]
)


def _schema(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_decoder: Final = msgspec.json.Decoder(InferBody)
_VERSION: Final = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, **ref("InferError")}
    for status, text in {
        400: "The request can never be served as it is.",
        404: "There is no such head or version.",
        413: "The body is too long.",
        415: "The body is compressed.",
        429: "The gateway is full.",
        500: "The head failed in a way it should not.",
        502: "The head answered something that is not its contract.",
        503: "The head or the embedding service is not available.",
        504: "The deadline passed.",
    }.items()
}
_NOT_READY: Final = {
    "description": "No; or the request can never be served as it is.",
    "content": {"application/json": {"schema": {"anyOf": [_schema("ModelReady"), _schema("InferError")]}}},
}
_ASKED: Final = {status: _ERRORS[status] for status in (400, 404, 502, 503, 504)}


@router.get("/v2", summary="The server (OIP)", responses={200: {"description": "Its name.", **ref("ServerMetadata")}})
async def server(_: Request) -> Response:
    """Name, version and the protocol's extensions that are spoken here."""
    return _json(ServerMetadata("trunkline", "1", ["binary_tensor_data"]))


@router.get(
    "/v2/health/live", summary="Does the process live? (OIP)", responses={200: {"description": "Yes.", **ref("ServerLive")}}
)
async def live(_: Request) -> Response:
    """Always 200."""
    return _json(ServerLive(live=True))


@router.get(
    "/v2/health/ready",
    summary="May requests be sent here? (OIP)",
    responses={200: {"description": "Yes.", **ref("ServerReady")}, 400: {"description": "No.", **ref("ServerReady")}},
)
async def ready(request: Request) -> Response:
    """200, or the 400 that this protocol has for no."""
    state: State = request.state.gateway
    is_ready = state.catalogue.is_loaded and not state.is_draining
    try:
        await state.trunks.trunk(Deadline.after(1.0))
    except TrunklineError:
        is_ready = False
    return _json(ServerReady(is_ready), 200 if is_ready else 400)


def _both(path: str, *, post: bool = False, **told: Any) -> Callable[[Handler], Handler]:
    """A route for a head, and for one of its versions."""
    extra = told.pop("openapi_extra", {})
    parameters = extra.pop("parameters", [])

    def add(handler: Handler) -> Handler:
        for prefix, more in (("/v2/models/{name}", [HEAD_NAME]), ("/v2/models/{name}/versions/{version}", [HEAD_NAME, _VERSION])):
            given = {**extra, "parameters": [*more, *parameters]}
            named = f"{handler.__name__}_{len(more)}"
            method = router.post if post else router.get
            method(prefix + path, openapi_extra=given, operation_id=named, **told)(handler)
        return handler

    return add


@_both("", summary="A head (OIP)", responses={200: {"description": "Its tensors.", **ref("ModelMetadata")}, **_ASKED})
async def model(request: Request) -> Response:
    """Versions, and the tensors in and out; the labels of `scores` are named."""
    return await respond(request, _model, tell)


@_both(
    "/ready",
    summary="Does a head answer? (OIP)",
    responses={200: {"description": "Yes.", **ref("ModelReady")}, **_ASKED, 400: _NOT_READY},
)
async def model_ready(request: Request) -> Response:
    """200, or the 400 that this protocol has for no."""
    return await respond(request, _model_ready, tell)


@_both(
    "/infer",
    post=True,
    summary="Label texts by one head (OIP)",
    openapi_extra={
        "requestBody": {"required": True, **ref("InferBody")},
        "parameters": [header(JSON_LENGTH, "How long the JSON is, where tensors lie behind it."), *REQUEST_HEADERS],
    },
    responses={
        200: {
            "description": "The asked tensors; label and score where none is named.",
            "content": {**ref("InferAnswer")["content"], "application/octet-stream": {"schema": {"type": "string"}}},
        },
        **_ERRORS,
    },
)
async def infer(request: Request) -> Response:
    """One BYTES tensor of texts in; labels and scores out. A text without a label has an empty one."""
    return await respond(request, _infer, tell)


async def _model(request: Request, state: State) -> Response:
    head, manifest = found(request, state)
    outputs = [
        TensorMetadata("label", "BYTES", [-1]),
        TensorMetadata("score", "FP32", [-1]),
        TensorMetadata("scores", "FP32", [-1, len(manifest.labels)], list(manifest.labels)),
    ]
    versions = [str(version) for version in sorted(head.versions)]
    return _json(ModelMetadata(manifest.name, versions, PLATFORM, [TensorMetadata("text", "BYTES", [-1])], outputs))


async def _model_ready(request: Request, state: State) -> Response:
    _, manifest = found(request, state)
    trunk = await state.trunks.trunk(Deadline.after(patience(request, None, state.settings)))
    answers = not refusal(manifest, trunk)
    return _json(ModelReady(manifest.name, answers), 200 if answers else 400)


async def _infer(request: Request, state: State) -> Response:
    head, asked = found(request, state)
    content = await read_body(request, state)
    body, behind = split_body(content, header_of(request.scope["headers"], JSON_LENGTH.encode()))
    texts = texts_of(body.inputs[0], behind, state.settings.max_texts)
    wanted = wanted_of(body)
    word = asked_word(request)
    work = Classification(
        texts,
        [word],
        with_scores=any(output.name == "scores" for output in wanted),
        sticky_key=sticky_key_of(request),
        may_reuse=may_reuse(request),
    )
    deadline = Deadline.after(patience(request, None, state.settings))
    answer = await classified(request, state, Asked(work, is_strict=True), deadline)
    said = answer.outcomes[word]
    assert isinstance(said, list)  # the request was strict
    version = said[0].version
    # An output kept of a version that is gone by now stands for the one that was asked, and has its labels.
    labels = head.versions.get(version, asked).labels
    if any(one.scores is not None and one.scores.keys() != set(labels) for one in said):
        raise Unavailable("the head has been exchanged meanwhile; send it again")
    tensors = [tensor_of(output.name, said, labels) for output in wanted]
    return written(InferAnswer(asked.name, str(version), [], body.id), tensors, [output.is_binary for output in wanted])


def asked_word(request: Request) -> str:
    """The head as the pipeline is asked for it."""
    version = request.path_params.get("version")
    name: str = request.path_params["name"]
    return name if version is None else f"{name}@{version}"


def found(request: Request, state: State) -> tuple[CatalogueHead, Manifest]:
    """The head, and the version that the path names, or the stable one.

    Raises:
        NotFound: there is none such.
    """
    head = state.catalogue.catalogue.heads.get(request.path_params["name"])
    version = request.path_params.get("version")
    numbers = {str(number): number for number in head.versions} if head is not None else {}
    number = numbers.get(version) if version is not None else head.stable if head is not None else None
    if head is None or number is None:
        raise NotFound("there is no such head or version")
    return head, head.versions[number]


def split_body(content: bytes, json_length: str | None) -> tuple[InferBody, bytes]:
    """The JSON of *content*, and the bytes behind it.

    Raises:
        InvalidRequest: it has another shape, or *json_length* is no length within it.
    """
    length = len(content)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit() and len(json_length) < 12 and int(json_length) <= length):
            raise InvalidRequest(f"{JSON_LENGTH} is not a whole number of bytes of this body")
        length = int(json_length)
    return decode(_decoder, content[:length]), content[length:]


def texts_of(tensor: InferInput, behind: bytes, max_texts: int) -> list[str]:
    """The texts of *tensor*, which lie in its data, or in *behind*, all of it; of too many none is looked at.

    Raises:
        InvalidRequest: there are not as many as its shape says, or more than *max_texts*, they are not of one width, or are no
            UTF-8.
    """
    count = math.prod(tensor.shape)
    if max(count, len(tensor.data or ())) > max_texts:
        raise InvalidRequest(f"the tensor has more than the {max_texts} texts of one request; send several")
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is not None:
        if tensor.data is not None or size is True or size != len(behind):
            raise InvalidRequest("binary_data_size is not the number of bytes behind the JSON, or there is data beside it")
        texts = list(islice(_texts_in(behind), count + 1))
    else:
        if behind:
            raise InvalidRequest("there are bytes behind the JSON, and no tensor has a binary_data_size")
        rows = ([row] if isinstance(row, str) else row for row in tensor.data or ())
        texts = list(islice(chain.from_iterable(rows), count + 1))
    if not texts or count != len(texts) or count != tensor.shape[0]:
        raise InvalidRequest("the shape is not [texts] or [texts, 1] of the texts that are there, one at least")
    return texts


def _texts_in(behind: bytes) -> Iterator[str]:
    at = 0
    while at < len(behind):
        if len(behind) - at < 4:
            raise InvalidRequest("the binary tensor ends within a length")
        (length,) = struct.unpack_from("<I", behind, at)
        at += 4 + length
        if at > len(behind):
            raise InvalidRequest("the binary tensor ends within a text")
        try:
            yield behind[at - length : at].decode()
        except UnicodeDecodeError:
            raise InvalidRequest("a text of the binary tensor is not UTF-8") from None


class WantedOutput(NamedTuple):
    """A tensor that is asked for, and how it travels."""

    name: OutputName
    is_binary: bool


def wanted_of(body: InferBody) -> list[WantedOutput]:
    """The asked outputs: label and score where none is named.

    Raises:
        InvalidRequest: one is named twice.
    """
    by_default = bool((body.parameters or {}).get("binary_data_output"))
    outputs = body.outputs or [InferOutput("label"), InferOutput("score")]
    if len({output.name for output in outputs}) != len(outputs):
        raise InvalidRequest("an output is there twice; name each once")
    return [WantedOutput(output.name, bool((output.parameters or {}).get("binary_data", by_default))) for output in outputs]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Texts, or float32 of any shape."""

    name: OutputName
    values: list[str] | FloatArray


def tensor_of(name: OutputName, said: Sequence[HeadAnswer], labels: Sequence[str]) -> Tensor:
    """The output *name* of what a head with *labels* *said* of each text."""
    if name == "label":
        return Tensor(name, [one.label or "" for one in said])
    if name == "score":
        return Tensor(name, np.array([one.score for one in said], np.float32))
    rows = [[one.score] if one.scores is None else [one.scores[label] for label in labels] for one in said]
    return Tensor(name, np.array(rows, np.float32))


def written(answer: InferAnswer, tensors: Sequence[Tensor], are_binary: Sequence[bool]) -> Response:
    """*answer* with *tensors*, those that travel as bytes behind the JSON."""
    behind: list[bytes] = []
    for tensor, is_binary in zip(tensors, are_binary, strict=True):
        values = tensor.values
        shape = [len(values)] if isinstance(values, list) else list(values.shape)
        described = OutputTensor(tensor.name, shape, "BYTES" if isinstance(values, list) else "FP32")
        if is_binary:
            behind.append(_bytes_of(values))
            described.parameters = {"binary_data_size": len(behind[-1])}
        else:
            described.data = [*values] if isinstance(values, list) else [*map(float, values.ravel())]
        answer.outputs.append(described)
    said = msgspec.json.encode(answer)
    if not behind:
        return Response(said, media_type="application/json")
    return Response(b"".join([said, *behind]), headers={JSON_LENGTH: str(len(said))}, media_type="application/octet-stream")


def _bytes_of(values: list[str] | FloatArray) -> bytes:
    if not isinstance(values, list):
        return values.astype("<f4").tobytes()
    encoded = [text.encode() for text in values]
    return b"".join(part for text in encoded for part in (struct.pack("<I", len(text)), text))


def tell(error: TrunklineError, request_id: str) -> Response:
    """*error* in this protocol's shape."""
    body = InferError(clipped(error.message))
    return Response(msgspec.json.encode(body), status_of(error), headers_of(error, request_id), media_type="application/json")


def _json(content: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
