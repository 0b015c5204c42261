"""The HTTP edge. The hot route reads and writes bytes by msgspec; FastAPI keeps the documentation."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from clients import Deadline, InvalidRequest, Overloaded, TrunklineError
from clients.wire.asgi import CallerLeftError, header_of, while_connected
from clients.wire.bodies import FULL, RETRY_SECONDS, Bodies
from clients.wire.catalogue import CatalogueHead
from clients.wire.metadata import REQUEST_ID, REQUEST_TIMEOUT_MS, SERVER_TIMING, STICKY_KEY
from clients.wire.text import normalization_notes
from gateway.admission import Admission
from gateway.backends.embedding import ClientTrunks
from gateway.catalogue import CataloguePoller
from gateway.classification import Answer
from gateway.drain import Drain
from gateway.edges.open_streams import OpenStreams
from gateway.embedding import TextEmbedder
from gateway.errors import TooLarge, WrongMediaType, response_of, status_of
from gateway.exchange import REQUEST_ID_KEY, current_request_id
from gateway.fanout import as_the_callers
from gateway.pipeline import Pipeline
from gateway.plan import refusal
from gateway.ports import LiveTrunk
from gateway.preprocess import INLINE_CHARACTERS, on_a_thread
from gateway.quota import QuotaUsedUp, charge
from gateway.schemas import Asked, classify_answer, parse_classify, parse_head_classify, server_timing
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.turns import Turns

_log = logging.getLogger(__name__)
_encoder: Final = msgspec.json.Encoder()
_SERVER_TIMING_KEY: Final = SERVER_TIMING.encode()
_STICKY_KEY: Final = STICKY_KEY.encode()
_TIMEOUT_KEY: Final = REQUEST_TIMEOUT_MS.encode()

router = APIRouter()


@dataclass(slots=True)
class State:
    """What the lifespan makes and the routes use."""

    settings: Settings
    pipeline: Pipeline
    trunks: ClientTrunks
    catalogue: CataloguePoller
    admission: Admission
    telemetry: Telemetry
    text_embedder: TextEmbedder
    streams: OpenStreams
    bodies: Bodies
    turns: Turns = field(default_factory=Turns)
    drain: Drain = field(default_factory=Drain)

    @property
    def is_draining(self) -> bool:
        """Whether the gateway is stopping."""
        return self.drain.is_on


def ref(name: str) -> dict[str, Any]:
    """JSON of the schema *name*, for the API page."""
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def header(name: str, description: str) -> dict[str, Any]:
    """An optional header, for the API page."""
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


REQUEST_HEADERS: Final = [
    header(REQUEST_TIMEOUT_MS, "The caller's patience, a whole number of milliseconds."),
    header(REQUEST_ID, "Names the request in the answer and in logs; a new one where it is missing or not a plain word."),
    header(STICKY_KEY, "Callers with the same one get the same side of a canary."),
    header("cache-control", "no-store: what was answered for a text before is not used."),
]
HEAD_NAME: Final = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, **ref("ErrorAnswer")}
    for status, text in {
        400: "The request can never be served as it is.",
        404: "A head that was asked for is unknown; the message names the known ones.",
        413: "The body is too long.",
        415: "The body is compressed.",
        429: "The gateway is full; Retry-After says when to come back.",
        500: "A head failed in a way it should not.",
        502: "A head answered something that is not its contract.",
        503: "The embedding service is not available; Retry-After says when to come back.",
        504: "The deadline passed.",
    }.items()
}


@router.post(
    "/v1/classify",
    summary="Label texts",
    openapi_extra={"requestBody": {"required": True, **ref("ClassifyBody")}, "parameters": REQUEST_HEADERS},
    responses={200: {"description": "One result a text, in order.", **ref("ClassifyAnswer")}, **ERRORS},
)
async def classify(request: Request) -> Response:
    """Raw texts in, labels of all asked heads out, one forward pass a text. A head that fails has an error of its own."""
    return await respond(request, _classify)


async def _classify(request: Request, state: State) -> Response:
    body = await read_body(request, state)
    asked = parse_classify(body, state.settings.max_texts, sticky_key=sticky_key_of(request), may_reuse=may_reuse(request))
    return await _answer(request, state, asked)


@router.post(
    "/v1/heads/{name}/classify",
    summary="Label texts by one head",
    openapi_extra={
        "requestBody": {"required": True, **ref("HeadClassifyBody")},
        "parameters": [HEAD_NAME, *REQUEST_HEADERS],
    },
    responses={200: {"description": "One result a text, in order.", **ref("ClassifyAnswer")}, **ERRORS},
)
async def classify_by_head(request: Request) -> Response:
    """As `/v1/classify` with that head alone, by NAME, NAME@VERSION or NAME@ROLE. Its failure is the request's."""
    return await respond(request, _classify_by_head)


async def _classify_by_head(request: Request, state: State) -> Response:
    body = await read_body(request, state)
    asked = parse_head_classify(
        body,
        request.path_params["name"],
        state.settings.max_texts,
        sticky_key=sticky_key_of(request),
        may_reuse=may_reuse(request),
    )
    return await _answer(request, state, asked)


async def _answer(request: Request, state: State, asked: Asked) -> Response:
    deadline = Deadline.after(patience(request, asked.timeout, state.settings))
    answer = await classified(request, state, asked, deadline)
    body = classify_answer(answer, await notes_of(asked.work.texts, deadline))
    return JsonAnswer(_encoder.encode(body), (_SERVER_TIMING_KEY, server_timing(body.timings).encode()))


class JsonAnswer(Response):
    """A 200 with *body*, which is JSON, and *headers* as they travel: Starlette's own way to them costs as much as the body."""

    def __init__(self, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]


async def classified(request: Request, state: State, asked: Asked, deadline: Deadline) -> Answer:
    """The answer to *asked* within *deadline*, for a caller who stays to read it.

    Raises:
        TrunklineError: nothing can be answered.
        HeadFailed: a head has no answer, where *asked* is strict.
        CallerLeftError: nobody reads it.
    """
    num_texts, is_bulk = len(asked.work.texts), asked.work.priority == "bulk"
    with state.admission.admit(num_texts, is_bulk=is_bulk, pay=partial(charge, request, num_texts)):
        async with while_connected(request.receive):
            await state.turns.take()
            answer = await state.pipeline.classify(asked.work, deadline)
    failed = next((said for said in answer.outcomes.values() if isinstance(said, TrunklineError)), None)
    if asked.is_strict and failed is not None:
        raise HeadFailed(failed)
    state.telemetry.answered(answer)
    return answer


async def notes_of(texts: Sequence[str], deadline: Deadline) -> list[tuple[str, ...]]:
    """What normalising changed in each of *texts*.

    Raises:
        DeadlineExceeded: *deadline* passed before it was known.
    """
    if sum(map(len, texts)) <= INLINE_CHARACTERS:
        return [normalization_notes(text) for text in texts]
    return await on_a_thread(lambda: [normalization_notes(text) for text in texts], deadline)


class HeadFailed(Exception):
    """A head's *error*, in words for the caller, is the request's."""

    def __init__(self, error: TrunklineError) -> None:
        super().__init__(error.message)
        self.error = error


async def respond(
    request: Request,
    handle: Callable[[Request, State], Awaitable[Response]],
    tell: Callable[[TrunklineError, str], Response] = response_of,
    *,
    is_whole: bool = True,
) -> Response:
    """What *handle* answers, with the request's id; where it raises, the error as *tell* shapes it, which has the id in it.

    An answer that is not whole by then counts its request itself, at its end.
    """
    # Here and below, cheaper than by Starlette's own: this is the hot path.
    state: State = request.scope["state"]["gateway"]
    request_id = request_id_of(request)
    try:
        response = await handle(request, state)
    except (TrunklineError, HeadFailed) as raised:
        # An error knows this frame: kept in a variable of it, neither would be freed before the collector comes, nor the body.
        return _failed(raised, tell, request_id, state)
    except (ClientDisconnect, CallerLeftError):
        state.telemetry.refused(499, "departed")
        return Response(status_code=499)
    finally:
        state.bodies.give(request.scope)
    response.raw_headers.append((REQUEST_ID_KEY, request_id.encode()))
    if is_whole:
        state.telemetry.served(response.status_code)
    return response


def _failed(
    raised: "TrunklineError | HeadFailed", tell: Callable[[TrunklineError, str], Response], request_id: str, state: State
) -> Response:
    """What the caller is told, counted, and logged where it is no fault of the caller's."""
    error = raised.error if isinstance(raised, HeadFailed) else public(raised)
    response = tell(error, request_id)
    state.telemetry.refused(response.status_code, "quota" if isinstance(error, QuotaUsedUp) else error.code)
    if response.status_code >= 500:
        _log.warning("request %s ended with %s: %s", request_id, error.code, error.message)
    return response


def sticky_key_of(request: Request) -> str:
    """What the caller named as such; "" where nothing. Read as UTF-8, so that it is the same in a header as in a body."""
    named = header_of(request.scope["headers"], _STICKY_KEY)
    return named.encode("latin-1").decode("utf-8", "surrogateescape") if named else ""


def may_reuse(request: Request) -> bool:
    """Whether the caller takes outputs of texts seen before: it does, but for `Cache-Control: no-store` or `no-cache`."""
    asked = header_of(request.scope["headers"], b"cache-control")
    return asked is None or not {"no-store", "no-cache"} & {word.strip() for word in asked.lower().split(",")}


def patience(request: Request, timeout: float | None, settings: Settings) -> float:
    """Seconds that *request* may take: *timeout* where its body names one, else what its header says, else the default."""
    named = header_of(request.scope["headers"], _TIMEOUT_KEY)
    if timeout is None and named is not None:
        if not (named.isascii() and named.isdigit() and len(named) < 10):
            raise InvalidRequest(f"{REQUEST_TIMEOUT_MS} is not a whole number of milliseconds")
        timeout = int(named) / 1000
    return min(settings.default_timeout_seconds if timeout is None else timeout, settings.max_timeout_seconds)


def public(error: TrunklineError) -> TrunklineError:
    """*error* without what only operators should read: addresses and internals of the backends."""
    ours = as_the_callers(error)
    if ours is not error:
        _log.error("the embedding service does not serve the gateway: %s", error.code)
    if status_of(ours) < 500 or ours.code == "deadline_exceeded":
        return ours
    return type(ours)("the embedding service is not available; try again shortly", retry_after=ours.retry_after)


async def read_body(request: Request, state: State) -> bytes:
    """The body, refused as soon as it is seen to be too long; held until `respond` is done.

    Raises:
        TooLarge, WrongMediaType, Overloaded: it is not read.
    """
    refuse_compression(request)
    max_bytes = state.settings.max_body_bytes
    body = bytearray()
    async for chunk in request.stream():
        if not state.bodies.take(request.scope, len(chunk)):
            raise Overloaded(FULL, retry_after=RETRY_SECONDS)
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"the body is longer than {max_bytes} bytes")
    return bytes(body)


def refuse_compression(request: Request) -> None:
    """WrongMediaType where the body is compressed."""
    if header_of(request.scope["headers"], b"content-encoding") not in {None, "identity"}:
        raise WrongMediaType("compressed bodies are not accepted")


def request_id_of(_: Request) -> str:
    """The caller's own, when it is one, or a new one."""
    return current_request_id()


@router.get("/v1/heads", summary="The live heads")
async def heads(request: Request) -> Response:
    """Name, version, labels, reading and measured accuracy of each head, and why one is refused where it is."""
    state: State = request.state.gateway
    try:
        trunk = await state.trunks.trunk(Deadline.after(2.0))
    except TrunklineError as error:
        return response_of(public(error), request_id_of(request))
    described = [describe(name, head, trunk) for name, head in sorted(state.catalogue.catalogue.heads.items())]
    return _json({"heads": described})


def describe(name: str, head: CatalogueHead, trunk: LiveTrunk) -> dict[str, Any]:
    """One head, for people and clients."""
    manifest = head.versions[head.stable]
    return {
        "name": name,
        "version": manifest.version,
        "task": manifest.task,
        "labels": manifest.labels,
        "preprocess": manifest.preprocess,
        "long_text": manifest.long_text,
        "default": head.default,
        "tags": head.tags,
        "stable": head.stable,
        "canary": head.canary,
        "canary_share": head.canary_share,
        "shadow": head.shadow,
        "versions": sorted(head.versions),
        "metrics": manifest.metrics,
        "trunk": {"name": manifest.trunk.name, "fingerprint": manifest.trunk.fingerprint},
        "created": manifest.created,
        "refused": refusal(manifest, trunk) or None,
    }


@router.get("/healthz", summary="Does the process live?")
async def healthz() -> Response:
    """Always 200."""
    return _json({"status": "live"})


@router.get("/readyz", summary="May requests be sent here?", responses={503: {"description": "Not now; reasons are given."}})
async def readyz(request: Request) -> Response:
    """200 when the trunk is known and the catalogue loaded; 503 with reasons otherwise, and while draining."""
    state: State = request.state.gateway
    reasons = []
    if state.is_draining:
        reasons.append("draining")
    if not state.catalogue.is_loaded:
        reasons.append("no catalogue has been read yet")
    try:
        await state.trunks.trunk(Deadline.after(1.0))
    except TrunklineError:
        reasons.append("the embedding service is not available")
    return _json({"status": "not ready" if reasons else "ready", "reasons": reasons}, 503 if reasons else 200)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    state: State = request.state.gateway
    text = state.telemetry.render(inside=state.admission.num_texts, catalogue_age=state.catalogue.age)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/info", summary="The effective settings")
async def info(request: Request) -> Response:
    """What this gateway runs with; no addresses."""
    state: State = request.state.gateway
    hidden = {"host", "embedding_address", "heads_address", "catalogue"}
    known = state.trunks.known
    trunk = {"name": known.name, "fingerprint": known.fingerprint} if known else None
    return _json({"service": "gateway", "trunk": trunk, "settings": state.settings.model_dump(mode="json", exclude=hidden)})


def _json(content: object, status: int = 200) -> Response:
    return Response(_encoder.encode(content), status, media_type="application/json")
