"""Reads a binary file from its beginning to its end, and notices where it ends too early."""

import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

from embedding_service.models.errors import PreparationError

_READ_BYTES: Final = 1 << 20


class ByteReader:
    """Reads *file*, of name *path*, from where it stands; *position* counts the bytes taken since."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._buffer = b""
        self._start = 0
        self.position = 0

    def take(self, size: int) -> bytes:
        """The next *size* bytes.

        Raises:
            PreparationError: there are fewer.
        """
        if not self._holds(size):
            raise PreparationError(f"{self._path} ends too early; it may have been cut: copy it again")
        taken = self._buffer[self._start : self._start + size]
        self._start += size
        self.position += size
        return taken

    def take_until(self, mark: bytes, *, at_most: int) -> bytes | None:
        """What stands before the next byte *mark*, which is taken too; None where that is more than *at_most* bytes away.

        Raises:
            PreparationError: the file ends first.
        """
        self._holds(at_most + 1)
        found = self._buffer.find(mark, self._start, self._start + at_most + 1)
        if found < 0 and len(self._buffer) - self._start > at_most:
            return None
        return self.take(found - self._start + 1 if found >= 0 else at_most + 1)[:-1]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """The next values, by *layout* of the struct module."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    @property
    def is_at_end(self) -> bool:
        """No byte is left."""
        return not self._holds(1)

    def _holds(self, size: int) -> bool:
        held = len(self._buffer) - self._start
        while held < size:
            more = self._file.read(max(_READ_BYTES, size - held))
            if not more:
                return False
            self._buffer = self._buffer[self._start :] + more
            self._start = 0
            held = len(self._buffer)
        return True
