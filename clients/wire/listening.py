"""The ports of a service: opened, or a sentence that says why they cannot be had and what to do."""

import errno
import socket
from typing import Final

TOO_FEW_FILES: Final = "too few files may be open; raise the limit, ulimit -n"

_BACKLOG: Final = 512


class ListenError(Exception):
    """A port could not be had; the message is one sentence for operators."""


def listen(host: str, port: int, flag: str, *, backlog: int = _BACKLOG) -> socket.socket:
    """What listens on *port* of *host*, 0 for any free one. *flag* is what sets the port.

    *host* is a name or an address of IPv4, or an address of IPv6; "::" is all addresses, of both kinds.

    Raises:
        ListenError: it cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=backlog, dualstack_ipv6=host == "::")
    except (OSError, UnicodeError) as error:
        raise ListenError(why_not(error, host, port, flag)) from None
    # uvloop does so by itself; asyncio does not for sockets that do not name their protocol, and without it the body of an answer
    # waits 40 ms for the caller to confirm the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def why_not(error: BaseException | None, host: str, port: int, flag: str) -> str:
    """What *error*, met when *port* of *host* was to be opened, means for whoever started the service."""
    number = getattr(error, "errno", None) or 0
    # Below 0 are those of the look-up of a name.
    if isinstance(error, UnicodeError) or number < 0 or number == errno.EADDRNOTAVAIL:
        return f"{host!r} is no address of this machine; choose another with --host"
    if number in {errno.EMFILE, errno.ENFILE}:
        return TOO_FEW_FILES
    if number in {errno.EACCES, errno.EPERM}:
        return f"port {port} is not ours to open; choose one above 1023 with {flag}"
    if number == errno.EADDRINUSE:
        return f"port {port} is taken; stop what listens there or choose another with {flag} (0: any free one)"
    return f"port {port} cannot be opened ({error}); choose another with {flag}"
