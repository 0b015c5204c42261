"""The `/predict` of Hugging Face's text-embeddings-inference for each head, so that its clients can be pointed here unchanged.

Protocol facts, from its router: `inputs` is a text, a list of one text, a pair ["a", "b"], or a list of such lists, which is a
batch; the answer is [{"score", "label"}, ...] by falling score, or a list of those for a batch. Errors are {"error",
"error_type"}, but a body that cannot be read is answered in plain text. Timing headers are whole milliseconds.
"""

import math
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from clients import Deadline, DeadlineExceeded, InvalidRequest, NotFound, Overloaded, TrunklineError, Unavailable
from clients.wire.decoding import NOT_DECODED
from clients.wire.http_errors import clipped
from gateway.classification import Answer, Classification, HeadAnswer
from gateway.errors import TooLarge, WrongMediaType, headers_of
from gateway.routes import (
    HEAD_NAME,
    REQUEST_HEADERS,
    State,
    classified,
    may_reuse,
    patience,
    read_body,
    ref,
    respond,
    sticky_key_of,
)
from gateway.schemas import Asked, TopK, components_of

router = APIRouter()


class PredictParameters(msgspec.Struct):
    """What Hugging Face's own client adds."""

    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: TopK | None = None


class PredictBody(msgspec.Struct):
    """The body of `POST /predict`."""

    inputs: str | list[str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)]]
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    raw_scores: bool | None = None
    parameters: PredictParameters | None = None


class Prediction(msgspec.Struct):
    """A label and its score."""

    score: float
    label: str


class TeiError(msgspec.Struct):
    """An error in this protocol's shape."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


class Empty(InvalidRequest):
    """There is nothing to label; a status of its own in this protocol."""


class Unreadable(InvalidRequest):
    """The body is not JSON; told in plain text."""


class WrongShape(InvalidRequest):
    """The body is JSON of another shape; told in plain text."""


class Wanted(NamedTuple):
    """The texts, and whether a list of answers is expected for them."""

    texts: list[str]
    is_batch: bool


KINDS: Final[dict[type[TrunklineError], tuple[int, str]]] = {
    TrunklineError: (424, "Backend"),
    InvalidRequest: (422, "Validation"),
    Empty: (400, "Empty"),
    NotFound: (404, "Validation"),
    Overloaded: (429, "Overloaded"),
    Unavailable: (503, "Unhealthy"),
    DeadlineExceeded: (424, "Backend"),
}

PLAIN: Final[dict[type[TrunklineError], int]] = {Unreadable: 400, WrongShape: 422, TooLarge: 413, WrongMediaType: 415}

SCHEMAS: Final = components_of([PredictBody, list[Prediction], TeiError])

_decoder: Final = msgspec.json.Decoder(PredictBody)
_LEAST: Final = 1e-7
"""A score this near 0 or 1 stands for whatever is nearer; its logarithm is finite."""

_predictions: Final = {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
_plain: Final = {"text/plain": {"schema": {"type": "string"}}}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Labels by falling score; a list of such lists for a batch.",
        "content": {"application/json": {"schema": {"anyOf": [_predictions, {"type": "array", "items": _predictions}]}}},
    },
    400: {"description": "Not JSON, or nothing to label.", "content": {**ref("TeiError")["content"], **_plain}},
    413: {"description": "The body is too long.", "content": _plain},
    415: {"description": "The body is compressed.", "content": _plain},
    422: {"description": "The request can never be served as it is.", "content": {**ref("TeiError")["content"], **_plain}},
    **{
        status: {"description": text, **ref("TeiError")}
        for status, text in {
            404: "There is no such head.",
            424: "The head failed, or the deadline passed.",
            429: "The gateway is full.",
            503: "The embedding service is not available.",
        }.items()
    },
}
_EXTRA: Final = {"requestBody": {"required": True, **ref("PredictBody")}}


@router.post(
    "/predict",
    summary="Label texts by the default head (TEI)",
    openapi_extra={**_EXTRA, "parameters": REQUEST_HEADERS},
    responses=_RESPONSES,
)
async def predict_by_default(request: Request) -> Response:
    """As `/heads/{name}/predict`, where there is exactly one default head."""
    return await respond(request, _predict_by_default, tell)


@router.post(
    "/heads/{name}/predict",
    summary="Label texts by one head (TEI)",
    openapi_extra={**_EXTRA, "parameters": [HEAD_NAME, *REQUEST_HEADERS]},
    responses=_RESPONSES,
)
async def predict(request: Request) -> Response:
    """All labels of a head by falling score.

    *raw_scores*: the scores as logits, so that softmax, or sigmoid of several labels, gives the calibrated scores again.
    """
    return await respond(request, _predict, tell)


async def _predict(request: Request, state: State) -> Response:
    return await _answer(request, state, request.path_params["name"])


async def _predict_by_default(request: Request, state: State) -> Response:
    defaults = [name for name, head in state.catalogue.catalogue.heads.items() if head.default]
    if len(defaults) != 1:
        raise NotFound(f"there are {len(defaults)} default heads; post to /heads/NAME/predict")
    return await _answer(request, state, defaults[0])


async def _answer(request: Request, state: State, head: str) -> Response:
    body = _read(await read_body(request, state))
    wanted = wanted_of(body, state.settings.max_texts)
    parameters = body.parameters or PredictParameters()
    work = Classification(
        wanted.texts,
        [head],
        with_scores=True,
        top_k=parameters.top_k,
        truncation=_truncation(body),
        sticky_key=sticky_key_of(request),
        may_reuse=may_reuse(request),
    )
    deadline = Deadline.after(patience(request, None, state.settings))
    answer = await classified(request, state, Asked(work, is_strict=True), deadline)
    outcome = answer.outcomes[head]
    assert isinstance(outcome, list)  # the request was strict
    raw = bool(body.raw_scores) or parameters.function_to_apply == "none"
    lists = [predictions_of(said, raw=raw) for said in outcome]
    return Response(
        msgspec.json.encode(lists if wanted.is_batch else lists[0]),
        headers=_headers(answer, wanted.texts),
        media_type="application/json",
    )


def _read(content: bytes) -> PredictBody:
    try:
        return _decoder.decode(content)
    except msgspec.ValidationError:
        raise WrongShape("the body has the wrong shape: inputs is a text, a list with one, or a list of such lists") from None
    except NOT_DECODED:
        raise Unreadable("the body is not valid JSON in UTF-8") from None


def wanted_of(body: PredictBody, max_texts: int) -> Wanted:
    """The texts of *body*; of too many none is looked at.

    Raises:
        InvalidRequest: a pair, which no head reads; another list than the protocol's; or more than *max_texts*.
        Empty: there is none.
    """
    given = body.inputs
    if isinstance(given, str):
        return Wanted([_filled(given)], is_batch=False)
    if len(given) > max_texts:
        raise InvalidRequest(f"batch size {len(given)} > maximum allowed batch size {max_texts}")
    lists = [one for one in given if isinstance(one, list)]
    if not given:
        raise Empty("`inputs` cannot be empty")
    if lists and len(lists) != len(given):
        raise InvalidRequest('`inputs` mixes texts and lists; a batch is [["a"], ["b"]]')
    rows = lists or [[one for one in given if isinstance(one, str)]]
    if any(len(row) != 1 for row in rows):
        raise InvalidRequest('heads read single texts, no pairs; a batch of two texts is [["a"], ["b"]]')
    return Wanted([_filled(row[0]) for row in rows], is_batch=bool(lists))


def _filled(text: str) -> str:
    if not text:
        raise Empty("`inputs` cannot be empty")
    return text


def predictions_of(said: HeadAnswer, *, raw: bool) -> list[Prediction]:
    """Every label of one text by falling score; a regression's value under the one name it has in a manifest.

    *raw*: as numbers that softmax, or sigmoid where labels do not exclude each other, takes back to the scores.
    """
    if said.value is not None:
        return [Prediction(said.value, "value")]
    excludes = said.labels is None
    return [Prediction(_logit(score, excludes) if raw else score, label) for label, score in (said.scores or {}).items()]


def _logit(score: float, excludes: bool) -> float:
    bounded = min(max(score, _LEAST), 1 - _LEAST)
    return math.log(bounded) if excludes else math.log(bounded / (1 - bounded))


def _truncation(body: PredictBody) -> Literal["right", "left", "error"]:
    if body.truncate is False:
        return "error"
    return "left" if body.truncation_direction in {"Left", "left"} else "right"


def tell(error: TrunklineError, request_id: str) -> Response:
    """*error* in this protocol's shape."""
    headers = headers_of(error, request_id)
    plain = PLAIN.get(type(error))
    if plain is not None:
        return PlainTextResponse(error.message, plain, headers)
    status, kind = next(KINDS[base] for base in type(error).__mro__ if base in KINDS)
    body = {"error": clipped(error.message), "error_type": kind}
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def _headers(answer: Answer, texts: list[str]) -> dict[str, str]:
    timings = answer.timings
    milliseconds = {
        "x-compute-time": timings.total,
        "x-total-time": timings.total,
        "x-tokenization-time": timings.preprocess,
        "x-queue-time": 0.0,
        "x-inference-time": timings.embed + timings.heads,
    }
    return {
        "x-compute-type": "cpu",
        "x-compute-characters": str(sum(map(len, texts))),
        "x-compute-tokens": str(sum(text.num_tokens for text in answer.texts)),
        **{name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
    }
