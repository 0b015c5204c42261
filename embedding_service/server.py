"""The gRPC edge: messages to calls, answers to bytes, errors to status codes. Nothing is decided here."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Literal, TypeVar, cast

import grpc
import grpc.aio
import numpy as np

from clients.wire import embedding_pb2 as pb
from clients.wire.metadata import EMBEDDING_SERVICE, RETRY_AFTER_MS
from clients.wire.text import NORMALIZER, TextPair, normalizer_after
from embedding_service.backend import Pooling, View
from embedding_service.backend.words import WORDS
from embedding_service.conversation import Conversation, Settled
from embedding_service.errors import GRPC_STATUS, EmbedError, InvalidInput
from embedding_service.exchange import Exchange, Exchanges
from embedding_service.hosted_table import HostedTable
from embedding_service.infer import EmbedAnswer, EmbedCall, HostedTrunk, Infer, ViewVectors
from embedding_service.telemetry import Telemetry
from embedding_service.tokenization import Input, TableKey, TokenIds, Truncation, ViewChoice

POOLINGS: Final[dict[int, Pooling]] = {
    pb.POOLING_MEAN: "mean",
    pb.POOLING_CLS: "cls",
    pb.POOLING_MAX: "max",
    pb.POOLING_MEAN_MAX: "mean_max",
    pb.POOLING_SEP: "sep",
    pb.POOLING_TOKENS: "tokens",
}
_POOLING_NUMBERS: Final = {name: number for number, name in POOLINGS.items()}
_TRUNCATIONS: Final[dict[int, Truncation]] = {
    pb.TRUNCATION_UNSPECIFIED: "right",
    pb.TRUNCATION_RIGHT: "right",
    pb.TRUNCATION_LEFT: "left",
    pb.TRUNCATION_ERROR: "error",
    pb.TRUNCATION_WINDOW: "window",
}
_DTYPES: Final[dict[int, Literal["<f4", "<f2"]]] = {
    pb.DTYPE_UNSPECIFIED: "<f4",
    pb.DTYPE_FLOAT32: "<f4",
    pb.DTYPE_FLOAT16: "<f2",
}

Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[pb.EmbedRequest, pb.EmbedResponse]


class EmbeddingServicer:
    """Answers `trunkline.embedding.v1.EmbeddingService`. *default_timeout* seconds bound a call that brings no deadline."""

    def __init__(self, infer: Infer, telemetry: Telemetry, *, default_timeout: float, exchanges: Exchanges | None = None) -> None:
        self._infer = infer
        self._telemetry = telemetry
        self._default_timeout = default_timeout
        self._exchanges = exchanges or Exchanges()
        self._conversations: set[Conversation] = set()
        self._draining = False

    def handler(self) -> grpc.GenericRpcHandler:
        """What `grpc.aio.Server.add_generic_rpc_handlers` takes."""
        return grpc.method_handlers_generic_handler(
            EMBEDDING_SERVICE,
            {
                "Embed": grpc.unary_unary_rpc_method_handler(
                    cast("Callable[..., pb.EmbedResponse]", self.embed),
                    request_deserializer=pb.EmbedRequest.FromString,
                    response_serializer=pb.EmbedResponse.SerializeToString,
                ),
                "EmbedStream": grpc.stream_stream_rpc_method_handler(
                    cast("Callable[..., AsyncIterator[pb.EmbedStreamResponse]]", self.embed_stream),
                    request_deserializer=pb.EmbedStreamRequest.FromString,
                    response_serializer=pb.EmbedStreamResponse.SerializeToString,
                ),
                "GetTrunk": grpc.unary_unary_rpc_method_handler(
                    cast("Callable[..., pb.Trunk]", self.get_trunk),
                    request_deserializer=pb.GetTrunkRequest.FromString,
                    response_serializer=pb.Trunk.SerializeToString,
                ),
            },
        )

    async def embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """The RPC `Embed`."""
        exchange = self._exchanges.begin("grpc", "Embed", context.invocation_metadata)
        exchange.asked(len(request.inputs))
        return await self._answered(context, exchange, lambda: self._embed(request, context, exchange), pb.EmbedResponse())

    async def embed_stream(
        self, requests: AsyncIterator[pb.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        """The RPC `EmbedStream`."""
        conversation = Conversation(
            self._infer, self._telemetry, begin=functools.partial(self._begin_part, context) if self._exchanges.is_on else None
        )
        self._conversations.add(conversation)
        reading = asyncio.create_task(self._read(requests, conversation))
        try:
            if self._draining:
                conversation.close()
            async for settled in conversation.settled():
                for message in stream_messages(settled):
                    yield message
        finally:
            reading.cancel()
            conversation.abandon_all()
            self._conversations.discard(conversation)
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the embedding service is stopping")

    def drain(self) -> None:
        """End the streams once each has answered what it took."""
        self._draining = True
        for conversation in self._conversations:
            conversation.close()

    async def _read(self, requests: AsyncIterator[pb.EmbedStreamRequest], conversation: Conversation) -> None:
        try:
            async for message in requests:
                conversation.abandon(message.abandoned)
                if message.request.inputs:
                    self._start(message, conversation)
                await conversation.room()
        finally:
            conversation.close()

    def _start(self, message: pb.EmbedStreamRequest, conversation: Conversation) -> None:
        now, count = time.monotonic(), len(message.request.inputs)
        asked = [min(milliseconds / 1000, self._default_timeout) for milliseconds in message.timeouts_ms[:count]]
        timeouts = asked + [self._default_timeout] * (count - len(asked))
        conversation.start(
            call_of(message.request, now + self._default_timeout),
            range(message.first_number, message.first_number + count),
            [now + timeout for timeout in timeouts],
            message.request.dtype,
        )

    async def get_trunk(self, request: pb.GetTrunkRequest, context: Context) -> pb.Trunk:
        """The RPC `GetTrunk`."""
        exchange = self._exchanges.begin("grpc", "GetTrunk", context.invocation_metadata)
        return await self._answered(context, exchange, lambda: self._describe(request), pb.Trunk())

    def _begin_part(self, context: Context) -> Exchange:
        return self._exchanges.begin("grpc-stream", "EmbedStream", context.invocation_metadata)

    async def _embed(self, request: pb.EmbedRequest, context: Context, exchange: Exchange) -> pb.EmbedResponse:
        remaining = context.time_remaining()
        timeout = self._default_timeout if remaining is None else min(remaining, self._default_timeout)
        answer = await self._infer.embed(call_of(request, time.monotonic() + timeout))
        exchange.answered(answer.trunk.name, answer.num_tokens, answer.timings)
        return response_of(answer, request.dtype)

    async def _describe(self, request: pb.GetTrunkRequest) -> pb.Trunk:
        found = self._infer.find(request.trunk)
        most = self._infer.limits.max_request_inputs
        if isinstance(found, HostedTable):
            return table_message(found, most)
        return trunk_message(found, most, with_tokenizer=request.with_tokenizer)

    async def _answered(
        self, context: Context, exchange: Exchange, work: Callable[[], Awaitable[Answer]], nothing: Answer
    ) -> Answer:
        """What *work* gives, or *nothing*, which is not sent, with the status that says why."""
        try:
            with exchange:
                return await work()
        except EmbedError as error:
            if error.retry_after is not None:
                context.set_trailing_metadata(((RETRY_AFTER_MS, str(round(error.retry_after * 1000))),))
            # Not `abort`: what it raises stays, with all frames it went through, until the collector finds it.
            context.set_code(GRPC_STATUS[type(error)])
            context.set_details(str(error))
            return nothing


def call_of(request: pb.EmbedRequest, deadline: float) -> EmbedCall:
    """The call that *request* means. What an enum value unknown here means is its default."""
    return EmbedCall(
        inputs=[_input_of(item) for item in request.inputs],
        deadline=deadline,
        trunk=request.trunk,
        views=[_choice_of(view) for view in request.views],
        truncation=_TRUNCATIONS.get(request.truncation, "right"),
        is_bulk=request.priority == pb.PRIORITY_BULK,
        trunk_fingerprint=request.trunk_fingerprint,
        prompt_name=request.prompt_name,
    )


def response_of(answer: EmbedAnswer, dtype: int) -> pb.EmbedResponse:
    """*answer* as a message, its vectors as little-endian bytes of *dtype*.

    Raises:
        InvalidInput: *dtype* does not hold a number of it.
    """
    timings = answer.timings
    return pb.EmbedResponse(
        trunk=answer.trunk.name,
        trunk_fingerprint=answer.trunk.fingerprint,
        views=[_view_result(view, dtype) for view in answer.views],
        inputs=[
            pb.InputResult(
                num_tokens=item.num_tokens, truncated=item.truncated, num_windows=item.num_windows, missing=item.missing
            )
            for item in answer.inputs
        ],
        durations=pb.Durations(
            tokenization_ns=round(timings.tokenization * 1e9),
            queue_ns=round(timings.queue * 1e9),
            inference_ns=round(timings.inference * 1e9),
            total_ns=round(timings.total * 1e9),
        ),
    )


def stream_messages(settled: Settled) -> list[pb.EmbedStreamResponse]:
    """What settled, as messages: one for each group of answers, and one for all failures."""
    failures = [_failure_of(failed.numbers, failed.error) for failed in settled.failed]
    messages = []
    for group in settled.answered:
        try:
            messages.append(pb.EmbedStreamResponse(numbers=group.numbers, response=response_of(group.answer, group.dtype)))
        except InvalidInput as error:
            failures.append(_failure_of(group.numbers, error))
    return [*messages, pb.EmbedStreamResponse(failures=failures)] if failures else messages


def _failure_of(numbers: Sequence[int], error: EmbedError) -> pb.EmbedFailure:
    return pb.EmbedFailure(
        numbers=numbers,
        code=GRPC_STATUS[type(error)].value[0],
        message=str(error),
        retry_after_ms=None if error.retry_after is None else round(error.retry_after * 1000),
    )


def trunk_message(trunk: HostedTrunk, max_request_inputs: int, *, with_tokenizer: bool) -> pb.Trunk:
    """*trunk* as `GetTrunk` answers it."""
    spec, engine = trunk.spec, trunk.engine
    return pb.Trunk(
        name=spec.name,
        fingerprint=spec.fingerprint,
        width=spec.width,
        num_layers=spec.num_layers,
        vocab_size=spec.vocab_size,
        max_tokens=spec.max_tokens,
        default_view=_view_message(spec.default_view),
        layers=engine.layers,
        normalizer=normalizer_after(trunk.chain),
        prompt=spec.prompt,
        prompts=spec.prompts,
        engine=engine.label,
        agreement=engine.agreement,
        max_request_inputs=max_request_inputs,
        tokenizer_json=spec.tokenizer_json if with_tokenizer else b"",
        kind=pb.TRUNK_KIND_ENCODER,
    )


def table_message(table: HostedTable, max_request_inputs: int) -> pb.Trunk:
    """*table* as `GetTrunk` answers it."""
    spec = table.spec
    return pb.Trunk(
        name=spec.name,
        fingerprint=spec.fingerprint,
        width=spec.width,
        kind=pb.TRUNK_KIND_TABLE,
        num_keys=spec.num_keys,
        max_request_inputs=max_request_inputs,
        normalizer=f"{NORMALIZER} {WORDS}",
    )


def _input_of(value: pb.Input) -> Input:
    match value.WhichOneof("value"):
        case "tokens":
            return TokenIds(value.tokens.ids, value.tokens.pair_at)
        case "pair":
            return TextPair(value.pair.first, value.pair.second)
        case "key":
            return TableKey(value.key)
        case _:
            return value.text


def _choice_of(view: pb.View) -> ViewChoice:
    return ViewChoice(
        pooling=POOLINGS.get(view.pooling),
        layer=view.layer if view.HasField("layer") else None,
        normalize=view.normalize if view.HasField("normalize") else None,
        dims=view.dims,
    )


def _view_message(view: View) -> pb.View:
    number = cast("pb.Pooling.ValueType", _POOLING_NUMBERS[view.pooling])
    return pb.View(pooling=number, layer=view.layer, normalize=view.normalize, dims=view.dims)


def _view_result(view: ViewVectors, dtype: int) -> pb.ViewResult:
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(view.array, dtype=_DTYPES.get(dtype, "<f4"))
    if array.dtype.itemsize == 2 and not np.isfinite(array).all():
        raise InvalidInput("the vectors have numbers that float16 does not hold; ask for float32, or for vectors of length one")
    number = pb.DTYPE_FLOAT16 if array.dtype.itemsize == 2 else pb.DTYPE_FLOAT32
    return pb.ViewResult(tensor=pb.Tensor(dtype=number, shape=array.shape, data=array.tobytes()), row_tokens=view.row_tokens)
