"""The HTTP edge: who may, what was sent, the use case, the answer. Bodies are read and written as bytes by msgspec."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, cast

import msgspec
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response, StreamingResponse

from clients import DeadlineExceeded, InvalidRequest, Overloaded, Unauthenticated
from clients.wire.rates import Rates
from head_service.control import schemas
from head_service.control.errors import TooLarge, WrongMediaType
from head_service.control.feedback import FeedbackRow, FeedbackWriter, check_left, checked
from head_service.control.keep import Kept
from head_service.control.keys import Authenticator, Caller, Scope
from head_service.control.labelled import Form, render
from head_service.control.retraining import is_retraining_of
from head_service.control.runs import RunFacts
from head_service.control.settings import ServeSettings
from head_service.control.states import FINAL, STATES
from head_service.control.telemetry import Telemetry
from head_service.control.words import TrainingOrder
from head_service.repository import NAME
from head_service.store import BUNDLE_PREFIX, is_bundle

IDEMPOTENCY_KEY: Final = "idempotency-key"
MAX_PAGE: Final = 500
_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}")
_FORMS: Final = ("csv", "jsonl")
_Body = TypeVar("_Body")

router = APIRouter()


@dataclass(slots=True)
class State:
    """What the lifespan makes and the routes use."""

    settings: ServeSettings
    kept: Kept
    writer: FeedbackWriter
    authenticator: Authenticator
    telemetry: Telemetry
    feedback_rates: Rates
    auth_failures: Rates


def _ref(name: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def _body(name: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, **_ref(name)}}


def _answers(name: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    errors = {
        400: "The request can never be served as it is.",
        401: "No valid key.",
        403: "The key does not cover this.",
        404: "There is no such thing, or it is somebody else's.",
        408: "The body did not arrive in time.",
        409: "The idempotency key was used before, for something else.",
        413: "The body is too long.",
        415: "The body is compressed, or of a kind that is not read.",
        429: "Too many at once, too often, or a day's quota is used up; Retry-After says when to come back.",
        503: "The database cannot be used just now.",
        507: "There is no room; nothing was kept.",
    }
    return {
        status: {"description": "Done.", **_ref(name)},
        **{code: {"description": text, **_ref("ErrorAnswer")} for code, text in errors.items()},
    }


@router.post(
    "/v1/runs",
    summary="Submit a training run",
    status_code=201,
    responses=_answers("RunBody", 201),
    openapi_extra=_body("TrainingOrder"),
)
async def submit(request: Request) -> Response:
    """It is in the database when this answers: 201, or 200 where the Idempotency-Key gave it before."""
    state, caller = _enter(request, "train")
    order = await _read(request, state, TrainingOrder)
    if order.feedback_until:
        raise InvalidRequest("feedback_until is set by POST /v1/feedback/retrain; leave it out")
    order = schemas.with_step_versions(order)
    key = _idempotency_key(request)

    def submit_run() -> tuple[RunFacts, bool]:
        # Sent again it is what it was, whether or not its data is still there.
        if state.kept.runs.submitted(caller.name, key) is None:
            state.kept.data.check(order, caller.owner)
        return state.kept.runs.submit(order, caller.name, key)

    return await _submitted(state, submit_run)


@router.get("/v1/runs", summary="Runs, the newest first", responses=_answers("RunsAnswer"))
async def list_runs(
    request: Request,
    state: str | None = None,
    head: str | None = None,
    before: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
) -> Response:
    """One's own; with the scope admin everybody's."""
    here, caller = _enter(request, "train")
    if state is not None and state not in STATES:
        raise InvalidRequest(f"state is one of {', '.join(STATES)}")
    found = await run_sync(lambda: here.kept.runs.page(owner=caller.owner, state=state, head=head, before=before, limit=limit))
    more = found[-1].seq if len(found) == limit else None
    return _json(schemas.RunsAnswer([schemas.run_body(run) for run in found], more))


@router.get("/v1/runs/{run_id}", summary="One run", responses=_answers("RunBody"))
async def show_run(request: Request, run_id: str) -> Response:
    """How far it is, or what came of it."""
    state, caller = _enter(request, "train")
    return _json(schemas.run_body(await run_sync(lambda: state.kept.runs.get(run_id, caller.owner))))


@router.get("/v1/runs/{run_id}/logs", summary="What a run said", responses=_answers("LogAnswer"))
async def run_logs(
    request: Request,
    run_id: str,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
) -> Response:
    """From line *offset* on; ask again with *next_offset* to follow."""
    here, caller = _enter(request, "train")

    def read() -> schemas.LogAnswer:
        # The state first: lines written after it was read are not missed, because it was not final then.
        is_final = here.kept.runs.get(run_id, caller.owner).state in FINAL
        lines = here.kept.runs.lines(run_id, caller.owner, offset=offset, limit=limit)
        after = lines[-1].number + 1 if lines else offset
        return schemas.LogAnswer([schemas.line_body(line) for line in lines], after, is_final and len(lines) < limit)

    return _json(await run_sync(read))


@router.post("/v1/runs/{run_id}/cancel", summary="Stop a run", responses=_answers("RunBody"))
async def cancel_run(request: Request, run_id: str) -> Response:
    """A queued one never starts; a running one is stopped soon, unless it has published; of a finished one nothing changes."""
    state, caller = _enter(request, "train")
    return _json(schemas.run_body(await run_sync(lambda: state.kept.runs.cancel(run_id, caller.owner))))


@router.post("/v1/data", summary="Upload training data", status_code=201, responses=_answers("UploadAnswer", 201))
async def upload(request: Request) -> Response:
    """A CSV, TSV or JSONL file as the body, by its content-type; it is on the disk when this answers."""
    state, caller = _enter(request, "train")
    _refuse_compressed(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and len(declared) < 20 and int(declared) > state.settings.max_upload_bytes:
        raise TooLarge(f"the data is longer than {state.settings.max_upload_bytes} bytes")
    pieces = _pieces(request, state.settings.body_timeout_seconds)
    found = await state.kept.uploads.receive(pieces, request.headers.get("content-type", ""), caller.name)
    return _json(schemas.upload_answer(found), 201)


@router.post(
    "/v1/feedback",
    summary="Say what a text's label is",
    status_code=201,
    responses=_answers("KeptAnswer", 201),
    openapi_extra=_body("FeedbackBody"),
)
async def give_feedback(request: Request) -> Response:
    """It is on the disk when this answers: 201, or 200 where the Idempotency-Key gave it before."""
    state, caller = _enter(request, "feedback")
    started = time.perf_counter()
    if wait := state.feedback_rates.take(caller.name):
        raise Overloaded("this key gives feedback too often", retry_after=wait)
    body = await _read(request, state, schemas.FeedbackBody)
    schemas.check_text(body.text, state.settings.max_text_characters)
    manifest = await run_sync(state.kept.live_head, body.head)
    label = checked(schemas.given(body), manifest, body.head, allow_new=state.settings.allow_new_labels)
    if manifest is not None and manifest.preprocess:
        await run_sync(check_left, body.text, manifest.preprocess)
    kept = await state.writer.write(FeedbackRow(body.head, body.text, label, caller.name, _idempotency_key(request)))
    state.telemetry.kept(time.perf_counter() - started)
    return _json(schemas.KeptAnswer(kept.id, kept.is_new), 201 if kept.is_new else 200)


@router.get("/v1/feedback/counts", summary="How much feedback a head has", responses=_answers("CountsAnswer"))
async def feedback_counts(request: Request, head: str) -> Response:
    """Rows, texts, labels, conflicts and ties."""
    state, _ = _enter(request, "train")
    _check_name(head)
    return _json(schemas.counts_answer(head, await run_sync(state.kept.feedback.counts, head)))


@router.get("/v1/feedback/export", summary="Feedback as a dataset", response_class=Response)
async def export_feedback(request: Request, head: str, form: str = "csv") -> Response:
    """Each text once, with what most of its rows say; ties are left out. Columns `text` and `label`; in CSV | between labels."""
    state, _ = _enter(request, "train")
    _check_name(head)
    if form not in _FORMS:
        raise InvalidRequest(f"form is one of {', '.join(_FORMS)}")
    feedback = state.kept.feedback
    until = await run_sync(feedback.newest, head)
    lines = render(feedback.dataset(head, until), cast("Form", form))
    media_type = "text/csv; charset=utf-8" if form == "csv" else "application/x-ndjson"
    return StreamingResponse(_gathered(lines), media_type=media_type)


@router.post(
    "/v1/feedback/retrain",
    summary="Train on the feedback",
    status_code=201,
    responses=_answers("RunBody", 201),
    openapi_extra=_body("RetrainBody"),
)
async def retrain(request: Request) -> Response:
    """A run on all feedback of a head, over the data its last successful run had or other data; the gate is the same as ever."""
    state, caller = _enter(request, "train")
    body = await _read(request, state, schemas.RetrainBody)
    key = _idempotency_key(request)

    def submit_run() -> tuple[RunFacts, bool]:
        known = state.kept.runs.submitted(caller.name, key)
        if known is not None and is_retraining_of(known.order, body.head, body.publish, body.data):
            # What it was made of may have changed since: other feedback, another run before it.
            return known, False
        order = state.kept.retraining.order(body.head, body.publish, body.data)
        # Data of the run before is nobody's to see, but the head's to be trained on.
        state.kept.data.check(order, caller.owner if body.data else None)
        return state.kept.runs.submit(order, caller.name, key)

    return await _submitted(state, submit_run)


@router.get("/healthz", summary="Does the process live?")
async def healthz() -> Response:
    """Always 200."""
    return _json({"status": "live"})


@router.get("/readyz", summary="May requests be sent here?", responses={503: {"description": "Not now."}})
async def readyz(request: Request) -> Response:
    """200 while the database answers."""
    state: State = request.state.control
    await run_sync(lambda: state.kept.runs.page(limit=1))
    return _json({"status": "ready"})


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus text; takes the scope admin."""
    state, _ = _enter(request, "admin")

    def render_all() -> bytes:
        kept = state.kept
        return state.telemetry.render(kept.runs.statistics(), len(kept.wakeup), kept.feedback.num_rows())

    return Response(await run_sync(render_all), media_type=CONTENT_TYPE_LATEST)


def _enter(request: Request, scope: Scope) -> tuple[State, Caller]:
    """The state, and the caller, who may.

    Raises:
        Unauthenticated, PermissionDenied: it may not.
        Overloaded: its address has sent too many bad keys.
    """
    state: State = request.state.control
    try:
        caller = state.authenticator.caller_of(request.headers.get("authorization", ""))
    except Unauthenticated:
        # After the key was looked at: those behind the same address with a good one go on unharmed.
        if wait := state.auth_failures.take(request.client.host if request.client else ""):
            raise Overloaded("too many bad keys from this address", retry_after=wait) from None
        raise
    caller.require(scope)
    return state, caller


async def _read(request: Request, state: State, kind: type[_Body]) -> _Body:
    """The JSON body as *kind*, refused as soon as it is seen to be too long.

    Raises:
        InvalidRequest, TooLarge, WrongMediaType, DeadlineExceeded: it is not read.
    """
    _refuse_compressed(request)
    body = bytearray()
    try:
        async with asyncio.timeout(state.settings.body_timeout_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > state.settings.max_body_bytes:
                    raise TooLarge(f"the body is longer than {state.settings.max_body_bytes} bytes")
    except TimeoutError:
        raise DeadlineExceeded("the body did not arrive in time") from None
    return schemas.parse(bytes(body), kind)


async def _pieces(request: Request, rest_seconds: float) -> AsyncIterator[bytes]:
    """The body as it comes, however long it takes, so long as it does not rest for *rest_seconds*."""
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(rest_seconds):
                piece = await anext(stream, None)
        except TimeoutError:
            raise DeadlineExceeded("the body did not arrive in time") from None
        if piece is None:
            return
        if piece:
            yield piece


def _refuse_compressed(request: Request) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise WrongMediaType("compressed bodies are not accepted")


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest("the Idempotency-Key is not 1 to 200 printable ASCII characters without spaces")
    return key


def _check_name(head: str) -> None:
    if not NAME.fullmatch(head) or is_bundle(head):
        raise InvalidRequest(
            f"head is not a head's name: 1 to 64 of a-z, 0-9, _ and -, a letter or digit first, and not {BUNDLE_PREFIX} first"
        )


async def _submitted(state: State, submit_run: Callable[[], tuple[RunFacts, bool]]) -> Response:
    """The run as kept, once workers have been woken."""
    run, is_new = await run_sync(submit_run)
    if run.state == "queued":
        await run_sync(state.kept.wakeup.wake, run.id)
    return _json(schemas.run_body(run), 201 if is_new else 200)


def _gathered(lines: Iterator[str]) -> Iterator[bytes]:
    """*lines* as fewer, larger pieces."""
    piece = bytearray()
    for line in lines:
        piece += line.encode()
        if len(piece) >= 65_536:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
