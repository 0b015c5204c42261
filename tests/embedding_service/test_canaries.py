"""Secrets sent to the embedding service in every place a request has are in no log, no metric and no error."""

import logging
import re
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from clients.wire import embedding_pb2 as pb
from clients.wire.keys import add_key
from embedding_service.backend.fake import FakeBackend
from embedding_service.guarding import ROUTES
from tests.embedding_service.conftest import Start

CANARY = "canary7secret"
OURS = re.compile(r"embedding_service|clients|uvicorn|starlette|asyncio|grpc|root")
HEADERS = ("authorization", "x-api-key", "cookie", "user-agent", "traceparent", "content-type", "content-encoding", "accept")
BODIES = (
    CANARY.encode(),
    f'{{"input": "{CANARY}", "inputs": "{CANARY}", "model": "{CANARY}"}}'.encode(),
    f'{{"input": ["{CANARY}", 1, [2]], "inputs": [1, "{CANARY}"]}}'.encode(),
    f'{{"{CANARY}": 1}}'.encode(),
    f'{{"id": "{CANARY}", "texts": ["{CANARY}", 1], "is_tokenized": "{CANARY}"}}'.encode(),
    f'{{"ids": ["{CANARY}"], "inputs": {{"source_sentence": 1, "sentences": "{CANARY}"}}}}'.encode(),
)
REQUESTS = (
    pb.EmbedRequest(inputs=[pb.Input(text=CANARY)], trunk=CANARY),
    pb.EmbedRequest(inputs=[pb.Input(text=CANARY)], prompt_name=CANARY),
    pb.EmbedRequest(inputs=[pb.Input(text=CANARY)], trunk_fingerprint=CANARY),
    pb.EmbedRequest(inputs=[pb.Input(key=CANARY)]),
    pb.EmbedRequest(inputs=[pb.Input(text=CANARY * 100)], truncation=pb.TRUNCATION_ERROR),
)


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """All that our side logged; the clients of the test have logs of their own."""
    kept = [record for record in caplog.records if OURS.match(record.name)]
    return "\n".join(f"{record.getMessage()} {record.exc_text or ''} {record.__dict__}" for record in kept)


async def test_no_secret_comes_back_or_is_kept(
    start: Start, tokenizer_json: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "keys"
    key = add_key(path, "ann", ("admin",))
    addresses = await start(
        FakeBackend(tokenizer_json, max_tokens=6), keys_file=path, auth_failures_per_minute=1e6, access_log=True
    )
    known = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        for route, methods in ROUTES.items():
            for method in methods:
                await _every_place(http, method, route.replace("{trunk}", CANARY), known, key)
        shown = [await http.get(page, headers=known) for page in ("/metrics", "/info", "/status/server")]
        assert [200] * 3 == [page.status_code for page in shown]
        assert not [page for page in shown if CANARY in page.text or key in page.text]

    async with grpc.aio.insecure_channel(addresses.grpc) as channel:
        for metadata in ((), (("authorization", f"Bearer {CANARY}"),), (("authorization", f"Bearer {key}"), ("x-id", CANARY))):
            told = await _errors_of(channel, metadata)
            assert CANARY not in told
            assert key not in told

    printed = capfd.readouterr()
    everything = logged(caplog) + printed.out + printed.err
    assert CANARY not in everything
    assert key not in everything


async def _every_place(http: httpx.AsyncClient, method: str, path: str, known: dict[str, str], key: str) -> None:
    sent: list[tuple[str, dict[str, str], bytes]] = [(f"{path}?q={CANARY}", signed, b"{}") for signed in (known, {})]
    sent += [(path, signed, body) for signed in (known, {}) for body in BODIES]
    sent += [(path, {**known, "x-request-id": f"{CANARY} {CANARY}"}, b"{}")]
    sent += [(path, {**known, header: CANARY}, b"{}") for header in HEADERS]
    for url, headers, body in sent:
        answer = await http.request(method, url, headers=headers, content=body)
        if answer.status_code >= 400:
            assert CANARY not in answer.text + str(answer.headers), (url, headers, body)
            assert key not in answer.text
            assert len(answer.content) < 2_048


async def _errors_of(channel: grpc.aio.Channel, metadata: Any) -> str:
    """What the errors of all calls say, the failures told on a stream too."""
    told = []
    for name in ("Embed", "GetTrunk"):
        call: Any = channel.unary_unary(f"/trunkline.embedding.v1.EmbeddingService/{name}")
        for request in REQUESTS if name == "Embed" else (pb.GetTrunkRequest(trunk=CANARY),):
            try:
                await call(request.SerializeToString(), metadata=metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                told.append(f"{error.details()} {error.trailing_metadata()} {error.initial_metadata()}")
    stream: Any = channel.stream_stream("/trunkline.embedding.v1.EmbeddingService/EmbedStream")
    for request in REQUESTS:
        message = pb.EmbedStreamRequest(first_number=1, request=request).SerializeToString()
        try:
            async for data in stream(iter([message]), metadata=metadata):
                told += [failure.message for failure in pb.EmbedStreamResponse.FromString(data).failures]
        except grpc.aio.AioRpcError as error:
            told.append(str(error.details()))
    assert told
    return "\n".join(told)
