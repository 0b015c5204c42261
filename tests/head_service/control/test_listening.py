import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from head_service.control import listening
from head_service.control.settings import ServeSettings


async def counted(scope: Any, receive: Any, send: Any) -> None:
    """Any application: the bytes of the body that came."""
    if scope["type"] == "http":
        body = await Request(scope, receive).body()
        await Response(str(len(body)))(scope, receive, send)


@contextmanager
def served(settings: ServeSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The port as it is listened at, in front of `counted`."""
    found: dict[str, Any] = {}
    is_up = threading.Event()

    class Server(listening.AnnouncingServer):
        def __init__(self, config: Any, line: str) -> None:
            config.lifespan = "off"
            super().__init__(config, line)
            found["server"], found["url"] = self, line.split()[1]

        def run(self, sockets: Any = None) -> None:
            async def go() -> None:
                serving = asyncio.create_task(self.serve(sockets))
                while not self.started:
                    await asyncio.sleep(0.001)
                is_up.set()
                await serving

            asyncio.run(go())

    monkeypatch.setattr(listening, "AnnouncingServer", Server)
    monkeypatch.setattr(listening, "create_app", lambda *_: counted)
    thread = threading.Thread(target=listening.listen, args=(settings, None))
    thread.start()
    assert is_up.wait(20)
    try:
        yield found["url"]
    finally:
        found["server"].should_exit = True
        thread.join(20)


def test_an_upload_takes_as_long_as_it_does_not_rest_and_other_bodies_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServeSettings(home=tmp_path, repository=tmp_path, port=0, body_timeout_seconds=0.4)

    def slowly() -> Iterator[bytes]:
        for _ in range(12):
            yield b"x" * 10
            threading.Event().wait(0.1)

    with served(settings, monkeypatch) as url, httpx.Client(base_url=url) as http:
        upload = http.post("/v1/data", content=slowly())
        order = http.post("/v1/runs", content=slowly())

    assert (200, "120") == (upload.status_code, upload.text)
    assert 408 == order.status_code
