"""What has arrived of the bytes that were written to a connection, as the kernel tells it.

A transport tells what it still keeps, which is enough where it is the only one that keeps any: by TLS there is another below it,
of which it tells nothing. The kernel knows of both what left and what the other end's kernel has said to have got. That is of
Linux and of TCP; where it is not known, no connection is taken for one that stands still.
"""

import asyncio
import fcntl
import socket
import sys
import termios
from typing import Final

_ACKNOWLEDGED: Final = slice(120, 128)
"""`tcpi_bytes_acked` of `struct tcp_info` in linux/tcp.h: unsigned, 64 bits, in Linux 4.1 and later."""


def is_by_tls(transport: asyncio.BaseTransport) -> bool:
    """Whether what is written to *transport* is encrypted."""
    return transport.get_extra_info("ssl_object") is not None


def num_arrived(transport: asyncio.BaseTransport) -> int | None:
    """Bytes that the other end has acknowledged since the connection began, those of TLS itself included; None where unknown."""
    connection, option = transport.get_extra_info("socket"), getattr(socket, "TCP_INFO", None)
    if connection is None or option is None:
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, option, _ACKNOWLEDGED.stop)
    except OSError:
        return None
    return int.from_bytes(info[_ACKNOWLEDGED], sys.byteorder) if len(info) == _ACKNOWLEDGED.stop else None


def num_on_the_way(transport: asyncio.BaseTransport) -> int:
    """Bytes that the kernel keeps until the other end has acknowledged them; 0 where unknown."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return 0
    try:
        found = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(found, sys.byteorder)
