"""A gateway that is told to stop says so, goes on for a moment, finishes what it has, and ends well."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, TrunkRef, encode
from gateway.drain import Drain
from perf.stub_backends import FINGERPRINT, WIDTH, StubEmbedding, StubHeads, text_of

MANIFEST = Manifest(name="head", version=1, labels=("first", "second"), width=WIDTH, trunk=TrunkRef("stub", FINGERPRINT))


class GatedHeads(StubHeads):
    """Answers nobody before `gate` is open."""

    def __init__(self) -> None:
        super().__init__(0.0, "", "")
        self.asked, self.gate = asyncio.Event(), asyncio.Event()

    async def predict(self, data: bytes, context: Any) -> bytes:
        self.asked.set()
        await self.gate.wait()
        return await super().predict(data, context)


@asynccontextmanager
async def backends() -> AsyncIterator[tuple[str, GatedHeads]]:
    """Both behind one address."""
    heads = GatedHeads()
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((StubEmbedding(0.0, 1, FINGERPRINT).handler(), *heads.handlers()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", heads
    finally:
        await server.stop(None)


@asynccontextmanager
async def gateway_over(address: str, catalogue: Path, *flags: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process, and its URL once it listens."""
    command = [f"--embedding-address={address}", f"--heads-address={address}", f"--catalogue={catalogue}", "--port=0", *flags]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            _, url = (await process.stdout.readline()).decode().split()
            yield process, url
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def status_of(url: str, path: str) -> tuple[int, Any]:
    """By a connection of its own, as a balancer's check is."""
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.get(path)
    return answer.status_code, answer.json()


async def test_a_gateway_that_is_told_to_stop_says_so_and_finishes_what_it_has(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.json"
    catalogue.write_bytes(encode(Catalogue({"head": CatalogueHead(stable=1, versions={1: MANIFEST})})))
    flags = ("--head-timeout-seconds=50", "--default-timeout-seconds=50", "--drain-delay-seconds=2")
    async with (
        backends() as (address, heads),
        gateway_over(address, catalogue, *flags) as (process, url),
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        asking = asyncio.create_task(http.post("/v1/classify", json={"text": text_of(1)}))
        await heads.asked.wait()
        assert (200, {"status": "ready", "reasons": []}) == await status_of(url, "/readyz")
        process.send_signal(signal.SIGTERM)
        while (found := await status_of(url, "/readyz"))[0] == 200:
            await asyncio.sleep(0.01)
        assert (503, {"status": "not ready", "reasons": ["draining"]}) == found
        # This protocol's word for not ready.
        assert (400, {"ready": False}) == await status_of(url, "/v2/health/ready")
        heads.gate.set()
        answer = await asking
        assert (200, {"head"}) == (answer.status_code, answer.json()["results"][0]["heads"].keys())
        assert 0 == await process.wait()


async def test_who_waits_hears_at_once_that_the_gateway_is_stopping() -> None:
    drain = Drain()

    async def waiting() -> None:
        async with drain.patience(60):
            await asyncio.Event().wait()

    async with asyncio.timeout(10):
        waits = [asyncio.create_task(waiting()) for _ in range(3)]
        await asyncio.sleep(0)
        drain.begin()
        assert all(isinstance(said, TimeoutError) for said in await asyncio.gather(*waits, return_exceptions=True))
        with pytest.raises(TimeoutError):
            await waiting()


async def test_an_end_of_patience_is_not_the_gateways_end() -> None:
    drain = Drain()
    with pytest.raises(TimeoutError):
        async with drain.patience(0):
            await asyncio.Event().wait()
    assert not drain.is_on
    drain.begin()
    assert drain.is_on
