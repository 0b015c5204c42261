"""The words of the embedding service, to bytes and back. Pure: nothing here waits or remembers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from clients._errors import (
    GRPC_ERRORS,
    FailedPrecondition,
    InvalidRequest,
    InvalidResponse,
    ServerFault,
    TrunklineError,
)
from clients.wire import embedding_pb2 as pb
from clients.wire.text import TextPair


@dataclass(frozen=True, slots=True)
class TableKey:
    """A key of a resource table, to be found exactly as it is."""

    key: str


Input = str | TextPair | TableKey | Sequence[int]
"""A text, two texts to be read together, a key of a table, or token ids with their special tokens."""

FloatArray = NDArray[np.floating[Any]]
"""float32 or float16."""
Truncation = Literal["right", "left", "error", "window"]
Priority = Literal["interactive", "bulk"]
DTypeName = Literal["float32", "float16"]

POOLINGS: Final["Mapping[str, pb.Pooling.ValueType]"] = {
    "mean": pb.POOLING_MEAN,
    "cls": pb.POOLING_CLS,
    "max": pb.POOLING_MAX,
    "mean_max": pb.POOLING_MEAN_MAX,
    "sep": pb.POOLING_SEP,
    "tokens": pb.POOLING_TOKENS,
}
TRUNCATIONS: Final["Mapping[str, pb.Truncation.ValueType]"] = {
    "right": pb.TRUNCATION_RIGHT,
    "left": pb.TRUNCATION_LEFT,
    "error": pb.TRUNCATION_ERROR,
    "window": pb.TRUNCATION_WINDOW,
}
PRIORITIES: Final["Mapping[str, pb.Priority.ValueType]"] = {
    "interactive": pb.PRIORITY_INTERACTIVE,
    "bulk": pb.PRIORITY_BULK,
}
DTYPES: Final["Mapping[str, pb.DType.ValueType]"] = {"float32": pb.DTYPE_FLOAT32, "float16": pb.DTYPE_FLOAT16}
_NUMPY: Final["Mapping[pb.DType.ValueType, np.dtype[np.floating[Any]]]"] = {
    pb.DTYPE_UNSPECIFIED: np.dtype("<f4"),
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_FLOAT16: np.dtype("<f2"),
}
_POOLING_NAMES: Final = {number: name for name, number in POOLINGS.items()}


@dataclass(frozen=True, slots=True)
class View:
    """One way of reading a forward pass; a field left out is the trunk's own habit (*dims* 0: all of them)."""

    pooling: str | None = None
    layer: int | None = None
    normalize: bool | None = None
    dims: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ViewArray:
    """One view of all inputs.

    Pooled: *array* is [inputs, width'] and *row_tokens* empty. Tokens: *array* is [sum of row_tokens, width'] and input
    i owns the next row_tokens[i] rows. float32 or float16; read-only where it lies in the answer's own bytes.
    """

    array: FloatArray
    row_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Durations:
    """Where the service spent its time, in seconds; queue and inference of the input that waited, or ran, longest."""

    tokenization: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """What one call answers: one array a view, and one entry an input in each of the other tuples.

    *num_windows* is 1 unless truncation "window" met a long text. *missing* are the keys or words a table does not have.
    """

    trunk: str
    trunk_fingerprint: str
    views: tuple[ViewArray, ...]
    num_tokens: tuple[int, ...]
    truncated: tuple[bool, ...]
    cached: tuple[bool, ...]
    durations: Durations
    num_windows: tuple[int, ...] = ()
    missing: tuple[tuple[str, ...], ...] = ()

    @property
    def vectors(self) -> FloatArray:
        """The first view's array."""
        return self.views[0].array


@dataclass(frozen=True, slots=True)
class Trunk:
    """Everything needed to make token ids for a trunk and to recognise its vectors; see embedding.proto.

    A table (*is_table*) has *num_keys*, and no tokens, layers, prompt or engine.
    """

    name: str
    fingerprint: str
    width: int
    num_layers: int
    vocab_size: int
    max_tokens: int
    default_view: View
    layers: tuple[int, ...]
    normalizer: str
    prompt: str
    engine: str
    agreement: float
    max_request_inputs: int
    tokenizer_json: bytes
    is_table: bool = False
    num_keys: int = 0
    prompts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """What is asked of every input of a request or stream; see `AsyncEmbeddingClient.embed`."""

    trunk: str = ""
    views: Sequence[View] = ()
    truncation: Truncation = "right"
    priority: Priority = "interactive"
    dtype: DTypeName = "float32"
    trunk_fingerprint: str = ""
    prompt_name: str = ""


def build_embed(inputs: Sequence[Input], options: EmbedOptions) -> bytes:
    """A serialised EmbedRequest, or InvalidRequest where the arguments cannot be one."""
    request = embed_request(options)
    _add_inputs(request, inputs)
    return request.SerializeToString()


def embed_request(options: EmbedOptions) -> pb.EmbedRequest:
    """An EmbedRequest without inputs, or InvalidRequest where *options* cannot be one."""
    try:
        return pb.EmbedRequest(
            trunk=options.trunk,
            views=[_view_message(view) for view in options.views],
            truncation=TRUNCATIONS[options.truncation],
            priority=PRIORITIES[options.priority],
            dtype=DTYPES[options.dtype],
            trunk_fingerprint=options.trunk_fingerprint,
            prompt_name=options.prompt_name,
        )
    except KeyError as error:
        raise InvalidRequest(f"{error} is not a pooling, truncation, priority or dtype") from None
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"a view or name is not of its type: {error}") from None


def _add_inputs(request: pb.EmbedRequest, inputs: Sequence[Input]) -> None:
    if isinstance(inputs, str):
        raise InvalidRequest("inputs is a list: give one text as [text]")
    add = request.inputs.add
    for index, value in enumerate(inputs):
        try:
            if isinstance(value, str):
                add(text=value)
            elif isinstance(value, TextPair):
                add(pair=pb.TextPair(first=value.first, second=value.second))
            elif isinstance(value, TableKey):
                add(key=value.key)
            else:
                add(tokens=pb.TokenIds(ids=list(value)))
        except (TypeError, ValueError, OverflowError):
            raise InvalidRequest(
                f"input {index} is neither valid Unicode text, a pair of such, a key nor a list of token ids"
            ) from None


def build_input(value: Input) -> pb.Input:
    """*value* as a message, or InvalidRequest where it cannot be one."""
    request = pb.EmbedRequest()
    _add_inputs(request, [value])
    return request.inputs[0]


def build_stream_message(
    template: pb.EmbedRequest, first: int, inputs: Sequence[pb.Input], timeouts: Sequence[float], abandoned: Sequence[int]
) -> bytes:
    """A serialised EmbedStreamRequest that starts *inputs*, numbered from *first*, each with its timeout in seconds."""
    message = pb.EmbedStreamRequest(abandoned=abandoned)
    if inputs:
        message.request.CopyFrom(template)
        message.request.inputs.extend(inputs)
        message.first_number = first
        message.timeouts_ms.extend([min(max(1, math.ceil(timeout * 1000)), 2**32 - 1) for timeout in timeouts])
    return message.SerializeToString()


@dataclass(frozen=True, slots=True, eq=False)
class StreamPart:
    """One EmbedStreamResponse: *vectors[i]* are those of input *numbers[i]*, one array a view."""

    numbers: Sequence[int]
    vectors: list[tuple[FloatArray, ...]]
    failures: Sequence[tuple[Sequence[int], TrunklineError]]


def parse_stream_message(data: bytes, options: EmbedOptions) -> StreamPart:
    """An EmbedStreamResponse to inputs asked for with *options*, or InvalidResponse where it is not one."""
    try:
        message = pb.EmbedStreamResponse.FromString(data)
    except DecodeError:
        raise InvalidResponse("the embedding service's answer is not an EmbedStreamResponse") from None
    failures = [(failure.numbers, _failure(failure)) for failure in message.failures]
    if not message.numbers:
        return StreamPart((), [], failures)
    answer = read_embed(message.response, len(message.numbers), options.views, options.dtype)
    return StreamPart(message.numbers, list(zip(*map(_rows, answer.views), strict=True)), failures)


def _rows(view: ViewArray) -> Sequence[FloatArray]:
    if not view.row_tokens:
        return list(view.array)
    return np.split(view.array, np.cumsum(view.row_tokens)[:-1])


def _failure(failure: pb.EmbedFailure) -> TrunklineError:
    kind = GRPC_ERRORS.get(_STATUS_CODES.get(failure.code, grpc.StatusCode.UNKNOWN), ServerFault)
    retry_after = failure.retry_after_ms / 1000 if failure.HasField("retry_after_ms") else None
    return kind(failure.message or "the embedding service refused an input", retry_after=retry_after)


_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def build_trunk(name: str, with_tokenizer: bool) -> bytes:
    """A serialised GetTrunkRequest."""
    try:
        return pb.GetTrunkRequest(trunk=name, with_tokenizer=with_tokenizer).SerializeToString()
    except (TypeError, ValueError):
        raise InvalidRequest("a trunk's name is valid Unicode text") from None


def _view_message(view: View) -> pb.View:
    pooling = pb.POOLING_UNSPECIFIED if view.pooling is None else POOLINGS[view.pooling]
    return pb.View(pooling=pooling, layer=view.layer, normalize=view.normalize, dims=view.dims)


def parse_embed(data: bytes, num_inputs: int, views: Sequence[View], dtype: DTypeName) -> Embeddings:
    """The answer to a request of *num_inputs* and *views*, or InvalidResponse where it is not one."""
    try:
        response = pb.EmbedResponse.FromString(data)
    except DecodeError:
        raise InvalidResponse("the embedding service's answer is not an EmbedResponse") from None
    return read_embed(response, num_inputs, views, dtype)


def read_embed(response: pb.EmbedResponse, num_inputs: int, views: Sequence[View], dtype: DTypeName) -> Embeddings:
    """*response* checked against what was asked, or InvalidResponse."""
    asked = views or (View(),)
    if len(response.views) != len(asked) or len(response.inputs) != num_inputs:
        raise InvalidResponse(
            f"asked for {num_inputs} inputs and {len(asked)} views,"
            f" the embedding service answered {len(response.inputs)} and {len(response.views)}"
        )
    spent = response.durations
    rows = response.inputs
    return Embeddings(
        trunk=response.trunk,
        trunk_fingerprint=response.trunk_fingerprint,
        views=tuple(_view_array(result, view, num_inputs, dtype) for result, view in zip(response.views, asked, strict=True)),
        num_tokens=tuple([row.num_tokens for row in rows]),
        truncated=tuple([row.truncated for row in rows]),
        cached=tuple([row.cached for row in rows]),
        num_windows=tuple([row.num_windows for row in rows]),
        missing=tuple([tuple(row.missing) for row in rows]),
        durations=Durations(spent.tokenization_ns / 1e9, spent.queue_ns / 1e9, spent.inference_ns / 1e9, spent.total_ns / 1e9),
    )


def _view_array(result: pb.ViewResult, view: View, num_inputs: int, dtype: DTypeName) -> ViewArray:
    row_tokens = tuple(result.row_tokens)
    array = _array(result.tensor, dtype)
    if view.pooling is not None and bool(row_tokens) != (view.pooling == "tokens"):
        raise InvalidResponse(f"the answer's rows are not those of pooling {view.pooling!r}")
    owned = len(row_tokens) == num_inputs and sum(row_tokens) == len(array) if row_tokens else len(array) == num_inputs
    if not owned:
        raise InvalidResponse(f"a view of {num_inputs} inputs has {len(array)} rows")
    return ViewArray(array, row_tokens)


def _array(tensor: pb.Tensor, dtype: DTypeName) -> FloatArray:
    found = _NUMPY.get(tensor.dtype)
    if found != np.dtype(dtype):
        raise InvalidResponse(f"asked for {dtype}, the embedding service answered dtype {tensor.dtype}")
    shape = tuple(tensor.shape)
    data = tensor.data
    if len(shape) != 2 or len(data) != math.prod(shape) * found.itemsize:
        raise InvalidResponse(f"{len(data)} bytes are not an array of shape {list(shape)} and dtype {dtype}")
    return np.frombuffer(data, dtype=found).reshape(shape)


def parse_trunk(data: bytes) -> Trunk:
    """The answer to a GetTrunkRequest, or InvalidResponse where it is not one."""
    try:
        trunk = pb.Trunk.FromString(data)
    except DecodeError:
        raise InvalidResponse("the embedding service's answer is not a Trunk") from None
    is_table = trunk.kind == pb.TRUNK_KIND_TABLE
    if not trunk.fingerprint or not trunk.width or not (trunk.max_tokens or is_table) or not trunk.max_request_inputs:
        raise InvalidResponse("the trunk has no fingerprint, width, max_tokens or max_request_inputs")
    return Trunk(
        name=trunk.name,
        fingerprint=trunk.fingerprint,
        width=trunk.width,
        num_layers=trunk.num_layers,
        vocab_size=trunk.vocab_size,
        max_tokens=trunk.max_tokens,
        default_view=_view(trunk.default_view),
        layers=tuple(trunk.layers),
        normalizer=trunk.normalizer,
        prompt=trunk.prompt,
        engine=trunk.engine,
        agreement=trunk.agreement,
        max_request_inputs=trunk.max_request_inputs,
        tokenizer_json=trunk.tokenizer_json,
        is_table=is_table,
        num_keys=trunk.num_keys,
        prompts=dict(trunk.prompts),
    )


def _view(view: pb.View) -> View:
    return View(
        pooling=_POOLING_NAMES.get(view.pooling),
        layer=view.layer if view.HasField("layer") else None,
        normalize=view.normalize if view.HasField("normalize") else None,
        dims=view.dims,
    )


def join(parts: Sequence[Embeddings]) -> Embeddings:
    """The parts of one list, one after another; durations are summed.

    Raises:
        FailedPrecondition: the parts come from different trunks.
    """
    first = parts[0]
    if any(part.trunk_fingerprint != first.trunk_fingerprint for part in parts):
        raise FailedPrecondition("the trunk was exchanged for another between two parts of one list")
    if len(parts) == 1:
        return first
    return Embeddings(
        trunk=first.trunk,
        trunk_fingerprint=first.trunk_fingerprint,
        views=tuple(_join_view([part.views[i] for part in parts]) for i in range(len(first.views))),
        num_tokens=tuple(n for part in parts for n in part.num_tokens),
        truncated=tuple(t for part in parts for t in part.truncated),
        cached=tuple(c for part in parts for c in part.cached),
        num_windows=tuple(n for part in parts for n in part.num_windows),
        missing=tuple(m for part in parts for m in part.missing),
        durations=Durations(
            tokenization=sum(part.durations.tokenization for part in parts),
            queue=sum(part.durations.queue for part in parts),
            inference=sum(part.durations.inference for part in parts),
            total=sum(part.durations.total for part in parts),
        ),
    )


def _join_view(pieces: Sequence[ViewArray]) -> ViewArray:
    if len({piece.array.shape[1] for piece in pieces}) != 1:
        raise InvalidResponse("one view came in two widths")
    return ViewArray(np.concatenate([piece.array for piece in pieces]), tuple(n for piece in pieces for n in piece.row_tokens))
