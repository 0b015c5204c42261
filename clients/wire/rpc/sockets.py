"""Addresses, and where a server listens."""

import contextlib
import os
import socket
import stat
from typing import Any, Final

BACKLOG: Final = 1_024


def parse_address(address: str) -> tuple[str, str, int]:
    """(path, "", 0) of `unix:path`, or ("", host, port) of `host:port`, also behind `dns:///`, `ipv4:` and `ipv6:`.

    Raises:
        ValueError: it is neither.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        if not path:
            raise ValueError(f"{address!r} is not unix:PATH")
        return path, "", 0
    plain = address.removeprefix("dns:").removeprefix("///").removeprefix("ipv4:").removeprefix("ipv6:")
    host, _, port = plain.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535 or not host:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return "", host.removeprefix("[").removesuffix("]"), int(port)


def tcp_socket(host: str, port: int) -> socket.socket:
    """One that listens on *port* of *host*, "" for all addresses.

    Raises:
        OSError: it cannot be.
    """
    family, kind, number, _, place = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind, number)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6 and host == "::":
        # As gRPC does: all addresses, of both kinds.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return _listening(listener, place)


def unix_socket(path: str) -> socket.socket:
    """One that listens at *path*, in place of what a server left there.

    Raises:
        OSError: it cannot be.
    """
    with contextlib.suppress(FileNotFoundError):
        # What a server that was killed left.
        if stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 (may be abstract or long)
            os.unlink(path)  # noqa: PTH108
    return _listening(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)


def _listening(listener: socket.socket, place: Any) -> socket.socket:
    """*listener* at *place*, now and not when it starts: until somebody listens, another server can bind the same port."""
    try:
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
