"""`python -m gateway`: serves until SIGTERM or SIGINT, then drains. Prints one line to stdout when it listens."""

import asyncio
import logging
import os
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from clients.wire.addresses import host_port
from clients.wire.credentials import CredentialsError
from clients.wire.guard import is_loopback
from clients.wire.http_server import (
    AnnouncingServer,
    HttpBounds,
    allow_many_connections,
    calm_collector,
    http_config,
    queues_at,
)
from clients.wire.keys import KeysError
from clients.wire.listening import ListenError, listen
from clients.wire.logs import problems_of
from gateway import logs
from gateway.admin import ADMIN_HOST
from gateway.app import OPEN_ENDED, MissingExtra, create_app, door_of
from gateway.drain import Drain
from gateway.settings import Settings

_log = logging.getLogger("gateway")


def main() -> int:
    """Exit status: 0 after a drain, 1 when it could not start (one sentence says why), 2 for settings that make no sense."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logs.configure()
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        for problem in problems_of(error):
            _log.error("%s", problem)
        return 2
    logs.configure(settings.log_format)
    try:
        allow_many_connections()
        listener = listen(settings.host, settings.port, "--port", backlog=2_048)
        admin = None if settings.admin_port is None else listen(ADMIN_HOST, settings.admin_port, "--admin-port")
        drain = Drain()
        app = create_app(settings, admin, drain)
        queues = queues_at(listener)
    except (OSError, ListenError, KeysError, CredentialsError, MissingExtra) as error:
        _log.error("%s", error)
        return 1
    if admin is not None:
        _log.warning("admin http://%s:%d", ADMIN_HOST, admin.getsockname()[1])
    if settings.keys_file is None and not is_loopback(settings.host):
        _log.warning("whoever reaches %s may ask: there are no keys", settings.host)
    url = f"http://{host_port(settings.host, listener.getsockname()[1])}"
    bounds = HttpBounds(receive_seconds=settings.receive_timeout_seconds, open_ended=OPEN_ENDED)
    config = http_config(app, drain_seconds=settings.drain_seconds, bounds=bounds, door=door_of(settings))
    try:
        calm_collector()
        server = AnnouncingServer(config, f"gateway {url}", on_stop=drain.begin, delay_seconds=settings.drain_delay_seconds)
        server.run(queues)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
