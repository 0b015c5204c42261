"""The HTTP routes of bert-as-service, those its server has when started with -http_port.

Protocol facts: `POST /encode` answers {"id", "result", "status"}, where "id" is the caller's own; errors are {"description",
"type", "status"}. `GET /status/server` is what the client's `server_status` reads; `GET /status/client` describes the client
that upstream's HTTP part is, which here is the route itself.
"""

import asyncio
import logging
from functools import partial
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clients.wire.decoding import NOT_DECODED, told_of_shape
from clients.wire.http_server import Endpoint
from embedding_service.backend import FloatArray
from embedding_service.bert_as_service import PROTOCOL_VERSION, BertAsService, Texts, checked_texts
from embedding_service.edge import embed_while_connected, json_response, read_body, request_id, retry_headers, vectors_json
from embedding_service.errors import HTTP_STATUS, EmbedError, InvalidInput
from embedding_service.infer import Infer

_log = logging.getLogger(__name__)

_IDENTITY: Final = b"http"
_MAX_VECTOR_BYTES: Final = 16 * 1024 * 1024
"""As JSON they take about five times as much."""

_INLINE_BYTES: Final = 256 * 1024
"""Up to here writing vectors as JSON takes milliseconds and stays on the loop."""


class EncodeBody(msgspec.Struct):
    """The body of `POST /encode`."""

    texts: list[str | list[str]]
    id: int | float | str | None = None
    is_tokenized: bool | None = None


class BertAsServiceEdge:
    """The routes. *infer* embeds for *protocol*."""

    def __init__(self, protocol: BertAsService, infer: Infer, *, max_body_bytes: int) -> None:
        self._protocol = protocol
        self._infer = infer
        self._max_body_bytes = max_body_bytes
        self._num_requests = 0
        self._open: set[int] = set()

    def routes(self) -> list[Route]:
        """What Starlette takes."""
        return [
            Route("/encode", _answered(self.encode), methods=["POST"]),
            Route("/status/server", _answered(self.server_status)),
            Route("/status/client", _answered(self.client_status)),
        ]

    async def encode(self, request: Request) -> Response:
        """`POST /encode`: float32 [texts, width] as lists, or of tokens [texts, longest, width]."""
        body = _parse(await read_body(request, self._max_body_bytes))
        texts = _texts(body)
        self._protocol.statistics.asked(_IDENTITY, num_texts=len(texts))
        self._num_requests += 1
        number = self._num_requests
        self._open.add(number)
        try:
            embed = partial(embed_while_connected, request, self._infer)
            vectors = await self._protocol.encode(texts, embed, max_bytes=_MAX_VECTOR_BYTES)
        finally:
            self._open.discard(number)
        content = _content(body.id, vectors) if vectors.nbytes <= _INLINE_BYTES else asyncio.to_thread(_content, body.id, vectors)
        return Response(content if isinstance(content, bytes) else await content, media_type="application/json")

    async def server_status(self, _: Request) -> Response:
        """`GET /status/server`."""
        self._protocol.statistics.asked(_IDENTITY)
        return json_response({**self._protocol.status(), "client": _IDENTITY.decode(), "status": 200})

    async def client_status(self, _: Request) -> Response:
        """`GET /status/client`."""
        status: dict[str, Any] = {
            "identity": _IDENTITY.decode(),
            "num_request": self._num_requests,
            "num_pending_request": len(self._open),
            "pending_request": sorted(self._open)[:1_000],
            "output_fmt": "list",
            "client_version": PROTOCOL_VERSION,
            "timeout": round(self._protocol.default_timeout * 1000),
        }
        return json_response({**status, "status": 200})


def _parse(body: bytes) -> EncodeBody:
    try:
        return msgspec.json.decode(body, type=EncodeBody)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the body has the wrong shape: {told_of_shape(error, EncodeBody)}") from None
    except NOT_DECODED:
        raise InvalidInput("the body is not valid JSON in UTF-8") from None


def _texts(body: EncodeBody) -> Texts:
    texts = checked_texts(body.texts)
    if body.is_tokenized is not None and body.is_tokenized == isinstance(texts[0], str):
        wanted = "lists of tokens" if body.is_tokenized else "texts"
        raise InvalidInput(f"`texts` are not {wanted}, as `is_tokenized` says; change one of them")
    return texts


def _content(given: float | str | None, vectors: FloatArray) -> bytes:
    """The answer's body."""
    return b'{"id":%b,"result":%b,"status":200}' % (msgspec.json.encode(given), vectors_json(list(vectors)))


def _answered(handler: Endpoint) -> Endpoint:
    """*handler*, its errors told in this protocol's shape."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except HTTPException as error:
            return _error(error.status_code, "HTTPException", error.detail)
        except EmbedError as error:
            return _error(HTTP_STATUS[type(error)], type(error).__name__, str(error), retry_headers(error))
        except Exception as error:  # whatever it was, the caller is told in words it can read
            _log.error("a request failed unexpectedly: %s", type(error).__name__, extra={"fields": request_id(request)})
            return _error(500, "Exception", "the embedding service failed in a way it should not")

    return endpoint


def _error(status: int, kind: str, description: str, headers: dict[str, str] | None = None) -> Response:
    return json_response({"description": description, "type": kind, "status": status}, status, headers)
