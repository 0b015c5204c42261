from pathlib import Path

import httpx
import pytest

from clients import AsyncEmbeddingClient
from trunkline import paths
from trunkline.stack import Stack, StackSettings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_the_whole_stack_listens_and_is_reached_at_an_address_of_ipv6(tmp_path: Path) -> None:
    settings = StackSettings(
        repository=tmp_path / "repository",
        cache_dir=paths.cache_dir(),
        log_dir=tmp_path / "logs",
        host="::1",
        with_control=True,
        control_home=tmp_path / "control",
    )
    stack = Stack(settings.on_any_ports(), say=lambda _: None)
    try:
        found = await stack.start()
        async with httpx.AsyncClient(timeout=30.0) as http:
            asked = [f"{found.gateway}/readyz", f"{found.embedding}/health", f"{found.control}/healthz"]
            answers = [(await http.get(url)).status_code for url in asked]
            unknown = await http.get(f"{found.heads}/v1/models/none")
        async with AsyncEmbeddingClient(found.embedding_grpc) as client:
            vectors = (await client.embed(["a text"])).vectors
    finally:
        await stack.stop()

    assert [200, 200, 200] == answers
    assert 404 == unknown.status_code
    assert 1 == len(vectors)
    assert all("[::1]:" in address for address in (found.gateway, found.embedding_grpc, found.heads_grpc))
