"""`python -m gateway`: serves until SIGTERM or SIGINT, then drains. Prints one line to stdout when it listens."""

import asyncio
import gc
import logging
import os
import socket
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from clients.wire.http_server import AnnouncingServer, HttpBounds, http_config
from gateway.app import OPEN_ENDED, create_app
from gateway.settings import Settings

_log = logging.getLogger("gateway")


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
    bounds = HttpBounds(receive_seconds=settings.receive_timeout_seconds, open_ended=OPEN_ENDED)
    config = http_config(create_app(settings), drain_seconds=settings.drain_seconds, bounds=bounds)
    try:
        # What was imported lives as long as the process: the collector need not look at it again and again.
        gc.freeze()
        AnnouncingServer(config, f"gateway {url}").run([listener])
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
