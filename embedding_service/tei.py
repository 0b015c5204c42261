"""The routes of Hugging Face's text-embeddings-inference, so that its clients can be pointed here unchanged.

Protocol facts, from its router: `/embed` answers a list of lists even for one string, normalised unless told otherwise;
`/embed_all` gives every token, never normalised; POST `/` means `/embed`. Errors are {"error", "error_type"}, but a body that
cannot be read is answered in plain text. Timing headers are whole milliseconds.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from clients.wire.decoding import NOT_DECODED, told_of_shape
from clients.wire.http_server import Endpoint
from clients.wire.text import Token
from embedding_service.edge import (
    MAX_JSON_VECTOR_BYTES,
    embed_while_connected,
    json_response,
    read_body,
    request_id,
    retry_headers,
    split_inputs,
    vectors_response,
)
from embedding_service.errors import DeadlineExceeded, EmbedError, InvalidInput, Overloaded, Unavailable, UnknownTrunk, WrongTrunk
from embedding_service.infer import MAX_VECTOR_BYTES, EmbedAnswer, EmbedCall, HostedTrunk, Infer
from embedding_service.tokenization import INLINE_CHARACTERS, Truncation, ViewChoice, check_text

_log = logging.getLogger(__name__)

_Input = str | list[str | int | list[int]]
_Body = TypeVar("_Body", bound=msgspec.Struct)


class EmbedBody(msgspec.Struct):
    """The body of `POST /embed` and `POST /embed_all`."""

    inputs: _Input
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None


class SimilarityInputs(msgspec.Struct):
    """What is compared with what."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct):
    """How texts are cut."""

    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: str | None = None


class SimilarityBody(msgspec.Struct):
    """The body of `POST /similarity`."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeBody(msgspec.Struct):
    """The body of `POST /tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class DecodeBody(msgspec.Struct):
    """The body of `POST /decode`."""

    ids: list[int | list[int]]
    skip_special_tokens: bool | None = None


class EmptyInputs(InvalidInput):
    """There is nothing to embed; a status of its own in this protocol."""


_ERRORS: Final[dict[type[EmbedError], tuple[int, str]]] = {
    EmptyInputs: (400, "Empty"),
    InvalidInput: (422, "Validation"),
    UnknownTrunk: (404, "Validation"),
    WrongTrunk: (422, "Validation"),
    Overloaded: (429, "Overloaded"),
    DeadlineExceeded: (424, "Backend"),
    Unavailable: (503, "Unhealthy"),
}


class TeiEdge:
    """The routes, over the default trunk, and under /trunks/NAME over any. *is_ready* says whether work may be sent here."""

    def __init__(self, infer: Infer, *, is_ready: Callable[[], bool], max_body_bytes: int, default_timeout: float) -> None:
        self._infer = infer
        self._is_ready = is_ready
        self._max_body_bytes = max_body_bytes
        self._default_timeout = default_timeout

    def routes(self) -> list[Route]:
        """What Starlette takes."""
        posts = {
            "/": self.embed,
            "/embed": self.embed,
            "/embed_all": self.embed_all,
            "/similarity": self.similarity,
            "/tokenize": self.tokenize,
            "/decode": self.decode,
        }
        gets = [Route(path, self.health) for path in ("/", "/health", "/ping")]
        return gets + [
            Route((prefix + path.rstrip("/")) or "/", _answered(handler), methods=["POST"])
            for prefix in ("", "/trunks/{trunk}")
            for path, handler in posts.items()
        ]

    async def embed(self, request: Request) -> Response:
        """`POST /embed`: float32 [inputs, width] as lists."""
        body = await self._read(request, EmbedBody)
        normalize = True if body.normalize is None else body.normalize
        answer = await self._embed(
            request, self._inputs(body.inputs), body, ViewChoice(normalize=normalize, dims=body.dimensions or 0)
        )
        return await vectors_response(list(answer.views[0].array), headers=_headers(answer, body.inputs))

    async def embed_all(self, request: Request) -> Response:
        """`POST /embed_all`: for each input float32 [tokens, width] as lists."""
        body = await self._read(request, EmbedBody)
        tokens = ViewChoice("tokens", normalize=False)
        answer = await self._embed(request, self._inputs(body.inputs), body, tokens, max_vector_bytes=MAX_JSON_VECTOR_BYTES)
        view = answer.views[0]
        rows = np.split(view.array, np.cumsum(view.row_tokens)[:-1])
        return await vectors_response(rows, headers=_headers(answer, body.inputs))

    async def similarity(self, request: Request) -> Response:
        """`POST /similarity`: the cosine of each sentence with the source, as a list."""
        body = await self._read(request, SimilarityBody)
        texts = [*self._inputs(body.inputs.source_sentence), *self._inputs(body.inputs.sentences)]
        answer = await self._embed(request, texts, body.parameters or SimilarityParameters(), ViewChoice(normalize=True))
        source, *others = answer.views[0].array
        return json_response([float(source @ other) for other in others], headers=_headers(answer, texts))

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`: each input's tokens, with where they stand in it."""
        body = await self._read(request, TokenizeBody)
        texts = [text for text in self._inputs(body.inputs) if isinstance(text, str)]
        self._check_batch(texts)
        for index, text in enumerate(texts):
            check_text(f"input {index}", text, self._infer.limits)
        num_characters = sum(map(len, texts))
        if num_characters > self._infer.limits.max_characters:
            # What is answered is up to a hundred times as long, and more while it is written.
            raise InvalidInput(f"the inputs together are longer than {self._infer.limits.max_characters} characters")
        trunk = self._infer.trunk(_trunk_name(request))
        with_special = body.add_special_tokens is not False

        def tokenized() -> Response:
            return json_response(
                [[_token(token) for token in trunk.encoder.tokens(text, with_special=with_special)] for text in texts]
            )

        return await self._answered_in_time(trunk, tokenized, num_characters)

    async def decode(self, request: Request) -> Response:
        """`POST /decode`: the texts of token ids."""
        body = await self._read(request, DecodeBody)
        rows = split_inputs(list(body.ids), self._most)
        if rows is None:
            raise InvalidInput("ids mixes token ids with lists of them")
        self._check_batch(rows)
        trunk = self._infer.trunk(_trunk_name(request))
        lists = [[number for number in row if isinstance(number, int)] for row in rows]
        if any(not 0 <= number < trunk.spec.vocab_size for row in lists for number in row):
            raise InvalidInput(f"a token id is outside the vocabulary of {trunk.spec.vocab_size}")
        skip = body.skip_special_tokens is not False

        def decoded() -> Response:
            return json_response([trunk.encoder.decode(row, skip_special=skip) for row in lists])

        return await self._answered_in_time(trunk, decoded, sum(map(len, lists)))

    async def _answered_in_time(self, trunk: HostedTrunk, work: Callable[[], Response], size: int) -> Response:
        """What *work* answers to *size* characters or token ids, done here where they are few."""
        if size <= INLINE_CHARACTERS:
            return work()
        return await trunk.tokenizer.on_a_thread(work, size, time.monotonic() + self._default_timeout)

    async def health(self, _: Request) -> Response:
        """`GET /health`: 200 without a body, or 503 with an error."""
        return Response() if self._is_ready() else _error(503, "Unhealthy", "the trunk is not ready")

    async def _embed(
        self,
        request: Request,
        inputs: Sequence[str | list[int]],
        asked: EmbedBody | SimilarityParameters,
        view: ViewChoice,
        *,
        max_vector_bytes: int = MAX_VECTOR_BYTES,
    ) -> EmbedAnswer:
        self._check_batch(inputs)
        call = EmbedCall(
            inputs=inputs,
            deadline=time.monotonic() + self._default_timeout,
            trunk=_trunk_name(request),
            views=[view],
            truncation=_truncation(asked),
            prompt_name=asked.prompt_name or "",
            max_vector_bytes=max_vector_bytes,
        )
        return await embed_while_connected(request, self._infer, call)

    def _inputs(self, given: _Input | list[str]) -> list[str | list[int]]:
        inputs: list[str | list[int]] | None = [given] if isinstance(given, str) else split_inputs(list(given), self._most)
        if inputs is None:
            raise InvalidInput("`inputs` mixes token ids with texts or lists")
        self._check_batch(inputs)
        if not inputs or not all(inputs):
            raise EmptyInputs("`inputs` cannot be empty")
        return inputs

    @property
    def _most(self) -> int:
        """Inputs of a request."""
        return self._infer.limits.max_request_inputs

    def _check_batch(self, inputs: Sequence[object]) -> None:
        if len(inputs) > self._most:
            raise InvalidInput(f"batch size {len(inputs)} > maximum allowed batch size {self._most}")

    async def _read(self, request: Request, kind: type[_Body]) -> _Body:
        body = await read_body(request, self._max_body_bytes)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            raise HTTPException(422, f"the body has the wrong shape: {told_of_shape(error, kind)}") from None
        except NOT_DECODED:
            raise HTTPException(400, "the body is not valid JSON in UTF-8") from None


def _answered(handler: Endpoint) -> Endpoint:
    """*handler*, its errors told in this protocol's shape."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except HTTPException as error:
            return PlainTextResponse(error.detail, error.status_code)
        except EmbedError as error:
            return tell(error)
        except Exception as error:  # whatever it was, the caller is told in words it can read
            _log.error("a request failed unexpectedly: %s", type(error).__name__, extra={"fields": request_id(request)})
            return _error(424, "Backend", "the embedding service failed in a way it should not")

    return endpoint


def tell(error: EmbedError) -> Response:
    """*error* in this protocol's shape."""
    status, kind = _ERRORS[type(error)]
    return _error(status, kind, str(error), retry_headers(error))


def _error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return json_response({"error": message, "error_type": kind}, status, headers)


def _trunk_name(request: Request) -> str:
    name: str = request.path_params.get("trunk", "")
    return name


def _truncation(asked: EmbedBody | SimilarityParameters) -> Truncation:
    if asked.truncate is False:
        return "error"
    return "left" if asked.truncation_direction in {"Left", "left"} else "right"


def _token(token: Token) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "special": token.is_special, "start": token.start, "stop": token.stop}


def _headers(answer: EmbedAnswer, given: _Input | Sequence[str | list[int]]) -> dict[str, str]:
    characters = len(given) if isinstance(given, str) else sum(len(item) for item in given if isinstance(item, str))
    timings = answer.timings
    milliseconds = {
        "x-compute-time": timings.total,
        "x-total-time": timings.total,
        "x-tokenization-time": timings.tokenization,
        "x-queue-time": timings.queue,
        "x-inference-time": timings.inference,
    }
    return {
        "x-compute-type": "cpu",
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(sum(item.num_tokens for item in answer.inputs)),
        **{name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
    }
