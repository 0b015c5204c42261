"""The API's port: opened, or told in a sentence why it cannot be had."""

import signal
import socket

import uvicorn

from head_service.control.app import create_app
from head_service.control.errors import ControlError
from head_service.control.keep import Kept
from head_service.control.settings import ServeSettings


class Server(uvicorn.Server):
    """uvicorn, telling where it listens once it does."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            print(f"control {self._url}", flush=True)


def listen(settings: ServeSettings, kept: Kept) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ControlError: the port is taken, or the keys cannot be read.
    """
    app = create_app(settings, kept)
    try:
        listener = socket.create_server((settings.host, settings.port), backlog=512)
    except OSError as error:
        raise ControlError(f"port {settings.port} cannot be had ({error.strerror}); choose another with --port") from None
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        timeout_keep_alive=30,
    )
    # uvicorn raises the signal it was stopped by once more when it has drained; that is no reason to end as if killed.
    signal.signal(signal.SIGTERM, lambda *_: None)
    Server(config, f"http://{settings.host}:{listener.getsockname()[1]}").run([listener])
