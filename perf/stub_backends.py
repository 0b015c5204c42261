"""`python -m perf.stub_backends embedding|heads`: backends that cost a fixed time a text and can be made to misbehave.

What the gateway does around a fault is measured with these: they take no CPU to speak of, and each answer carries a checksum of
its text, so that a swapped one is seen. Prints its address once it serves. `--bad-head` misbehaves after SIGUSR1, until the next.
"""

import argparse
import asyncio
import contextlib
import signal
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from clients.wire import embedding_pb2 as pb
from clients.wire.metadata import EMBEDDING_SERVICE, MODEL_SERVICE, PREDICTION_SERVICE
from clients.wire.tensors import fill_tensor, from_tensor
from clients.wire.text import NORMALIZER
from clients.wire.tfs import serving_pb2 as tfs

WIDTH: Final = 8
NUM_WORDS: Final = 1_000
FINGERPRINT: Final = "sha256:" + "5" * 64
FAULTS: Final = ("dead", "frozen", "garbage")
_FIRST_WORD: Final = 3

Handler = Callable[[bytes, Any], Awaitable[bytes]]


def text_of(number: int) -> str:
    """A text that no other number below a million has."""
    return f"w{number % NUM_WORDS} w{number // NUM_WORDS % NUM_WORDS}"


def score_of(number: int) -> float:
    """The first score that `text_of` *number* must be answered with."""
    return float(checksum([0, _FIRST_WORD + number % NUM_WORDS, _FIRST_WORD + number // NUM_WORDS % NUM_WORDS, 1]))


def checksum(ids: Sequence[int]) -> np.float32:
    """Of token ids, from 0 to 1."""
    return np.float32(zlib.crc32(np.asarray(ids, np.uint32).tobytes()) / 2**32)


def tokenizer_json() -> bytes:
    """One word, one token."""
    words = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2} | {f"w{number}": _FIRST_WORD + number for number in range(NUM_WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))  # noqa: S106 (a token of text)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    return tokenizer.to_str().encode()


class StubEmbedding:
    """*slots* texts at once, each taking *seconds*."""

    def __init__(self, seconds: float, slots: int, fingerprint: str) -> None:
        self._seconds = seconds
        self._slots = asyncio.Semaphore(slots)
        self._fingerprint = fingerprint
        self._running: set[asyncio.Task[None]] = set()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server takes."""
        return grpc.method_handlers_generic_handler(
            EMBEDDING_SERVICE,
            {
                "GetTrunk": grpc.unary_unary_rpc_method_handler(self.trunk),
                "EmbedStream": grpc.stream_stream_rpc_method_handler(self.stream),
            },
        )

    async def trunk(self, _: bytes, __: Any) -> bytes:
        """The RPC `GetTrunk`."""
        return pb.Trunk(
            name="stub",
            fingerprint=self._fingerprint,
            width=WIDTH,
            num_layers=1,
            vocab_size=NUM_WORDS + _FIRST_WORD,
            max_tokens=16,
            layers=[-1],
            normalizer=NORMALIZER,
            engine="stub",
            agreement=1.0,
            max_request_inputs=1_024,
            tokenizer_json=tokenizer_json(),
        ).SerializeToString()

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """The RPC `EmbedStream`."""
        answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        reading = asyncio.create_task(self._read(requests, answers, context))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
        finally:
            reading.cancel()

    async def _read(self, requests: AsyncIterator[bytes], answers: "asyncio.Queue[bytes | None]", context: Any) -> None:
        async for data in requests:
            message = pb.EmbedStreamRequest.FromString(data)
            if message.request.trunk_fingerprint not in {"", self._fingerprint}:
                numbers = range(message.first_number, message.first_number + len(message.request.inputs))
                code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
                failure = pb.EmbedFailure(numbers=numbers, code=code, message="another trunk")
                answers.put_nowait(pb.EmbedStreamResponse(failures=[failure]).SerializeToString())
                continue
            for number, value in enumerate(message.request.inputs, message.first_number):
                task = asyncio.create_task(self._embed(number, list(value.tokens.ids), len(message.request.views), answers))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        answers.put_nowait(None)

    async def _embed(self, number: int, ids: list[int], num_views: int, answers: "asyncio.Queue[bytes | None]") -> None:
        async with self._slots:
            await asyncio.sleep(self._seconds)
        row = np.full((1, WIDTH), checksum(ids), "<f4")
        view = pb.ViewResult(tensor=pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=row.shape, data=row.tobytes()))
        response = pb.EmbedResponse(
            trunk="stub",
            trunk_fingerprint=self._fingerprint,
            views=[view] * num_views,
            inputs=[pb.InputResult(num_tokens=len(ids))],
        )
        answers.put_nowait(pb.EmbedStreamResponse(numbers=[number], response=response).SerializeToString())


class StubHeads:
    """Any head, any version; scores are the checksum and its complement. *bad_head* has *fault* while `is_bad`."""

    def __init__(self, seconds: float, bad_head: str, fault: str) -> None:
        self._seconds = seconds
        self._bad_head = bad_head
        self._fault = fault
        self.is_bad = False

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a server takes."""
        calls = {PREDICTION_SERVICE: ("Predict", self.predict), MODEL_SERVICE: ("GetModelStatus", self.status)}
        return [
            grpc.method_handlers_generic_handler(
                service,
                {name: grpc.unary_unary_rpc_method_handler(call)},
            )
            for service, (name, call) in calls.items()
        ]

    def toggle(self) -> None:
        """The fault begins, or ends."""
        self.is_bad = not self.is_bad

    async def predict(self, data: bytes, context: Any) -> bytes:
        """The RPC `Predict`."""
        request = tfs.PredictRequest.FromString(data)
        fault = self._fault if self.is_bad and request.model_spec.name == self._bad_head else ""
        if fault == "dead":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the head is dead")
        if fault == "frozen":
            await asyncio.Event().wait()
        await asyncio.sleep(self._seconds)
        first: NDArray[Any] = from_tensor(request.inputs["embedding"])[:, 0]
        scores = np.stack([first, 1 - first], axis=1).astype(np.float32)
        answer = tfs.PredictResponse()
        answer.model_spec.CopyFrom(request.model_spec)
        fill_tensor(answer.outputs["scores"], scores * np.float32("nan") if fault else scores)
        return answer.SerializeToString()

    async def status(self, _: bytes, context: Any) -> bytes:
        """The RPC `GetModelStatus`."""
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such head")
        return b""


async def serve(kind: str, given: argparse.Namespace) -> None:
    """Until SIGTERM, which drains: NOT_SERVING, a moment, then the end of what is under way."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    if kind == "embedding":
        server.add_generic_rpc_handlers((StubEmbedding(given.milliseconds / 1000, given.slots, given.fingerprint).handler(),))
    else:
        heads = StubHeads(given.milliseconds / 1000, given.bad_head, given.fault)
        loop.add_signal_handler(signal.SIGUSR1, heads.toggle)
        server.add_generic_rpc_handlers(tuple(heads.handlers()))
    port = server.add_insecure_port(f"127.0.0.1:{given.port}")
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    print(f"serving 127.0.0.1:{port}", flush=True)
    await stopping.wait()
    await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    await asyncio.sleep(given.drain_seconds)
    await server.stop(1.0)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.stub_backends", description=__doc__)
    parser.add_argument("kind", choices=("embedding", "heads"))
    parser.add_argument("--milliseconds", type=float, default=10.0, help="of each text; of a head: of each call")
    parser.add_argument("--slots", type=int, default=3, help="texts at once")
    parser.add_argument("--fingerprint", default=FINGERPRINT)
    parser.add_argument("--bad-head", default="")
    parser.add_argument("--fault", choices=FAULTS, default="frozen")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--drain-seconds", type=float, default=0.5)
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(given.kind, given))


if __name__ == "__main__":
    main()
