"""What all HTTP routes of the service share: reading a bounded body, JSON out, headers that say when to come back."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients.wire.asgi import CallerLeftError, header_of, while_connected
from clients.wire.bodies import FULL, RETRY_SECONDS, bodies_of
from clients.wire.guarded_http import charge
from clients.wire.logs import clean_id
from clients.wire.metadata import REQUEST_ID, RETRY_AFTER, RETRY_AFTER_MS
from embedding_service.backend import FloatArray
from embedding_service.errors import EmbedError, Overloaded
from embedding_service.exchange import Exchange, Exchanges
from embedding_service.infer import EmbedAnswer, EmbedCall, Infer

INLINE_NUMBERS: Final = 65_536
"""Up to here writing vectors as JSON takes milliseconds and stays on the loop."""

MAX_JSON_VECTOR_BYTES: Final = 32 * 2**20
"""Of one answer as float32; as JSON they take about five times as much."""

_EXCHANGE: Final = "trunkline.exchange"
"""Where a request's exchange is in its ASGI scope."""

_UNHEARD: Final = Exchanges()


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused as soon as it is seen to be too long, not once it has arrived.

    Raises:
        HTTPException: 413 too long, 415 compressed, 499 the caller left, which nobody will read.
        Overloaded: all requests together hold as much as they may.
    """
    if header_of(request.scope["headers"], b"content-encoding") not in {None, "identity"}:
        raise HTTPException(415, "compressed bodies are not accepted")
    bodies, body = bodies_of(request.scope), bytearray()
    try:
        async for chunk in request.stream():
            if not bodies.take(request.scope, len(chunk)):
                raise Overloaded(FULL, retry_after=RETRY_SECONDS)
            body += chunk
            if len(body) > max_bytes:
                raise HTTPException(413, f"the body is longer than {max_bytes} bytes")
    except ClientDisconnect:
        raise HTTPException(499, "the caller left") from None
    return bytes(body)


async def embed_while_connected(request: Request, infer: Infer, call: EmbedCall) -> EmbedAnswer:
    """`Infer.embed`, given up when the caller hangs up: what is still queued for it is then never executed.

    Raises:
        EmbedError: see `Infer.embed`.
        HTTPException: 499, which nobody will read.
    """
    exchange: Exchange = request.scope.get(_EXCHANGE) or _UNHEARD.begin("http", "", tuple)
    exchange.asked(len(call.inputs))
    try:
        refusal = charge(request.scope, len(call.inputs))
        if refusal is not None:
            raise Overloaded(refusal.message, retry_after=refusal.retry_after or 1.0)
        infer.check_room(call)
        async with while_connected(request.receive):
            answer = await infer.embed(call)
    except EmbedError as error:
        exchange.failed(error.code)
        raise
    except CallerLeftError:
        exchange.failed("cancelled")
        raise HTTPException(499, "the caller left") from None
    exchange.answered(answer.trunk.name, answer.num_tokens, answer.timings)
    return answer


class WithExchanges:
    """*app*, an ASGI application, with each POST told to *exchanges*. What is asked by GET (health, metrics) is not a request."""

    def __init__(self, app: ASGIApp, exchanges: Exchanges) -> None:
        self._app = app
        self._exchanges = exchanges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        exchange = scope[_EXCHANGE] = self._exchanges.begin("http", "", lambda: scope["headers"])

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.method = _route(scope)
                if message["status"] >= 400:
                    exchange.failed(_outcome(message["status"]))
            await send(message)

        with exchange:
            await self._app(scope, receive, watch)


def _route(scope: Scope) -> str:
    """The route that took the request, its parameters by name, since their values are the caller's words; "" for none."""
    if "endpoint" not in scope:
        return ""
    path: str = scope["path"]
    for name, value in scope.get("path_params", {}).items():
        path = path.replace(f"/{value}", f"/{{{name}}}", 1)
    return path


def _outcome(status: int) -> str:
    named = {401: "unauthenticated", 403: "permission_denied", 404: "not_found", 499: "cancelled"}
    return named.get(status, "invalid_argument" if status < 500 else "internal")


async def vectors_response(rows: Sequence[FloatArray], *, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON list of *rows*, each a list of numbers, or of lists of them."""
    if sum(row.size for row in rows) <= INLINE_NUMBERS:
        content = vectors_json(rows)
    else:
        content = await asyncio.to_thread(vectors_json, rows)
    return Response(content, headers=headers, media_type="application/json")


def vectors_json(rows: Sequence[FloatArray]) -> bytes:
    """A JSON list of *rows*; written one by one, because lists of numbers take ten times the memory."""
    return b"[%b]" % b",".join(msgspec.json.encode(row.tolist()) for row in rows)


def request_id(request: Request) -> dict[str, str]:
    """The fields of a log record that name *request*."""
    found = clean_id(request.headers.get(REQUEST_ID, ""))
    return {"request_id": found} if found else {}


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """*content* as JSON."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def retry_headers(error: EmbedError) -> dict[str, str]:
    """When to come back, for an error that knows."""
    if error.retry_after is None:
        return {}
    return {RETRY_AFTER: str(max(1, round(error.retry_after))), RETRY_AFTER_MS: str(round(error.retry_after * 1000))}


def split_inputs(items: list[str | int | list[int]], most: int) -> list[str | list[int]] | None:
    """A list of texts, of token ids (one input), or of lists of token ids; None where it mixes ids with the others.

    More than *most*, which the count is refused for, are not looked at: a body has room for millions, and nobody else is served
    meanwhile.
    """
    if len(items) > most and not isinstance(items[0], int):
        return cast("list[str | list[int]]", items)
    if items and all(isinstance(item, int) for item in items):
        return [cast("list[int]", items)]
    others = [item for item in items if not isinstance(item, int)]
    return others if len(others) == len(items) else None
