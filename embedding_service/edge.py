"""What all HTTP routes of the service share: reading a bounded body, JSON out, headers that say when to come back."""

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from clients.wire.asgi import CallerLeftError, while_connected
from clients.wire.metadata import RETRY_AFTER, RETRY_AFTER_MS
from embedding_service.errors import EmbedError
from embedding_service.infer import EmbedAnswer, EmbedCall, Infer


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused as soon as it is seen to be too long, not once it has arrived.

    Raises:
        HTTPException: 413 too long, 415 compressed.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "compressed bodies are not accepted")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise HTTPException(413, f"the body is longer than {max_bytes} bytes")
    return bytes(body)


async def embed_while_connected(request: Request, infer: Infer, call: EmbedCall) -> EmbedAnswer:
    """`Infer.embed`, given up when the caller hangs up: what is still queued for it is then never executed.

    Raises:
        EmbedError: see `Infer.embed`.
        HTTPException: 499, which nobody will read.
    """
    try:
        async with while_connected(request.receive):
            return await infer.embed(call)
    except CallerLeftError:
        raise HTTPException(499, "the caller left") from None


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """*content* as JSON."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def retry_headers(error: EmbedError) -> dict[str, str]:
    """When to come back, for an error that knows."""
    if error.retry_after is None:
        return {}
    return {RETRY_AFTER: str(max(1, round(error.retry_after))), RETRY_AFTER_MS: str(round(error.retry_after * 1000))}


def split_inputs(items: list[str | int | list[int]]) -> list[str | list[int]] | None:
    """A list of texts, of token ids (one input), or of lists of token ids; None where it mixes ids with the others."""
    if items and all(isinstance(item, int) for item in items):
        return [[item for item in items if isinstance(item, int)]]
    others = [item for item in items if not isinstance(item, int)]
    return others if len(others) == len(items) else None
