"""A transport that, while calls are many, sends what is written in one turn of the event loop together, at the turn's end.

The answers of a batch, and the calls that follow them, are written in one turn. Each by itself would cost a system call and wake
the other end, which on cores that are busy costs whoever is interrupted as well. A call that is alone waits for nothing.
"""

import asyncio
from collections.abc import Sized
from typing import Any, Final, cast

from clients.wire.delivery import is_by_tls, num_arrived, num_on_the_way

MAX_KEPT_BYTES: Final = 65_536
"""More is sent before the turn is over."""

Data = bytes | bytearray | memoryview


class TurnTransport(asyncio.Transport):
    """What a `Connection` needs of *transport*, which keeps its protocol. *streams*: those that are open at any time."""

    def __init__(self, transport: asyncio.BaseTransport, streams: Sized) -> None:
        super().__init__()
        self._transport = cast("asyncio.Transport", transport)
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._is_by_tls = is_by_tls(transport)
        self._num_written = 0
        self._kept: list[Data] = []
        self._num_kept = 0

    def write(self, data: Data) -> None:
        """Bytes to send, after all that came before."""
        self._num_written += len(data)
        if not self._kept:
            if len(self._streams) < 2:
                self._transport.write(data)
                return
            self._loop.call_soon(self._send)
        self._kept.append(data)
        self._num_kept += len(data)
        if self._num_kept > MAX_KEPT_BYTES:
            self._send()

    def close(self) -> None:
        """Hang up once all is sent."""
        self._send()
        self._transport.close()

    def write_eof(self) -> None:
        """Nothing comes after what was written."""
        self._send()
        self._transport.write_eof()

    def abort(self) -> None:
        """Hang up at once; what is not sent is lost."""
        self._forget()
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        """Bytes not sent yet."""
        return self._num_kept + self._transport.get_write_buffer_size()

    @property
    def is_waiting(self) -> bool:
        """Whether some of what was written has not left yet; by TLS, has not arrived."""
        return self._num_kept > 0 or self._num_unsent() > 0

    @property
    def num_gone(self) -> int:
        """Bytes that have left, as far as the transport tells; by TLS it does not, and it is those that have arrived."""
        arrived = num_arrived(self._transport) if self._is_by_tls else None
        return self._num_written - self.get_write_buffer_size() if arrived is None else arrived

    def is_closing(self) -> bool:
        """See `asyncio.Transport`."""
        return self._transport.is_closing()

    def can_write_eof(self) -> bool:
        """See `asyncio.Transport`."""
        return self._transport.can_write_eof()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `asyncio.Transport`."""
        return self._transport.get_extra_info(name, default)

    def _num_unsent(self) -> int:
        return num_on_the_way(self._transport) if self._is_by_tls else self._transport.get_write_buffer_size()

    def _send(self) -> None:
        data = b"".join(self._kept)
        self._forget()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _forget(self) -> None:
        self._kept.clear()
        self._num_kept = 0
