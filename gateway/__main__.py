"""`python -m gateway`: serves until SIGTERM or SIGINT, then drains. Prints one line to stdout when it listens."""

import asyncio
import gc
import logging
import os
import socket
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from gateway.app import create_app
from gateway.settings import Settings

_log = logging.getLogger("gateway")


class Server(uvicorn.Server):
    """uvicorn, telling where it listens once it does."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            print(f"gateway {self._url}", flush=True)


def main() -> int:
    """Exit status: 0 after a drain, 1 when it could not start (one sentence says why), 2 for settings that make no sense."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="gateway: %(message)s")
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            _log.error("%s: %s", ".".join(map(str, problem["loc"])), problem["msg"])
        return 2
    try:
        listener = socket.create_server((settings.host, settings.port), backlog=2_048)
    except OSError as error:
        _log.error("port %d is taken or not ours (%s); choose another with --port", settings.port, error.strerror)
        return 1
    url = f"http://{settings.host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing here asks for the caller's address.
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        timeout_keep_alive=30,
    )
    try:
        # What was imported lives as long as the process: the collector need not look at it again and again.
        gc.freeze()
        Server(config, url).run([listener])
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
