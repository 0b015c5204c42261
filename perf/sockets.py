"""Many connections under one watch, without an event loop's transports.

asyncio watches one thing, the kernel's list of those that are ready, and is told once of all that came meanwhile.
"""

import asyncio
import contextlib
import select
import socket
from typing import Final

_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_MAX_BYTES: Final = 262_144
"""Taken from a connection at a time."""

Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


async def resolved(host: str, port: int) -> Address:
    """Where *host* is to be found.

    Raises:
        OSError: nowhere.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A name may stand for addresses of both families, and a server may listen on the older one alone.
    family, _, _, _, address = min(found, key=lambda one: one[0] is not socket.AF_INET)
    return family, (address[0], int(address[1]), *address[2:])


class Sockets:
    """Owner of all sockets it connects. Used from the event loop it was made on, until `close`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}
        self._buffer = memoryview(bytearray(_MAX_BYTES))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    def connect(self, address: Address, protocol: asyncio.Protocol) -> None:
        """Have *protocol* talk to *address*; it may write at once, and hears in `connection_lost` where that does not succeed."""
        family, place = address
        wire = Wire(self, protocol)
        protocol.connection_made(wire)
        try:
            ours = wire.socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                ours.connect(place)
        except OSError as error:
            self._loop.call_soon(wire.end, error)
            return
        self._wires[ours.fileno()] = wire
        self._epoll.register(ours, _READ | _WRITE)

    def close(self) -> None:
        """End all connections."""
        for wire in list(self._wires.values()):
            wire.end(None)
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def watch(self, wire: "Wire", *, writable: bool) -> None:
        """Hear of *wire* when there is something to read and, where *writable*, when it can be written."""
        assert wire.socket is not None
        self._epoll.modify(wire.socket, _READ | _WRITE if writable else _READ)

    def forget(self, wire: "Wire") -> None:
        """*wire* ends."""
        if wire.socket is not None and self._wires.pop(wire.socket.fileno(), None) is not None:
            self._epoll.unregister(wire.socket)

    def _turn(self) -> None:
        for number, events in self._epoll.poll(0):
            wire = self._wires.get(number)
            # One that was ended by what another one said is not there any more.
            if wire is None:
                continue
            if events & _WRITE:
                wire.flush()
            if events & ~_WRITE:
                wire.read(self._buffer)


class Wire(asyncio.Transport):
    """One connection: what a protocol writes to. What is written before it is established waits."""

    def __init__(self, sockets: Sockets, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.socket: socket.socket | None = None
        self._sockets = sockets
        self._protocol = protocol
        self._unsent = b""
        self._is_waiting = True
        """For the socket to become writable."""
        self._has_ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio."""
        if self._has_ended:
            return
        self._unsent += data
        if not self._is_waiting:
            self.flush()

    def flush(self) -> None:
        """Send what can be sent now."""
        if self._has_ended or self.socket is None:
            return
        try:
            num_sent = self.socket.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            num_sent = 0
        except OSError as error:
            self.end(error)
            return
        self._unsent = self._unsent[num_sent:]
        if bool(self._unsent) != self._is_waiting:
            self._is_waiting = bool(self._unsent)
            self._sockets.watch(self, writable=self._is_waiting)

    def read(self, buffer: memoryview) -> None:
        """Tell what has come, or that nothing more will."""
        if self._has_ended or self.socket is None:
            return
        try:
            count = self.socket.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(error)
            return
        if count:
            self._protocol.data_received(buffer[:count])  # type: ignore[arg-type]  # whoever keeps it copies it
        else:
            self.end(None)

    def is_closing(self) -> bool:
        """See asyncio."""
        return self._has_ended

    def close(self) -> None:
        """As `abort`: nobody waits for what is still unsent."""
        self.abort()

    def abort(self) -> None:
        """See asyncio."""
        self.end(None)

    def end(self, error: Exception | None) -> None:
        """It is over, because of *error* where there is one; the protocol hears of it, once."""
        if self._has_ended:
            return
        self._has_ended = True
        self._sockets.forget(self)
        if self.socket is not None:
            self.socket.close()
        self._protocol.connection_lost(error)
