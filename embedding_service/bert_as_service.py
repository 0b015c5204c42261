"""What bert-as-service 1.10.0 says, without how it travels; its own client can be pointed here unchanged.

Protocol facts, from its server and client:

- A request is four frames: who asks, the message, the request's number, the number of texts (decimal digits, the last two).
  The message is a control word, or JSON: a list of texts, or of lists of tokens, told apart by their types.
- Vectors are answered as four frames: who asked, JSON {"dtype", "shape", "tokens"}, the numbers row by row, the request's number.
  A document is answered as three: who asked, JSON, the request's number.
- There is no frame for an error. What the client always does is hand "dtype" to numpy, which refuses a text it does not
  know and quotes it; so an error travels there. A comma in it would make numpy say something else.
- "a ||| b" are two texts read together, and so are tokens with "|||" among them.
- Vectors are never normalised.
"""

import asyncio
import math
import platform
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final, Literal

import msgspec
import numpy as np

from clients.wire.decoding import NOT_DECODED
from clients.wire.text import TextEncoder, TextPair
from embedding_service.backend import FloatArray, Pooling
from embedding_service.errors import HTTP_STATUS, DeadlineExceeded, EmbedError, InvalidInput, Overloaded
from embedding_service.infer import EmbedAnswer, EmbedCall, HostedTrunk, Infer, ViewVectors
from embedding_service.tokenization import TokenIds, ViewChoice

PROTOCOL_VERSION: Final = "1.10.0"
"""The client refuses a server of any other version."""

SHOW_CONFIG: Final = b"SHOW_CONFIG"
SHOW_STATUS: Final = b"SHOW_STATUS"
TERMINATION: Final = b"TERMINATION"

MAX_TEXTS: Final = 16_384
"""Of one request."""

INTERACTIVE_TEXTS: Final = 16
"""Up to here a request goes before larger ones; upstream's priority_batch_size."""

_PART_TEXTS: Final = 256
"""Of one call to the trunk; upstream's max_batch_size. Larger parts would crowd others out of the queue."""

_LARGE_AT_ONCE: Final = 4
"""Requests of more than `INTERACTIVE_TEXTS` that run at the same time; each may hold as many bytes as its answer has."""

_PAIR: Final = "|||"
_MAX_IDENTITY_BYTES: Final = 256
_MAX_DIGITS: Final = 20
_MAX_ERROR_CHARACTERS: Final = 300

PoolingStrategy = Literal[
    "NONE", "REDUCE_MAX", "REDUCE_MEAN", "REDUCE_MEAN_MAX", "FIRST_TOKEN", "LAST_TOKEN", "CLS_TOKEN", "SEP_TOKEN"
]
_POOLINGS: Final[dict[PoolingStrategy, Pooling]] = {
    "NONE": "tokens",
    "REDUCE_MAX": "max",
    "REDUCE_MEAN": "mean",
    "REDUCE_MEAN_MAX": "mean_max",
    "FIRST_TOKEN": "cls",
    "LAST_TOKEN": "sep",
    "CLS_TOKEN": "cls",
    "SEP_TOKEN": "sep",
}
_STRATEGY_NUMBERS: Final[dict[Pooling, int]] = {"tokens": 0, "max": 1, "mean": 2, "mean_max": 3, "cls": 4, "sep": 5}
"""What the documents call them."""

Texts = list[str] | list[list[str]]
"""Texts, or for each text its tokens."""

Embed = Callable[[EmbedCall], Awaitable[EmbedAnswer]]
Frame = bytes | memoryview

_TEXTS: Final = msgspec.json.Decoder(list[str | list[str]])


class MalformedRequestError(Exception):
    """Frames that are no request, so that there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived: *identity* of whoever asks, *message*, and its *number* as decimal digits."""

    identity: bytes
    message: bytes
    number: bytes


def parse_request(frames: Sequence[bytes]) -> Request:
    """The request in *frames*. How many texts it announces is read and not used: they are counted instead.

    Raises:
        MalformedRequestError: they are not four frames, or not of this protocol.
    """
    if len(frames) != 4:
        raise MalformedRequestError("a request has four frames")
    identity, message, number, num_texts = frames
    if not 0 < len(identity) <= _MAX_IDENTITY_BYTES:
        raise MalformedRequestError(f"an identity has 1 to {_MAX_IDENTITY_BYTES} bytes")
    if not all(len(digits) <= _MAX_DIGITS and digits.isdigit() for digits in (number, num_texts)):
        raise MalformedRequestError(f"the last two frames are decimal numbers of at most {_MAX_DIGITS} digits")
    return Request(identity, message, number)


def parse_texts(message: bytes, *, max_bytes: int) -> Texts:
    """The texts in *message*.

    Raises:
        InvalidInput: it is longer than *max_bytes*, not JSON of the right types, or has no, empty or too many texts.
    """
    if len(message) > max_bytes:
        raise InvalidInput(f"the request is longer than {max_bytes} bytes; send fewer texts at once")
    try:
        found = _TEXTS.decode(message)
    except msgspec.ValidationError:
        raise InvalidInput("the message is not a list of texts or of lists of tokens") from None
    except NOT_DECODED:
        raise InvalidInput("the message is neither JSON in UTF-8 nor a control word") from None
    return checked_texts(found)


def checked_texts(found: Sequence[str | list[str]]) -> Texts:
    """*found* as texts or as tokens.

    Raises:
        InvalidInput: it mixes them, or there are none, too many, or an empty one.
    """
    if not 0 < len(found) <= MAX_TEXTS:
        raise InvalidInput(f"a request has 1 to {MAX_TEXTS} texts; this one has {len(found)}")
    texts = [text for text in found if isinstance(text, str)]
    tokenized = [text for text in found if not isinstance(text, str)]
    if texts and tokenized:
        raise InvalidInput("the request mixes texts with lists of tokens")
    for index, text in enumerate(found):
        if not text or (isinstance(text, str) and text.isspace()):
            raise InvalidInput(f"text {index} is empty")
    return texts or tokenized


def split_pair(text: str) -> str | TextPair:
    """*text*, or the two texts in it: what stands on either side of the last ` ||| `."""
    first, found, second = text.strip().rpartition(f" {_PAIR} ")
    return TextPair(first, second) if found else text


def encode_tokens(tokens: Sequence[str], encoder: TextEncoder) -> TokenIds:
    """*tokens* as they are, or the two texts on either side of the first `|||`, cut to what fits and special tokens put in place.

    Raises:
        InvalidInput: there are tokens the trunk does not know, and it has no word for those.
    """
    at = tokens.index(_PAIR) if _PAIR in tokens else len(tokens)
    first, second = tokens[:at], tokens[at + 1 :]
    kept = _kept(len(first), len(second), max(encoder.max_tokens - (encoder.num_special_of_pair if second else 2), 0))
    try:
        ids = [encoder.ids_of_tokens(part[:count]) for part, count in zip((first, second), kept, strict=True)]
    except ValueError as error:
        raise InvalidInput(f"{error}; send texts instead of tokens") from None
    begin, end = encoder.special_ids
    if not second:
        return TokenIds([begin, *ids[0], end])
    joined = encoder.joined(*ids)
    return TokenIds(joined.ids, joined.pair_at)


def _kept(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text are kept where *room* fit: the longer one gives up its own first, of equals the second."""
    kept = min(second, max(room // 2, room - first))
    return min(first, room - kept), kept


def joined(views: Sequence[ViewVectors]) -> FloatArray:
    """*views* of one request's parts: float32 [texts, width], or of tokens [texts, longest, width], zeros behind the shorter."""
    rows = np.concatenate([view.array for view in views])
    lengths = np.array([length for view in views for length in view.row_tokens], dtype=np.int64)
    if not lengths.size:
        return rows
    present = np.arange(lengths.max()) < lengths[:, None]
    grid = np.zeros((*present.shape, rows.shape[1]), dtype=np.float32)
    grid[present] = rows
    return grid


def vector_frames(request: Request, vectors: FloatArray, tokens: list[list[str]] | None) -> list[Frame]:
    """The answer to *request*, with its texts' *tokens* where they are shown. *vectors* is not to be changed any more."""
    facts = {"dtype": "float32", "shape": vectors.shape, "tokens": "" if tokens is None else tokens}
    numbers = np.ascontiguousarray(vectors, dtype=np.float32)
    return [request.identity, msgspec.json.encode(facts), numbers.data.cast("B"), request.number]


def error_frames(request: Request, error: EmbedError) -> list[Frame]:
    """*error* told in the one place where the client looks; see the module."""
    text = f"server error {HTTP_STATUS[type(error)]}: {error}"
    if error.retry_after is not None:
        text += f"; retry in {max(1, math.ceil(error.retry_after))} s"
    return _told(request, text)


def fault_frames(request: Request) -> list[Frame]:
    """The answer where we failed in a way we should not."""
    return _told(request, "server error 500: the embedding service failed in a way it should not")


def _told(request: Request, text: str) -> list[Frame]:
    facts = {"dtype": text.replace(",", ";")[:_MAX_ERROR_CHARACTERS], "shape": [0], "tokens": ""}
    return [request.identity, msgspec.json.encode(facts), b"", request.number]


def document_frames(request: Request, document: dict[str, Any]) -> list[Frame]:
    """The answer to a control word."""
    return [request.identity, msgspec.json.encode(document), request.number]


class Statistics:
    """What was asked so far; clients by when they last asked, of which only the latest are remembered."""

    _MAX_CLIENTS: Final = 4_096
    _ACTIVE_SECONDS: Final = 180.0

    def __init__(self) -> None:
        self.num_documents = 0
        self.num_requests = 0
        self.num_texts = 0
        self._clients: OrderedDict[bytes, float] = OrderedDict()

    def asked(self, identity: bytes, *, num_texts: int = 0) -> None:
        """*identity* asked for vectors of *num_texts*, or for a document."""
        if num_texts:
            self.num_requests += 1
            self.num_texts += num_texts
        else:
            self.num_documents += 1
        self._clients[identity] = time.monotonic()
        self._clients.move_to_end(identity)
        if len(self._clients) > self._MAX_CLIENTS:
            self._clients.popitem(last=False)

    def document(self) -> dict[str, int]:
        """By the names the protocol has for them."""
        since = time.monotonic() - self._ACTIVE_SECONDS
        return {
            "num_data_request": self.num_requests,
            "num_total_seq": self.num_texts,
            "num_sys_request": self.num_documents,
            "num_total_request": self.num_requests + self.num_documents,
            "num_total_client": len(self._clients),
            "num_active_client": sum(seen > since for seen in self._clients.values()),
        }


class BertAsService:
    """What both transports share, over the default trunk; *pooling* None is the trunk's own habit."""

    def __init__(
        self, infer: Infer, *, pooling: PoolingStrategy | None = None, show_tokens: bool = False, default_timeout: float = 30.0
    ) -> None:
        self.statistics = Statistics()
        self.show_tokens = show_tokens
        self.default_timeout = default_timeout
        self._infer = infer
        self._view = ViewChoice(_POOLINGS[pooling] if pooling else None, normalize=False)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._started = datetime.now(UTC)

    async def encode(self, texts: Texts, embed: Embed, *, max_bytes: int) -> FloatArray:
        """The vectors of *texts*, in their order; *embed* is `Infer.embed` or stands before it. See `joined` for shapes.

        Raises:
            EmbedError: see `Infer.embed`. InvalidInput also where the vectors would have more than *max_bytes*.
        """
        deadline = time.monotonic() + self.default_timeout
        if len(texts) <= INTERACTIVE_TEXTS:
            return await self._encode(texts, embed, deadline, max_bytes)
        async with self._turn(deadline):
            return await self._encode(texts, embed, deadline, max_bytes)

    async def tokens(self, texts: Texts) -> list[list[str]]:
        """The tokens the trunk reads of each of *texts*, special ones included.

        Raises:
            Overloaded: too many long texts wait to be read.
            DeadlineExceeded: they were not read in time.
        """
        encoder = self._trunk.encoder

        def read() -> list[list[str]]:
            return [encoder.tokens_of_ids(_ids(_input(text, encoder), encoder)) for text in texts]

        num_characters = sum(len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts)
        return await self._trunk.tokenizer.on_a_thread(read, num_characters, time.monotonic() + self.default_timeout)

    def config(self) -> dict[str, Any]:
        """What `SHOW_CONFIG` answers, by the protocol's names."""
        spec, engine = self._trunk.spec, self._trunk.engine
        habit = spec.default_view
        return {
            "server_version": PROTOCOL_VERSION,
            "max_seq_len": spec.max_tokens,
            "show_tokens_to_client": self.show_tokens,
            "pooling_strategy": _STRATEGY_NUMBERS[self._view.pooling or habit.pooling],
            "pooling_layer": [habit.layer],
            "mask_cls_sep": False,
            "max_batch_size": self._part_texts,
            "priority_batch_size": INTERACTIVE_TEXTS,
            "model_dir": spec.name,
            "num_worker": engine.concurrency,
            "python_version": platform.python_version(),
            "server_start_time": self._started.isoformat(),
            "server_current_time": datetime.now(UTC).isoformat(),
            "trunkline_version": version("trunkline"),
        }

    def status(self) -> dict[str, Any]:
        """What `SHOW_STATUS` answers: the config, and what was asked so far."""
        return {**self.config(), "statistic": self.statistics.document()}

    @property
    def _trunk(self) -> HostedTrunk:
        return self._infer.trunk("")

    @property
    def _part_texts(self) -> int:
        return min(_PART_TEXTS, self._infer.limits.max_request_inputs)

    @asynccontextmanager
    async def _turn(self, deadline: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._large.acquire()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while larger requests were served") from None
        try:
            yield
        finally:
            self._large.release()

    async def _encode(self, texts: Texts, embed: Embed, deadline: float, max_bytes: int) -> FloatArray:
        encoder, views = self._trunk.encoder, []
        for start in range(0, len(texts), self._part_texts):
            part = [_input(text, encoder) for text in texts[start : start + self._part_texts]]
            call = EmbedCall(part, deadline, views=[self._view], is_bulk=len(texts) > INTERACTIVE_TEXTS)
            answer = await (_embed_patiently(call, embed) if start else embed(call))
            views.append(answer.views[0])
            _check_bytes(views[-1], len(texts), max_bytes)
        return await asyncio.to_thread(joined, views) if len(views) > 1 else joined(views)


async def _embed_patiently(call: EmbedCall, embed: Embed) -> EmbedAnswer:
    """A request that has begun waits for room in the queue, as long as its deadline allows: work done is not thrown away."""
    while True:
        try:
            return await embed(call)
        except Overloaded as error:
            wait = error.retry_after or 1.0
            if time.monotonic() + wait >= call.deadline:
                raise
            await asyncio.sleep(wait)


def _input(text: str | list[str], encoder: TextEncoder) -> str | TextPair | TokenIds:
    return split_pair(text) if isinstance(text, str) else encode_tokens(text, encoder)


def _ids(given: str | TextPair | TokenIds, encoder: TextEncoder) -> Sequence[int]:
    if isinstance(given, TextPair):
        return encoder.encode_pair(given).ids
    return encoder.encode([given])[0].ids if isinstance(given, str) else given.ids


def _check_bytes(view: ViewVectors, num_texts: int, max_bytes: int) -> None:
    """Refuse early what would be too long for one answer, judged by the longest text so far."""
    num_bytes = num_texts * max(view.row_tokens, default=1) * view.array.shape[1] * view.array.itemsize
    if num_bytes > max_bytes:
        raise InvalidInput(f"the vectors would take more than {max_bytes} bytes; send fewer texts at once")
