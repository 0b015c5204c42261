"""What travels over HTTP, as msgspec types: requests are checked by them, answers and the API page made of them."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec

from clients import InvalidRequest
from clients.wire.decoding import NOT_DECODED, told_of_shape
from gateway.classification import Answer, Classification, HeadAnswer, HeadOutcome, StageTimings, Truncation
from gateway.ports import PriorityName

Body = TypeVar("Body")

MAX_WORDS: Final = 256
"""Heads and tags of one request, together."""

Text = Annotated[str, msgspec.Meta(description="One raw text.")]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Heads = Annotated[list[Word], msgspec.Meta(description="NAME, NAME@VERSION, NAME@stable or NAME@canary; each once.")]
Tags = Annotated[list[Word], msgspec.Meta(description="All heads that have one of these.")]
TimeoutMs = Annotated[int, msgspec.Meta(ge=1, le=600_000, description="The caller's patience; wins over x-request-timeout-ms.")]
TopK = Annotated[int, msgspec.Meta(ge=1, le=100_000, description="The best labels' scores alone.")]
Threshold = Annotated[float, msgspec.Meta(ge=0, le=1, description="Labels that score less are not answered.")]
StickyKey = Annotated[str, msgspec.Meta(max_length=256, description="Wins over x-sticky-key.")]


class Options(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How texts are read, and what is answered of them; see `Classification`."""

    scores: bool = False
    top_k: TopK | None = None
    threshold: Threshold | None = None
    truncation: Truncation = "right"
    sticky_key: StickyKey | None = None


class HeadClassifyBody(Options, kw_only=True):
    """The body of `POST /v1/heads/{name}/classify`: `text` or `texts`; everything else is optional."""

    text: Text | None = None
    texts: list[str] | None = None
    timeout_ms: TimeoutMs | None = None
    priority: PriorityName = "interactive"


class ClassifyBody(HeadClassifyBody, kw_only=True):
    """The body of `POST /v1/classify`: `text` or `texts`; everything else is optional.

    *strict*: a head that fails, fails the request.
    """

    heads: Heads | None = None
    tags: Tags | None = None
    strict: bool = False


class StreamLine(Options, kw_only=True):
    """A line to `POST /v1/classify/stream`: one text, and which answer is its own when it has an *id*."""

    text: Text
    id: Annotated[str, msgspec.Meta(max_length=256)] | Annotated[int, msgspec.Meta(gt=-(2**53), lt=2**53)] | None = None
    heads: Heads | None = None
    tags: Tags | None = None


class ErrorInfo(msgspec.Struct):
    """Why one head, or one line of a stream, has no answer."""

    code: str
    message: str


class HeadBody(msgspec.Struct, omit_defaults=True):
    """One head on one text: a label and its score, or a regression's value; or an error."""

    label: str | None = None
    score: float | None = None
    confidence: float | None = None
    version: int | None = None
    labels: list[str] | None = None
    path: list[str] | None = None
    value: float | None = None
    scores: dict[str, float] | None = None
    ancestors: dict[str, float] | None = None
    error: ErrorInfo | None = None


class ResultBody(msgspec.Struct, omit_defaults=True):
    """One text. *notes* tell what normalising it changed, in words of no language."""

    heads: dict[str, HeadBody]
    num_tokens: int
    truncated: bool
    cached: bool
    notes: list[str] = []


class StreamResult(msgspec.Struct, omit_defaults=True):
    """A line from `POST /v1/classify/stream`: what became of line *index*, the first being the request's `start`."""

    index: int
    id: str | int | None = None
    heads: dict[str, HeadBody] | None = None
    num_tokens: int | None = None
    truncated: bool | None = None
    cached: bool | None = None
    notes: list[str] = []
    error: ErrorInfo | None = None


class StreamEnd(msgspec.Struct, omit_defaults=True):
    """The last line of a stream: without it the stream was cut. Not *done*: *error* says why no more lines were read."""

    done: bool
    num_lines: int
    num_errors: int
    error: ErrorInfo | None = None


class TrunkBody(msgspec.Struct):
    """What embedded the texts."""

    name: str
    fingerprint: str


class TimingsBody(msgspec.Struct):
    """Milliseconds."""

    preprocess_ms: float
    embed_ms: float
    heads_ms: float
    total_ms: float


class ClassifyAnswer(msgspec.Struct):
    """One result a text, in order."""

    results: list[ResultBody]
    trunk: TrunkBody
    timings: TimingsBody


class ErrorDetail(msgspec.Struct):
    """The one shape of an error."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(msgspec.Struct):
    """The body of every answer of 400 and above, but for those in another protocol's shape."""

    error: ErrorDetail


class Asked(NamedTuple):
    """A request as it came: *timeout* in seconds where it names one; *is_strict*: a head that fails, fails it."""

    work: Classification
    timeout: float | None = None
    is_strict: bool = False


_classify: Final = msgspec.json.Decoder(ClassifyBody)
_head_classify: Final = msgspec.json.Decoder(HeadClassifyBody)
_line: Final = msgspec.json.Decoder(StreamLine)


def parse_classify(body: bytes, max_texts: int, *, sticky_key: str = "", may_reuse: bool = True) -> Asked:
    """The request in *body*; *sticky_key* and *may_reuse* are what its headers say.

    Raises:
        InvalidRequest: it is not JSON, or not of the right shape; the message never echoes a text.
    """
    parsed = decode(_classify, body)
    check_words(parsed.heads, parsed.tags)
    return _asked(parsed, max_texts, parsed.heads, parsed.tags, sticky_key, may_reuse, is_strict=parsed.strict)


def parse_head_classify(body: bytes, head: str, max_texts: int, *, sticky_key: str = "", may_reuse: bool = True) -> Asked:
    """The request in *body* to *head* alone, whose failure is the request's; see `parse_classify`."""
    parsed = decode(_head_classify, body)
    return _asked(parsed, max_texts, [head], None, sticky_key, may_reuse, is_strict=True)


def parse_line(line: bytes) -> StreamLine:
    """The request in a *line* of a stream; see `parse_classify`."""
    parsed = decode(_line, line)
    check_words(parsed.heads, parsed.tags)
    return parsed


def decode(decoder: "msgspec.json.Decoder[Body]", body: bytes) -> Body:
    """What *body* says.

    Raises:
        InvalidRequest: it is not JSON, or not of the right shape; the message never echoes it.
    """
    try:
        return decoder.decode(body)
    # msgspec bounds its recursion, also where it skips.
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body has the wrong shape: {told_of_shape(error, decoder.type)}") from None
    except NOT_DECODED:
        raise InvalidRequest("the body is not valid JSON in UTF-8") from None


def check_words(heads: Sequence[str] | None, tags: Sequence[str] | None) -> None:
    """InvalidRequest where there are too many, or one twice."""
    if len(heads or ()) + len(tags or ()) > MAX_WORDS:
        raise InvalidRequest(f"more than {MAX_WORDS} heads and tags; send several requests, or give the heads a tag")
    for words in (heads, tags):
        if words and len(set(words)) != len(words):
            raise InvalidRequest("a head or tag is there twice; name each once")


def _asked(
    parsed: HeadClassifyBody,
    max_texts: int,
    heads: Sequence[str] | None,
    tags: Sequence[str] | None,
    sticky_key: str,
    may_reuse: bool,
    *,
    is_strict: bool,
) -> Asked:
    if (parsed.text is None) == (parsed.texts is None):
        raise InvalidRequest("give either text or texts")
    texts = [parsed.text] if parsed.text is not None else parsed.texts or []
    if not texts:
        raise InvalidRequest("texts is empty")
    if len(texts) > max_texts:
        raise InvalidRequest(f"{len(texts)} texts are more than the {max_texts} of one request; send several")
    work = Classification(
        texts,
        heads,
        tags,
        parsed.scores,
        parsed.top_k,
        parsed.threshold,
        parsed.truncation,
        parsed.priority,
        sticky_key if parsed.sticky_key is None else parsed.sticky_key,
        may_reuse,
    )
    return Asked(work, None if parsed.timeout_ms is None else parsed.timeout_ms / 1000, is_strict)


def classify_answer(answer: Answer, notes: Sequence[Sequence[str]]) -> ClassifyAnswer:
    """*answer* as it travels; *notes* are those of each text."""
    trunk = TrunkBody(answer.trunk.name, answer.trunk.fingerprint)
    return ClassifyAnswer(result_bodies(answer, notes), trunk, _timings(answer.timings))


def result_bodies(answer: Answer, notes: Sequence[Sequence[str]]) -> list[ResultBody]:
    """Each text as it travels."""
    by_head = {word: _bodies(outcome, len(answer.texts)) for word, outcome in answer.outcomes.items()}
    return [
        ResultBody(
            {word: bodies[index] for word, bodies in by_head.items()}, text.num_tokens, text.truncated, text.cached, list(said)
        )
        for index, (text, said) in enumerate(zip(answer.texts, notes, strict=True))
    ]


def _bodies(outcome: HeadOutcome, num_texts: int) -> list[HeadBody]:
    if isinstance(outcome, list):
        return [_body(item) for item in outcome]
    return [HeadBody(error=ErrorInfo(outcome.code, outcome.message))] * num_texts


def _body(answer: HeadAnswer) -> HeadBody:
    if answer.value is not None:
        return HeadBody(version=answer.version, value=answer.value)
    return HeadBody(
        answer.label,
        answer.score,
        answer.score if answer.confidence is None else answer.confidence,
        answer.version,
        answer.labels,
        answer.path,
        None,
        answer.scores,
        answer.ancestors,
    )


def _timings(timings: StageTimings) -> TimingsBody:
    return TimingsBody(_ms(timings.preprocess), _ms(timings.embed), _ms(timings.heads), _ms(timings.total))


def server_timing(timings: TimingsBody) -> str:
    """The stages as a `Server-Timing` header tells them (W3C Server Timing): name and duration in milliseconds."""
    return (
        f"preprocess;dur={timings.preprocess_ms}, embed;dur={timings.embed_ms}, "
        f"heads;dur={timings.heads_ms}, total;dur={timings.total_ms}"
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def components_of(types: Sequence[type]) -> dict[str, Any]:
    """The schemas of *types* by name, for the API page."""
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return components


def openapi_parts() -> dict[str, Any]:
    """The schemas of this gateway's own shapes by name."""
    return components_of([ClassifyBody, HeadClassifyBody, ClassifyAnswer, StreamLine, StreamResult, StreamEnd, ErrorAnswer])
