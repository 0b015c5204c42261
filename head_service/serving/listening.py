"""The ports, asked for before TensorFlow is loaded: one that is taken is told in a second."""

import contextlib
import socket
from collections.abc import Iterator

from clients.wire.listening import listen
from head_service.serving.flags import Flags


@contextlib.contextmanager
def listening(flags: Flags) -> Iterator[socket.socket]:
    """The REST port's listener, for as long as the context lasts, when the gRPC port can be had too.

    Raises:
        ListenError: one of them cannot be had.
    """
    if flags.port:
        # Only tried: gRPC binds for itself.
        listen(flags.host, flags.port, "--port").close()
    with listen(flags.host, flags.rest_api_port, "--rest_api_port") as listener:
        yield listener
