"""OpenAI's embeddings over the shared trunk, so that its clients can be pointed here unchanged.

Protocol facts: `POST /v1/embeddings` and `GET /v1/models`. Its Python client asks for base64 when its user says nothing,
and base64 there is little-endian float32; optional fields may be null.
"""

import asyncio
import base64
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from clients import Deadline, InvalidRequest, TrunklineError
from clients.wire.asgi import while_connected
from clients.wire.http_errors import clipped
from gateway.embedding import cut
from gateway.errors import headers_of, status_of
from gateway.ports import FloatArray
from gateway.quota import charge
from gateway.routes import REQUEST_HEADERS, State, patience, read_body, ref, respond
from gateway.schemas import components_of, decode

INLINE_NUMBERS: Final = 20_000
"""Up to here writing an answer takes about a millisecond and stays on the loop."""

MAX_TOKEN_IDS: Final = 65_536
"""Of one input; far above what a trunk reads."""

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]

router = APIRouter()


class EmbeddingsBody(msgspec.Struct):
    """The body of `POST /v1/embeddings`. *model* is not looked at: there is one trunk here."""

    input: str | list[str | TokenId | list[TokenId]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    user: str | None = None


class Embedding(msgspec.Struct):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct):
    """Tokens that went through the trunk."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(msgspec.Struct):
    """One vector an input, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(msgspec.Struct):
    """A trunk."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(msgspec.Struct):
    """The trunks: there is one."""

    object: Literal["list"]
    data: list[Model]


class OpenAIErrorDetail(msgspec.Struct):
    """What OpenAI's clients make an exception of."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(msgspec.Struct):
    """An error in OpenAI's shape."""

    error: OpenAIErrorDetail


SCHEMAS: Final = components_of([EmbeddingsBody, EmbeddingsAnswer, Models, OpenAIError])

_decoder: Final = msgspec.json.Decoder(EmbeddingsBody)

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, **ref("OpenAIError")}
    for status, text in {
        400: "The request can never be served as it is.",
        413: "The body is too long.",
        415: "The body is compressed.",
        429: "The gateway is full.",
        502: "The embedding service answered something that is not its contract.",
        503: "The embedding service is not available.",
        504: "The deadline passed.",
    }.items()
}


@router.post(
    "/v1/embeddings",
    summary="Embed texts (OpenAI)",
    openapi_extra={"requestBody": {"required": True, **ref("EmbeddingsBody")}, "parameters": REQUEST_HEADERS},
    responses={200: {"description": "One vector an input, in order.", **ref("EmbeddingsAnswer")}, **ERRORS},
)
async def embeddings(request: Request) -> Response:
    """The vectors the heads read: the mean of the trunk's last layer, of length one; *dimensions*: its first ones."""
    return await respond(request, _embeddings, tell)


@router.get(
    "/v1/models",
    summary="The trunk (OpenAI)",
    openapi_extra={"parameters": REQUEST_HEADERS[:2]},
    responses={
        200: {"description": "The one trunk.", **ref("Models")},
        **{status: ERRORS[status] for status in (400, 502, 503, 504)},
    },
)
async def models(request: Request) -> Response:
    """OpenAI's list of models."""
    return await respond(request, _models, tell)


async def _embeddings(request: Request, state: State) -> Response:
    body = decode(_decoder, await read_body(request, state))
    inputs = inputs_of(body.input, state.settings.max_texts)
    deadline = Deadline.after(patience(request, None, state.settings))
    with state.admission.admit(len(inputs), pay=partial(charge, request, len(inputs))):
        async with while_connected(request.receive):
            await state.turns.take()
            found = await state.text_embedder.embed(inputs, deadline)
    rows = found.rows if body.dimensions is None else cut(found.rows, body.dimensions)
    usage = Usage(found.num_tokens, found.num_tokens)

    def written() -> bytes:
        as_base64 = body.encoding_format == "base64"
        data = [Embedding("embedding", index, _written(row, as_base64)) for index, row in enumerate(rows)]
        return msgspec.json.encode(EmbeddingsAnswer("list", data, found.trunk.name, usage))

    content = written() if rows.size <= INLINE_NUMBERS else await asyncio.to_thread(written)
    return Response(content, media_type="application/json")


async def _models(request: Request, state: State) -> Response:
    trunk = await state.text_embedder.trunk(Deadline.after(patience(request, None, state.settings)))
    answer = Models("list", [Model(trunk.name, "model", 0, "trunkline")])
    return Response(msgspec.json.encode(answer), media_type="application/json")


def inputs_of(given: str | list[str | int | list[int]], max_inputs: int) -> list[str] | list[list[int]]:
    """What is to be embedded: one text, texts, the token ids of one, or of several; *max_inputs* at most.

    They are counted before they are looked at: a body has room for millions, and nobody else is served meanwhile.

    Raises:
        InvalidRequest: there are none, too many, or they are of several kinds.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequest("input is empty")
    is_one = isinstance(given[0], int)
    if is_one and len(given) > MAX_TOKEN_IDS:
        raise InvalidRequest(f"input has {len(given)} token ids, more than any trunk reads")
    if not is_one and len(given) > max_inputs:
        raise InvalidRequest(f"{len(given)} inputs are more than the {max_inputs} of one request; send several")
    texts = [one for one in given if isinstance(one, str)]
    numbers = [one for one in given if isinstance(one, int)]
    lists = [one for one in given if isinstance(one, list)]
    if len(given) not in {len(texts), len(numbers), len(lists)}:
        raise InvalidRequest("input mixes texts, token ids and lists of token ids; send one kind")
    return texts or lists or [numbers]


def tell(error: TrunklineError, request_id: str) -> Response:
    """*error* in OpenAI's shape."""
    status = status_of(error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = OpenAIError(OpenAIErrorDetail(clipped(error.message), kind, None, error.code))
    return Response(msgspec.json.encode(body), status, headers_of(error, request_id), media_type="application/json")


def _written(row: FloatArray, as_base64: bool) -> list[float] | str:
    if as_base64:
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    numbers: list[float] = row.tolist()
    return numbers
