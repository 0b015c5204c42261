"""What travels over HTTP, as msgspec types: bodies are checked by them, answers and the API page made of them."""

from typing import Annotated, Any, Final, TypeVar

import msgspec

from clients import InvalidRequest
from clients.wire.chain import STEPS, UnknownStepError, with_versions
from clients.wire.decoding import NOT_DECODED, told_of_shape
from clients.wire.text import normalize_text
from head_service.control.feedback import FeedbackCounts
from head_service.control.labelled import Given
from head_service.control.runs import Line, RunFacts
from head_service.control.schema import Upload
from head_service.control.states import State
from head_service.control.words import DataSource, HeadName, Publish, RunResult, TrainingOrder

_Body = TypeVar("_Body")
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]


class FeedbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/feedback`: *label*, or of a head that answers with several all that are right in *labels*."""

    text: str
    head: HeadName
    label: Label | None = None
    labels: Annotated[list[Label], msgspec.Meta(max_length=1_000)] | None = None


class RetrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/feedback/retrain`. *data* absent: what the head's last successful run was trained on, if any."""

    head: HeadName
    publish: Publish = "version"
    data: DataSource | None = None


class RunBody(msgspec.Struct, frozen=True, kw_only=True):
    """A run. Times are seconds since 1970."""

    id: str
    seq: int
    state: State
    head: str
    order: TrainingOrder
    attempt: int
    max_attempts: int
    cancel_asked: bool
    step: str
    done: int
    total: int
    message: str
    result: RunResult
    created_at: float
    started_at: float | None
    finished_at: float | None


class RunsAnswer(msgspec.Struct, frozen=True):
    """The newest first; *next_before* gives the page after, null: there is none."""

    runs: list[RunBody]
    next_before: int | None


class LineBody(msgspec.Struct, frozen=True):
    """A line a run said."""

    number: int
    attempt: int
    at: float
    line: str


class LogAnswer(msgspec.Struct, frozen=True):
    """*next_offset* is where to go on; *is_complete*: the run has ended and there is nothing after it."""

    lines: list[LineBody]
    next_offset: int
    is_complete: bool


class UploadAnswer(msgspec.Struct, frozen=True):
    """Data that is kept; orders name it by *id*."""

    id: str
    size_bytes: int
    sha256: str


class KeptAnswer(msgspec.Struct, frozen=True):
    """Feedback that is on the disk; not *is_new*: its idempotency key gave it before."""

    id: str
    is_new: bool


class CountsAnswer(msgspec.Struct, frozen=True):
    """Feedback of one head; texts are counted once, by each label that most of their rows say, ties by none."""

    head: str
    rows: int
    texts: int
    labels: dict[str, int]
    conflicts: int
    ties: int


class ErrorDetail(msgspec.Struct, frozen=True):
    """The one shape of an error."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of every answer of 400 and above."""

    error: ErrorDetail


_TYPES: Final = (
    TrainingOrder,
    FeedbackBody,
    RetrainBody,
    RunBody,
    RunsAnswer,
    LogAnswer,
    UploadAnswer,
    KeptAnswer,
    CountsAnswer,
    ErrorAnswer,
)


def openapi_parts() -> dict[str, Any]:
    """The schemas by name, for the API page."""
    _, components = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    return components


def parse(body: bytes, kind: type[_Body]) -> _Body:
    """*body* as *kind*.

    Raises:
        InvalidRequest: it is not JSON, or not of the right shape; the message never echoes what was given.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    # msgspec bounds its recursion, also where it skips.
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body has the wrong shape: {told_of_shape(error, kind)}") from None
    except NOT_DECODED:
        raise InvalidRequest("the body is not valid JSON in UTF-8") from None


def with_step_versions(order: TrainingOrder) -> TrainingOrder:
    """*order*, its steps with their versions, so that a training on the same order does the same later.

    Raises:
        InvalidRequest: a step is unknown.
    """
    if not order.preprocess:
        return order
    try:
        return msgspec.structs.replace(order, preprocess=with_versions(order.preprocess))
    except UnknownStepError:
        raise InvalidRequest(f"preprocess names a step that is not known here; there are {', '.join(STEPS)}") from None


def check_text(text: str, max_characters: int) -> None:
    """Refuse a text of feedback that could not be kept or trained on.

    Raises:
        InvalidRequest: why.
    """
    if len(text) > max_characters:
        raise InvalidRequest(f"the text is longer than {max_characters} characters")
    if "\x00" in text:
        raise InvalidRequest("the text has a NUL character, which cannot be kept")
    if not normalize_text(text):
        raise InvalidRequest("the text is empty")


def given(body: FeedbackBody) -> Given:
    """What the text was said to be.

    Raises:
        InvalidRequest: both or neither of label and labels, or a label without a word.
    """
    if body.label is not None and body.labels is None:
        return one_line(body.label)
    if body.labels is not None and body.label is None:
        return tuple(sorted({one_line(label) for label in body.labels}))
    raise InvalidRequest("give label, or labels for a head that answers with several")


def one_line(label: str) -> str:
    """*label* as training reads it: runs of white space are one space.

    Raises:
        InvalidRequest: nothing is left.
    """
    found = " ".join(label.replace("\x00", " ").split())
    if not found:
        raise InvalidRequest("the label is empty")
    return found


def run_body(run: RunFacts) -> RunBody:
    """A run as it travels."""
    return RunBody(
        id=run.id,
        seq=run.seq,
        state=run.state,
        head=run.order.head,
        order=run.order,
        attempt=run.attempt,
        max_attempts=run.max_attempts,
        cancel_asked=run.is_cancel_asked,
        step=run.step,
        done=run.done,
        total=run.total,
        message=run.message,
        result=run.result,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
    )


def line_body(line: Line) -> LineBody:
    """A line as it travels."""
    return LineBody(line.number, line.attempt, line.at, line.line)


def upload_answer(upload: Upload) -> UploadAnswer:
    """An upload as it travels."""
    return UploadAnswer(upload.id, upload.size_bytes, upload.sha256)


def counts_answer(head: str, counts: FeedbackCounts) -> CountsAnswer:
    """Counts as they travel."""
    return CountsAnswer(head, counts.num_rows, counts.num_texts, counts.by_label, counts.num_conflicts, counts.num_ties)
