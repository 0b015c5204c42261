"""The words of the gateway, to JSON and back. Pure: nothing here waits or remembers."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict, TypeVar, get_type_hints

import httpx
import msgspec

from clients._deadline import retry_after_seconds
from clients._errors import (
    DeadlineExceeded,
    InvalidRequest,
    InvalidResponse,
    TrunklineError,
    Unavailable,
    error_for_http,
)
from clients.wire.decoding import NOT_DECODED
from clients.wire.metadata import REQUEST_ID, REQUEST_TIMEOUT_MS, RETRY_AFTER, RETRY_AFTER_MS

_T = TypeVar("_T")

MAX_TIMEOUT_SECONDS: Final = 999_999.0
"""The longest patience that the gateway reads: eleven days. It has a bound of its own, far below."""

HTTPX_ERRORS: Final[Mapping[type[Exception], type[TrunklineError]]] = {
    httpx.ConnectTimeout: DeadlineExceeded,
    httpx.ReadTimeout: DeadlineExceeded,
    httpx.WriteTimeout: DeadlineExceeded,
    httpx.PoolTimeout: DeadlineExceeded,
    httpx.ConnectError: Unavailable,
    httpx.ReadError: Unavailable,
    httpx.WriteError: Unavailable,
    httpx.CloseError: Unavailable,
    httpx.ProxyError: Unavailable,
    # A gateway killed during the call shows as one of these: it hung up before its answer was complete.
    httpx.RemoteProtocolError: Unavailable,
    httpx.LocalProtocolError: InvalidRequest,
    httpx.UnsupportedProtocol: InvalidRequest,
    httpx.InvalidURL: InvalidRequest,
    httpx.DecodingError: InvalidResponse,
    httpx.TooManyRedirects: InvalidResponse,
    httpx.HTTPStatusError: InvalidResponse,
    # What these stand for is above; they are here for subclasses httpx may grow.
    httpx.TimeoutException: DeadlineExceeded,
    httpx.NetworkError: Unavailable,
    httpx.ProtocolError: Unavailable,
    httpx.TransportError: Unavailable,
    httpx.RequestError: Unavailable,
    httpx.HTTPError: Unavailable,
}


@dataclass(frozen=True, slots=True)
class HeadResult:
    """One head's answer for one text; *scores* by label where they were asked for.

    *label* is None where no label reaches its threshold. *labels* are all that do, of a head that gives several. A regression has
    a *value* and neither label nor score. *path* is a hierarchical label from the top down; *ancestors* score what is above it.
    """

    label: str | None
    score: float | None
    version: int | None
    scores: dict[str, float] | None = None
    confidence: float | None = None
    labels: list[str] | None = None
    value: float | None = None
    path: list[str] | None = None
    ancestors: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class HeadError:
    """Why one head has no answer, while others may. *code* is a `TrunklineError.code`."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """One text's answers by head; *num_tokens* as they went through the trunk, *truncated* where it had more.

    *cached*: nothing was computed for it. *notes* tell what normalising changed.
    """

    heads: dict[str, HeadResult | HeadError]
    num_tokens: int
    truncated: bool
    cached: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextError:
    """Why one text of a stream has no answer, while others do. *code* is a `TrunklineError.code`."""

    code: str
    message: str


class StreamOptions(TypedDict, total=False):
    """What is asked of each text. What is left out, or None, is the gateway's default.

    heads: by NAME, NAME@VERSION, NAME@stable or NAME@canary. tags: all heads that have one of them.
    scores: every label's score. top_k: the best labels' scores. threshold: labels that score less, 0 to 1, are not answered.
    truncation: of a text that is too long the end (right) or the beginning (left) is dropped, or it is an error, or all of it is
    read (window). sticky_key: callers with the same one get the same side of a canary.
    """

    heads: Sequence[str] | None
    tags: Sequence[str] | None
    scores: bool | None
    top_k: int | None
    threshold: float | None
    truncation: Literal["right", "left", "error", "window"] | None
    sticky_key: str | None


class ClassifyOptions(StreamOptions, total=False):
    """What is asked of a request, beside the options of a stream.

    priority: bulk lets interactive requests go first. strict: a head that fails, fails the request. reuse: False for answers that
    are computed anew.
    """

    priority: Literal["interactive", "bulk"] | None
    strict: bool | None
    reuse: bool | None


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""
    request_id: str = ""


class _Head(msgspec.Struct):
    label: str | None = None
    score: float | None = None
    version: int | None = None
    scores: dict[str, float] | None = None
    confidence: float | None = None
    labels: list[str] | None = None
    value: float | None = None
    path: list[str] | None = None
    ancestors: dict[str, float] | None = None
    error: _Error | None = None


class _Result(msgspec.Struct):
    heads: dict[str, _Head]
    num_tokens: int
    truncated: bool
    cached: bool = False
    notes: tuple[str, ...] = ()


class _StreamLine(msgspec.Struct):
    index: int = -1
    heads: dict[str, _Head] | None = None
    num_tokens: int = 0
    truncated: bool = False
    cached: bool = False
    notes: tuple[str, ...] = ()
    error: _Error | None = None
    done: bool | None = None


class _Results(msgspec.Struct):
    results: list[_Result]


class _Heads(msgspec.Struct):
    heads: list[dict[str, Any]]


class _Failure(msgspec.Struct):
    error: _Error


_stream_line: Final = msgspec.json.Decoder(_StreamLine)


def build_classify(text: str | Sequence[str], options: ClassifyOptions) -> bytes:
    """The JSON body that asks for *text* to be classified, or InvalidRequest where it cannot be written."""
    given = {name: value for name, value in said(options, ClassifyOptions).items() if name != "reuse"}
    return _encoded({"texts": [text] if isinstance(text, str) else list(text), **given})


def said(options: Mapping[str, object], kind: type) -> dict[str, object]:
    """Those of *options* that say something; TypeError where one is none of *kind*'s."""
    unknown = options.keys() - get_type_hints(kind).keys()
    if unknown:
        raise TypeError(f"unexpected options: {', '.join(sorted(unknown))}")
    lists = {
        name: value if isinstance(value, str) else list(value) for name, value in options.items() if isinstance(value, Iterable)
    }
    return {name: value for name, value in {**options, **lists}.items() if value is not None}


def _encoded(body: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        raise InvalidRequest("a text or a head's name is not valid Unicode") from None
    except TypeError:
        raise InvalidRequest("texts and heads are lists of strings") from None


class Unanswered:
    """The lines of a stream that were not answered yet, the first of them being line *first* of all. Owner of what waits.

    The gateway reads a window of them before it needs its answers to be read, so that they can be sent first and read then.
    """

    MAX_LINES = 256
    MAX_BYTES = 1024 * 1024

    def __init__(self, options: StreamOptions) -> None:
        self._options = said(options, StreamOptions)
        self._lines: deque[bytes] = deque()
        self._num_bytes = 0
        self._begun = b""
        self._unwritable: dict[int, TextError] = {}
        """By their lines: texts that are no Unicode. In their places empty ones are sent, whose answers are these."""
        self.first = 0

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def is_full(self) -> bool:
        """Whether there is a window's worth."""
        return len(self._lines) >= self.MAX_LINES or self._num_bytes >= self.MAX_BYTES

    def add(self, text: str) -> None:
        """One text more.

        Raises:
            InvalidRequest: the options cannot be written.
        """
        try:
            line = _encoded({"text": text, **self._options}) + b"\n"
        except InvalidRequest as error:
            line = _encoded({"text": "", **self._options}) + b"\n"
            self._unwritable[self.first + len(self._lines)] = TextError(error.code, error.message)
        self._lines.append(line)
        self._num_bytes += len(line)

    def body(self) -> bytes:
        """What is to be sent, now or again, to `path`."""
        self._begun = b""
        return b"".join(self._lines)

    @property
    def path(self) -> str:
        """Where to."""
        return f"/v1/classify/stream?start={self.first}"

    def settle(self, content: bytes) -> Iterator[list[Result | TextError]]:
        """What the next bytes of the answer say, in order; what stands before the line that is an error is given, too.

        Raises:
            InvalidResponse: they are not the contract.
            Unavailable: the gateway ended the stream before its end.
        """
        *lines, self._begun = (self._begun + content).split(b"\n")
        found: list[Result | TextError] = []
        try:
            for line in lines:
                one = self._settled(line)
                if one is not None:
                    found.append(one)
        finally:
            # Nothing found is no success: who only ever hears that the gateway stops must come to an end.
            if found:
                yield found

    def _settled(self, content: bytes) -> Result | TextError | None:
        try:
            line = _stream_line.decode(content)
        except NOT_DECODED as error:
            raise InvalidResponse(f"the gateway's answer is not what was asked for: {error}") from None
        if line.done is not None:
            if not line.done or self._lines:
                raise Unavailable(line.error.message if line.error else "the gateway ended the stream early")
            return None
        if line.index != self.first or not self._lines or (line.heads is None) == (line.error is None):
            raise InvalidResponse("the gateway answered another line than the next one")
        unwritable = self._unwritable.pop(self.first, None)
        self.first += 1
        self._num_bytes -= len(self._lines.popleft())
        if unwritable is not None:
            return unwritable
        if line.error is not None:
            return TextError(line.error.code, line.error.message)
        heads = {name: _head(head) for name, head in (line.heads or {}).items()}
        return Result(heads, line.num_tokens, line.truncated, line.cached, line.notes)


def patience_of(timeout: float | None, default: float) -> float:
    """Seconds that a caller waits: *timeout*, None: the *default*. `math.inf`, which no socket takes, is the longest there is."""
    return min(default if timeout is None else timeout, MAX_TIMEOUT_SECONDS)


def request_headers(timeout: float, *, reuse: bool | None = None) -> dict[str, str]:
    """The headers of a request whose caller waits *timeout* seconds and not longer, and takes what was answered before or not.

    Raises:
        DeadlineExceeded: that is no time at all.
    """
    if timeout <= 0:
        raise DeadlineExceeded("the timeout was spent before the call")
    headers = {"content-type": "application/json", REQUEST_TIMEOUT_MS: str(max(1, round(timeout * 1000)))}
    return headers if reuse in {None, True} else {**headers, "cache-control": "no-store"}


def parse_classify(response: httpx.Response, num_texts: int) -> list[Result]:
    """One result a text, in their order.

    Raises:
        InvalidResponse: the answer is not that.
        TrunklineError: the answer is an error.
    """
    results = _decode(response, _Results).results
    if len(results) != num_texts:
        raise InvalidResponse(f"asked for {num_texts} texts, the gateway answered {len(results)}")
    return [_result(one) for one in results]


def _result(one: _Result) -> Result:
    heads = {name: _head(head) for name, head in one.heads.items()}
    return Result(heads, one.num_tokens, one.truncated, one.cached, one.notes)


def _head(head: _Head) -> HeadResult | HeadError:
    if head.error is not None:
        return HeadError(head.error.code, head.error.message)
    return HeadResult(
        head.label,
        head.score,
        head.version,
        head.scores,
        head.confidence,
        head.labels,
        head.value,
        head.path,
        head.ancestors,
    )


def parse_heads(response: httpx.Response) -> list[dict[str, Any]]:
    """The live heads as the gateway describes them; the errors are those of `parse_classify`."""
    return _decode(response, _Heads).heads


def parse_ready(response: httpx.Response) -> bool:
    """Whether the gateway says that it can serve."""
    return response.status_code == httpx.codes.OK


def _decode(response: httpx.Response, kind: type[_T]) -> _T:
    if response.status_code != httpx.codes.OK:
        raise error_for_response(response)
    try:
        return msgspec.json.decode(response.content, type=kind)
    except NOT_DECODED as error:
        raise InvalidResponse(f"the gateway's answer is not what was asked for: {error}") from None


def error_for_response(response: httpx.Response) -> TrunklineError:
    """The error of our tree for an answer that is not a success."""
    status = response.status_code
    try:
        told = msgspec.json.decode(response.content, type=_Failure).error
    except NOT_DECODED:
        told = _Error()
    kind = error_for_http(status) if status >= 400 else InvalidResponse
    return kind(
        told.message or f"the gateway answered {status}",
        retry_after=retry_after_seconds(response.headers.get(RETRY_AFTER_MS), response.headers.get(RETRY_AFTER)),
        request_id=told.request_id or response.headers.get(REQUEST_ID, ""),
    )


def error_for_httpx(error: Exception) -> TrunklineError:
    """The error of our tree for what httpx raised; the most specific entry of the table wins."""
    kind = next(HTTPX_ERRORS[base] for base in type(error).__mro__ if base in HTTPX_ERRORS)
    return kind(str(error) or type(error).__name__)
