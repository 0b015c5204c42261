"""The API's port: opened, or told in a sentence why it cannot be had."""

from clients.wire import listening
from clients.wire.addresses import host_port
from clients.wire.http_server import AnnouncingServer, HttpBounds, http_config
from head_service.control.app import create_app
from head_service.control.errors import ControlError
from head_service.control.keep import Kept
from head_service.control.settings import ServeSettings


def listen(settings: ServeSettings, kept: Kept) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ControlError: the port cannot be had, or the keys cannot be read.
    """
    app = create_app(settings, kept)
    try:
        listener = listening.listen(settings.host, settings.port, "--port")
    except listening.ListenError as error:
        raise ControlError(str(error)) from None
    # An upload goes on for as long as it does not rest; the application bounds how large it is.
    bounds = HttpBounds(receive_seconds=settings.body_timeout_seconds, open_ended=("/v1/data",))
    config = http_config(app, drain_seconds=settings.drain_seconds, bounds=bounds)
    AnnouncingServer(config, f"control http://{host_port(settings.host, listener.getsockname()[1])}").run([listener])
