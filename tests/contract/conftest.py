"""Two running embedded servers over models made by TensorFlow, asked by the official stubs in a process of their own.

`plain` runs with default flags; `other` sends tensor_content, answers health checks and scripts of any site, and gives REST calls
little time.
Both run on threads of this process, on real ports: TensorFlow is loaded once, and only our stubs meet it here.
"""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

OTHER_FLAGS = (
    "--enable_serialization_as_tensor_content=true",
    "--enable_grpc_healthcheck_service=true",
    "--enable_cors_support=true",
    "--rest_api_timeout_in_ms=300",
)


class RunningServer:
    """An embedded server on a loop and thread of its own. *grpc* is HOST:PORT, *url* that of the models over REST."""

    def __init__(self, *flags: str) -> None:
        self._ready: Future[tuple[str, str, asyncio.AbstractEventLoop]] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(flags,))
        self._thread.start()
        self.grpc, rest, self._loop = self._ready.result(timeout=60)
        self.url = f"http://{rest}/v1/models"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=30)

    def _run(self, flags: tuple[str, ...]) -> None:
        from head_service.serving.flags import parse_flags
        from head_service.serving.listening import listening
        from head_service.serving.server import running
        from head_service.serving.settings import read_settings

        given = ["--port=0", "--rest_api_port=0", "--allow_foreign_models=true", *flags]

        async def serve() -> None:
            settings = read_settings(parse_flags(given))
            with listening(settings.flags) as listener:
                async with running(settings, listener) as (rpc, rest):
                    self._ready.set_result((rpc, rest, asyncio.get_running_loop()))
                    await self._stop.wait()

        try:
            asyncio.run(serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models' directory, with a configuration that serves all versions of each."""
    from tests.contract.make_models import make_models

    home = tmp_path_factory.mktemp("contract")
    make_models(home)
    configs = [
        f'config {{ name: "{name}" base_path: "{home / name}" model_platform: "tensorflow" model_version_policy {{ all {{}} }} }}'
        for name in ("session", "module", "keras")
    ]
    (home / "models.config").write_text(f"model_config_list {{ {' '.join(configs)} }}")
    return home


@pytest.fixture(scope="session")
def servers(home: Path) -> Iterator[tuple[RunningServer, RunningServer]]:
    plain = RunningServer(f"--model_config_file={home / 'models.config'}")
    other = RunningServer("--model_name=module", f"--model_base_path={home / 'module'}", *OTHER_FLAGS)
    try:
        yield plain, other
    finally:
        plain.stop()
        other.stop()


@pytest.fixture(scope="session")
def official(servers: tuple[RunningServer, RunningServer], home: Path) -> dict[str, Any]:
    """What the official client saw; it labels version 1 of `session` as `stable` on its way."""
    plain, other = servers
    command = [sys.executable, "-m", "tests.contract.official_calls", plain.grpc, other.grpc, str(home)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    seen: dict[str, Any] = json.loads(ended.stdout)
    return seen


@pytest.fixture(scope="session")
def url(servers: tuple[RunningServer, RunningServer], official: dict[str, Any]) -> str:
    """The plain server's models over REST, with the label set."""
    assert official["reload"] == ["OK", ""]
    return servers[0].url


@pytest.fixture(scope="session")
def other_url(servers: tuple[RunningServer, RunningServer]) -> str:
    """The other server's models over REST."""
    return servers[1].url
