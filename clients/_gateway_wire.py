"""The words of the gateway, to JSON and back. Pure: nothing here waits or remembers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

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
from clients.wire.metadata import REQUEST_ID, REQUEST_TIMEOUT_MS, RETRY_AFTER, RETRY_AFTER_MS

_T = TypeVar("_T")

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
    """One head's answer for one text; *scores* by label where they were asked for."""

    label: str | None
    score: float | None
    version: int | None
    scores: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class HeadError:
    """Why one head has no answer, while others may. *code* is a `TrunklineError.code`."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """One text's answers by head; *num_tokens* as they went through the trunk, *truncated* where it had more."""

    heads: dict[str, HeadResult | HeadError]
    num_tokens: int
    truncated: bool
    cached: bool


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""
    request_id: str = ""


class _Head(msgspec.Struct):
    label: str | None = None
    score: float | None = None
    version: int | None = None
    scores: dict[str, float] | None = None
    error: _Error | None = None


class _Result(msgspec.Struct):
    heads: dict[str, _Head]
    num_tokens: int
    truncated: bool
    cached: bool = False


class _Results(msgspec.Struct):
    results: list[_Result]


class _Heads(msgspec.Struct):
    heads: list[dict[str, Any]]


class _Failure(msgspec.Struct):
    error: _Error


def build_classify(text: str | Sequence[str], heads: Sequence[str] | None) -> bytes:
    """The JSON body that asks for *text* to be classified, or InvalidRequest where it cannot be written."""
    body: dict[str, object] = {"texts": [text] if isinstance(text, str) else list(text)}
    if heads is not None:
        body["heads"] = list(heads)
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        raise InvalidRequest("a text or a head's name is not valid Unicode") from None
    except TypeError:
        raise InvalidRequest("texts and heads are lists of strings") from None


def request_headers(timeout: float) -> dict[str, str]:
    """The headers of a request whose caller waits *timeout* seconds and not longer.

    Raises:
        DeadlineExceeded: that is no time at all.
    """
    if timeout <= 0:
        raise DeadlineExceeded("the timeout was spent before the call")
    return {"content-type": "application/json", REQUEST_TIMEOUT_MS: str(max(1, round(timeout * 1000)))}


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
    return Result(heads, one.num_tokens, one.truncated, one.cached)


def _head(head: _Head) -> HeadResult | HeadError:
    if head.error is not None:
        return HeadError(head.error.code, head.error.message)
    return HeadResult(head.label, head.score, head.version, head.scores)


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
    except msgspec.DecodeError as error:
        raise InvalidResponse(f"the gateway's answer is not what was asked for: {error}") from None


def error_for_response(response: httpx.Response) -> TrunklineError:
    """The error of our tree for an answer that is not a success."""
    status = response.status_code
    try:
        told = msgspec.json.decode(response.content, type=_Failure).error
    except msgspec.DecodeError:
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
