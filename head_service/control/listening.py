"""The API's port: opened, or told in a sentence why it cannot be had."""

import socket

from clients.wire.http_server import AnnouncingServer, http_config
from head_service.control.app import create_app
from head_service.control.errors import ControlError
from head_service.control.keep import Kept
from head_service.control.settings import ServeSettings


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
    config = http_config(app, drain_seconds=settings.drain_seconds)
    AnnouncingServer(config, f"control http://{settings.host}:{listener.getsockname()[1]}").run([listener])
