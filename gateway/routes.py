"""The HTTP edge. The hot route reads and writes bytes by msgspec; FastAPI keeps the documentation."""

import logging
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from clients import Deadline, InvalidRequest, TrunklineError
from clients.wire.asgi import CallerLeftError, while_connected
from clients.wire.catalogue import CatalogueHead
from clients.wire.metadata import REQUEST_ID, REQUEST_TIMEOUT_MS, SERVER_TIMING
from gateway.adapters import ClientTrunks
from gateway.admission import Admission
from gateway.catalogue import CataloguePoller
from gateway.classification import Answer
from gateway.errors import TooLarge, WrongMediaType, response_of, status_of
from gateway.exchange import current_request_id
from gateway.pipeline import Pipeline
from gateway.plan import refusal
from gateway.ports import LiveTrunk
from gateway.quota import charge
from gateway.schemas import classify_answer, parse_classify
from gateway.settings import Settings
from gateway.telemetry import Telemetry, server_timing

_log = logging.getLogger(__name__)
_encoder: Final = msgspec.json.Encoder()

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
    is_draining: bool = False


def _ref(name: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, **_ref("ErrorAnswer")}
    for status, text in {
        400: "The request can never be served as it is.",
        404: "A head that was asked for is unknown; the message names the known ones.",
        413: "The body is too long.",
        429: "The gateway is full; Retry-After says when to come back.",
        503: "The embedding service is not available; Retry-After says when to come back.",
        504: "The deadline passed.",
    }.items()
}


@router.post(
    "/v1/classify",
    summary="Label texts",
    openapi_extra={"requestBody": {"required": True, **_ref("ClassifyBody")}},
    responses={200: {"description": "One result a text, in order.", **_ref("ClassifyAnswer")}, **ERRORS},
)
async def classify(request: Request) -> Response:
    """Raw texts in, labels of all asked heads out, one forward pass a text. A head that fails has an error of its own."""
    state: State = request.state.gateway
    request_id = request_id_of(request)
    try:
        answer = await _classify(request, state)
    except TrunklineError as error:
        status = status_of(error)
        state.telemetry.refused(status, error.code)
        if status >= 500:
            _log.warning("request %s ended with %s: %s", request_id, error.code, error.message)
        return response_of(public(error), request_id)
    except (ClientDisconnect, CallerLeftError):
        state.telemetry.refused(499, "departed")
        return Response(status_code=499)
    state.telemetry.answered(answer)
    headers = {REQUEST_ID: request_id, SERVER_TIMING: server_timing(answer.timings)}
    return Response(_encoder.encode(classify_answer(answer)), headers=headers, media_type="application/json")


async def _classify(request: Request, state: State) -> Answer:
    body = await read_body(request, state.settings.max_body_bytes)
    work, timeout = parse_classify(body, state.settings.max_texts)
    deadline = Deadline.after(_patience(request, timeout, state.settings))
    with state.admission.admit(len(work.texts), is_bulk=work.priority == "bulk"):
        charge(request, len(work.texts))
        async with while_connected(request.receive):
            return await state.pipeline.classify(work, deadline)


def _patience(request: Request, timeout: float | None, settings: Settings) -> float:
    named = request.headers.get(REQUEST_TIMEOUT_MS)
    if timeout is None and named is not None:
        if not (named.isascii() and named.isdigit() and len(named) < 10):
            raise InvalidRequest(f"{REQUEST_TIMEOUT_MS} is not a whole number of milliseconds")
        timeout = int(named) / 1000
    return min(settings.default_timeout_seconds if timeout is None else timeout, settings.max_timeout_seconds)


def public(error: TrunklineError) -> TrunklineError:
    """*error* without what only operators should read: addresses and internals of the backends."""
    if status_of(error) < 500 or error.code == "deadline_exceeded":
        return error
    return type(error)("the embedding service is not available; try again shortly", retry_after=error.retry_after)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused as soon as it is seen to be too long.

    Raises:
        TooLarge, WrongMediaType: it is not read.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise WrongMediaType("compressed bodies are not accepted")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"the body is longer than {max_bytes} bytes")
    return bytes(body)


def request_id_of(_: Request) -> str:
    """The caller's own, when it is one, or a new one."""
    return current_request_id()


@router.get("/v1/heads", summary="The live heads")
async def heads(request: Request) -> Response:
    """Name, version, labels and measured accuracy of each head, and why one is refused where it is."""
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
