"""A gRPC server that answers what a test tells it to, over a real port."""

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np

from clients.wire import embedding_pb2 as pb

Handler = Callable[[bytes, Any], Awaitable[bytes]]

EMBED = "/trunkline.embedding.v1.EmbeddingService/Embed"
GET_TRUNK = "/trunkline.embedding.v1.EmbeddingService/GetTrunk"
FINGERPRINT = "sha256:" + "0" * 64
WIDTH = 4


class _Routes(grpc.GenericRpcHandler):
    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details):
        handler = self._handlers.get(handler_call_details.method)
        return handler and grpc.unary_unary_rpc_method_handler(handler)


@asynccontextmanager
async def serving(handlers: dict[str, Handler], address: str = "127.0.0.1:0"):
    """Serve *handlers* by RPC path; yields the address."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((_Routes(handlers),))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class FakeEmbeddingService:
    """Gives each input a row that tells which it was, keeps the requests, and refuses where *refusals* are left."""

    def __init__(self, max_request_inputs: int = 8) -> None:
        self.requests: list[pb.EmbedRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.fingerprint = FINGERPRINT
        self.max_request_inputs = max_request_inputs
        self.refusals: list[tuple[grpc.StatusCode, tuple[tuple[str, str], ...]]] = []

    def handlers(self) -> dict[str, Handler]:
        return {EMBED: self.embed, GET_TRUNK: self.trunk}

    async def embed(self, data: bytes, context) -> bytes:
        request = pb.EmbedRequest.FromString(data)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.refusals:
            code, trailing = self.refusals.pop(0)
            await context.abort(code, "refused by the test", trailing)
        self.requests.append(request)
        return answer(request, self.fingerprint).SerializeToString()

    async def trunk(self, data: bytes, context) -> bytes:
        request = pb.GetTrunkRequest.FromString(data)
        if request.trunk not in {"", "small"}:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such trunk")
        return pb.Trunk(
            name="small",
            fingerprint=self.fingerprint,
            width=WIDTH,
            num_layers=6,
            vocab_size=100,
            max_tokens=512,
            default_view=pb.View(pooling=pb.POOLING_MEAN, layer=-1, normalize=True),
            layers=[-1, -2],
            normalizer="trunkline-text/1",
            engine="fake",
            agreement=1.0,
            max_request_inputs=self.max_request_inputs,
            tokenizer_json=b"{}" if request.with_tokenizer else b"",
        ).SerializeToString()


def answer(request: pb.EmbedRequest, fingerprint: str = FINGERPRINT) -> pb.EmbedResponse:
    """The right answer: a row is its input's length, WIDTH times; a tokens view has two such rows an input."""
    response = pb.EmbedResponse(trunk="small", trunk_fingerprint=fingerprint)
    lengths = [len(one.text) or len(one.tokens.ids) for one in request.inputs]
    for view in request.views or [pb.View()]:
        repeats = 2 if view.pooling == pb.POOLING_TOKENS else 1
        dtype = np.dtype("<f2" if request.dtype == pb.DTYPE_FLOAT16 else "<f4")
        rows = np.repeat(np.array(lengths, dtype), repeats)[:, None].repeat(WIDTH, axis=1)
        tensor = pb.Tensor(dtype=request.dtype, shape=rows.shape, data=rows.tobytes())
        response.views.add(tensor=tensor, row_tokens=[2] * len(lengths) if repeats == 2 else [])
    for length in lengths:
        response.inputs.add(num_tokens=length, truncated=length > 50, cached=False)
    response.durations.tokenization_ns = 1_000_000
    response.durations.total_ns = 2_000_000_000
    return response
