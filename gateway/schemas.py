"""What travels over HTTP, as msgspec types: requests are checked by them, answers and the API page made of them."""

from typing import Annotated, Any, Final

import msgspec

from clients import InvalidRequest
from gateway.classification import Answer, Classification, HeadAnswer, HeadOutcome, StageTimings

Text = Annotated[str, msgspec.Meta(description="One raw text.")]
TimeoutMs = Annotated[int, msgspec.Meta(ge=1, le=600_000, description="The caller's patience; wins over x-request-timeout-ms.")]


class ClassifyBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/classify`: `text` or `texts`; everything else is optional."""

    text: Text | None = None
    texts: list[str] | None = None
    heads: list[str] | None = None
    scores: bool = False
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    timeout_ms: TimeoutMs | None = None


class ErrorInfo(msgspec.Struct):
    """Why one head has no answer."""

    code: str
    message: str


class HeadBody(msgspec.Struct, omit_defaults=True):
    """One head on one text: a label and its score, or an error."""

    label: str | None = None
    score: float | None = None
    version: int | None = None
    labels: list[str] | None = None
    scores: dict[str, float] | None = None
    error: ErrorInfo | None = None


class ResultBody(msgspec.Struct):
    """One text."""

    heads: dict[str, HeadBody]
    num_tokens: int
    truncated: bool
    cached: bool


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
    """The body of every answer of 400 and above."""

    error: ErrorDetail


_decoder: Final = msgspec.json.Decoder(ClassifyBody)


def parse_classify(body: bytes, max_texts: int) -> tuple[Classification, float | None]:
    """The request in *body*, and its timeout in seconds where it names one.

    Raises:
        InvalidRequest: it is not JSON, or not of the right shape; the message never echoes a text.
    """
    try:
        parsed = _decoder.decode(body)
    # msgspec bounds its recursion, also where it skips.
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body has the wrong shape: {_safe(str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not valid JSON in UTF-8") from None
    if (parsed.text is None) == (parsed.texts is None):
        raise InvalidRequest("give either text or texts")
    texts = [parsed.text] if parsed.text is not None else parsed.texts or []
    if not texts:
        raise InvalidRequest("texts is empty")
    if len(texts) > max_texts:
        raise InvalidRequest(f"{len(texts)} texts are more than the {max_texts} of one request; send several")
    timeout = None if parsed.timeout_ms is None else parsed.timeout_ms / 1000
    return Classification(texts, parsed.heads, with_scores=parsed.scores, top_k=parsed.top_k), timeout


def _safe(message: str) -> str:
    """Msgspec's message tells types and places; an unknown field's name, which is the caller's, is left out."""
    return "it has an unknown field" if "unknown field" in message else message[:200]


def classify_answer(answer: Answer) -> ClassifyAnswer:
    """*answer* as it travels."""
    trunk = TrunkBody(answer.trunk.name, answer.trunk.fingerprint)
    by_head = {word: _bodies(outcome, len(answer.texts)) for word, outcome in answer.outcomes.items()}
    results = [
        ResultBody({word: bodies[index] for word, bodies in by_head.items()}, text.num_tokens, text.truncated, text.cached)
        for index, text in enumerate(answer.texts)
    ]
    return ClassifyAnswer(results, trunk, _timings(answer.timings))


def _bodies(outcome: HeadOutcome, num_texts: int) -> list[HeadBody]:
    if isinstance(outcome, list):
        return [_body(item) for item in outcome]
    return [HeadBody(error=ErrorInfo(outcome.code, outcome.message))] * num_texts


def _body(answer: HeadAnswer) -> HeadBody:
    return HeadBody(answer.label, answer.score, answer.version, answer.labels, answer.scores)


def _timings(timings: StageTimings) -> TimingsBody:
    def ms(seconds: float) -> float:
        return round(seconds * 1000, 3)

    return TimingsBody(ms(timings.preprocess), ms(timings.embed), ms(timings.heads), ms(timings.total))


def openapi_parts() -> dict[str, Any]:
    """The schemas by name, for the API page."""
    _, components = msgspec.json.schema_components(
        [ClassifyBody, ClassifyAnswer, ErrorAnswer], ref_template="#/components/schemas/{name}"
    )
    return components
