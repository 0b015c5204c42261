"""The HTTP edge: OpenAI's embeddings, and what an operator asks a service. Pure Starlette routes; msgspec checks the types.

Protocol facts: OpenAI's `POST /v1/embeddings` and `GET /v1/models`. Its Python client asks for base64 when its user says
nothing, and base64 there is little-endian float32; optional fields may be null.
"""

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from clients.wire.decoding import NOT_DECODED, told_of_shape
from clients.wire.http_server import Endpoint, Shortcuts, shortcuts
from embedding_service.edge import (
    INLINE_NUMBERS,
    embed_while_connected,
    json_response,
    read_body,
    request_id,
    retry_headers,
    split_inputs,
)
from embedding_service.errors import HTTP_STATUS, EmbedError, InvalidInput
from embedding_service.infer import EmbedAnswer, EmbedCall, Infer
from embedding_service.tokenization import ViewChoice

_log = logging.getLogger(__name__)

Positive = Annotated[int, msgspec.Meta(ge=1, le=65_536)]


class EmbeddingsBody(msgspec.Struct):
    """The body of `POST /v1/embeddings`."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    user: str | None = None


class HttpEdge:
    """The routes, and *more_routes*. *is_ready* says whether work may be sent here; *info* is what `/info` answers."""

    def __init__(
        self,
        infer: Infer,
        *,
        registry: CollectorRegistry,
        is_ready: Callable[[], bool],
        info: Callable[[], dict[str, Any]],
        max_body_bytes: int,
        default_timeout: float,
        more_routes: Sequence[Route] = (),
    ) -> None:
        self._infer = infer
        self._registry = registry
        self._is_ready = is_ready
        self._info = info
        self._max_body_bytes = max_body_bytes
        self._default_timeout = default_timeout
        self._more_routes = more_routes

    def app(self) -> ASGIApp:
        """The ASGI application, for within `clients.wire.bodies.WithBodies`."""
        posts = [Route("/v1/embeddings", _answered(self.embeddings), methods=["POST"])]
        gets = [
            Route("/v1/models", self.models),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/info", self.info),
        ]
        router = Starlette(
            routes=[*posts, *gets, *self._more_routes],
            exception_handlers={HTTPException: _on_http_error, Exception: _on_fault},
        )
        return Shortcuts(router, shortcuts([*posts, *self._more_routes]))

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`, OpenAI's shape."""
        body = parse_embeddings(await read_body(request, self._max_body_bytes))
        most = self._infer.limits.max_request_inputs
        inputs = [body.input] if isinstance(body.input, str) else _inputs_of(body.input, most)
        name = body.model if body.model in self._infer.hosted else ""
        call = EmbedCall(
            inputs=inputs,
            deadline=time.monotonic() + self._default_timeout,
            trunk=name or "",
            views=[ViewChoice(normalize=True, dims=body.dimensions or 0)],
        )
        answer = await embed_while_connected(request, self._infer, call)

        def written() -> Response:
            return json_response(openai_answer(answer, body.model or answer.trunk.name, body.encoding_format == "base64"))

        return written() if answer.views[0].array.size <= INLINE_NUMBERS else await asyncio.to_thread(written)

    async def models(self, _: Request) -> Response:
        """`GET /v1/models`, OpenAI's shape."""
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "trunkline"} for name in self._infer.hosted]
        return json_response({"object": "list", "data": rows})

    async def healthz(self, _: Request) -> Response:
        """The process lives."""
        return json_response({"status": "live"})

    async def readyz(self, _: Request) -> Response:
        """Work may be sent here."""
        ready = self._is_ready()
        return json_response({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def metrics(self, _: Request) -> Response:
        """Prometheus text."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def info(self, _: Request) -> Response:
        """The effective settings and trunks."""
        return json_response(self._info())


def parse_embeddings(body: bytes) -> EmbeddingsBody:
    """The request in *body*.

    Raises:
        InvalidInput: it is not JSON or not of the right types; the message never echoes it.
    """
    try:
        return msgspec.json.decode(body, type=EmbeddingsBody)
    # msgspec bounds its recursion, also where it skips fields it does not know.
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the body has the wrong shape: {told_of_shape(error, EmbeddingsBody)}") from None
    except NOT_DECODED:
        raise InvalidInput("the body is not valid JSON in UTF-8") from None


def openai_answer(answer: EmbedAnswer, model: str, as_base64: bool) -> dict[str, Any]:
    """*answer* in OpenAI's shape."""
    rows = answer.views[0].array
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row.tolist(),
        }
        for index, row in enumerate(rows)
    ]
    used = sum(item.num_tokens for item in answer.inputs)
    usage = {"prompt_tokens": used, "total_tokens": used}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _inputs_of(items: list[str | int | list[int]], most: int) -> list[str | list[int]]:
    inputs = split_inputs(items, most)
    if inputs is None:
        raise InvalidInput("input mixes token ids with texts or lists")
    return inputs


def tell(error: EmbedError) -> Response:
    """*error* in OpenAI's shape."""
    return _error(HTTP_STATUS[type(error)], error.code, str(error), retry_headers(error))


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return json_response({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


def _answered(handler: Endpoint) -> Endpoint:
    """*handler*, its errors told in this protocol's shape."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except EmbedError as error:
            return tell(error)
        except HTTPException as error:
            return await _on_http_error(request, error)
        except Exception as error:  # whatever it was, the caller is told in words it can read
            return await _on_fault(request, error)

    return endpoint


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, "invalid_request", error.detail)


async def _on_fault(request: Request, error: Exception) -> Response:
    _log.error("a request failed unexpectedly: %s", type(error).__name__, extra={"fields": request_id(request)})
    return _error(500, "internal", "the embedding service failed in a way it should not")
