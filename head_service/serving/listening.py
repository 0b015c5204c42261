"""The ports, asked for before TensorFlow is loaded: one that is taken is told in a second."""

import contextlib
import socket
from collections.abc import Iterator

from head_service.serving.flags import Flags


class ListenError(Exception):
    """A port could not be had; the message is one sentence."""


@contextlib.contextmanager
def listening(flags: Flags) -> Iterator[socket.socket]:
    """The REST port's listener, for as long as the context lasts, when the gRPC port can be had too.

    Raises:
        ListenError: one of them is taken.
    """
    if flags.port:
        # Only tried: gRPC binds for itself.
        _bound(flags.host, flags.port, "--port").close()
    with _bound(flags.host, flags.rest_api_port, "--rest_api_port") as listener:
        yield listener


def taken(port: int, flag: str) -> ListenError:
    """What to say about it."""
    return ListenError(f"port {port} is taken; stop what listens there or choose another with {flag} (0: any free one)")


def _bound(host: str, port: int, flag: str) -> socket.socket:
    try:
        listener = socket.create_server((host, port))
    except socket.gaierror:
        raise ListenError("--host is no address of this machine") from None
    except OSError:
        raise taken(port, flag) from None
    # asyncio sets it only for sockets that name their protocol, and without it the body of an answer waits 40 ms for the
    # caller to confirm the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
