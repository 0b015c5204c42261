"""Writes a table's folder (`backend.tables` says what is in it) and refuses what a table may not hold.

Rows pass through in blocks: what stays in memory is 20 bytes a key, whatever the width.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from embedding_service.backend import FloatArray
from embedding_service.backend.tables import FILES, HashKeys, hash_keys
from embedding_service.models.errors import PreparationError

Row = tuple[bytes, FloatArray]
"""A key as it stands in the source, and its vector, float32 [width]."""

MAX_WIDTH: Final = 65_536
MAX_KEY_BYTES: Final = 4096
_HEADER_BYTES: Final = 128
_BLOCK_BYTES: Final = 1 << 22
_MAX_KEYS: Final = 1 << 32
_NOT_UTF8_AT_MOST: Final = 0.1


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the rows: those kept, and those left out."""

    num_keys: int
    width: int
    is_lowercase: bool
    num_duplicates: int
    num_not_utf8: int


def check_width(width: int, path: Path) -> None:
    """Refuse rows of no numbers, or of more than `MAX_WIDTH`.

    Raises:
        PreparationError: *width* is such.
    """
    if not 0 < width <= MAX_WIDTH:
        raise PreparationError(f"{path} has rows of {width} numbers; a table has 1 to {MAX_WIDTH}")


def write_table(rows: Iterable[Row], folder: Path, *, hash_keys: HashKeys = hash_keys) -> Written:
    """Write *rows*, all of one width, into *folder*, which exists and is empty; every file is on disk on return.

    Of rows with the same key the first is kept. Keys that are not UTF-8 are left out, since word2vec cuts long words in the
    middle of a character; where they are more than a tenth, the whole table is in some other encoding and is refused.

    Raises:
        PreparationError: a number is not finite, a key is empty or too long, or there are no keys.
        OSError: the disk is full, or *folder* cannot be written.
    """
    spool = _Spool(folder, hash_keys)
    spool.write(iter(rows))
    hashes, lengths = spool.hashes, spool.lengths
    order = np.argsort(hashes, kind="stable")
    repeated = _find_repeated(folder, order, hashes, lengths)
    if len(repeated):
        is_kept = np.ones(len(hashes), dtype=bool)
        is_kept[repeated] = False
        _leave_out(folder, spool.width, lengths, is_kept)
        hashes, lengths = hashes[is_kept], lengths[is_kept]
        order = np.argsort(hashes, kind="stable")
    _finish(folder, "vectors", (len(hashes), spool.width))
    _finish(folder, "keys", (int(lengths.sum()),))
    _write_array(folder, "offsets", _offsets(lengths))
    _write_array(folder, "hashes", hashes[order])
    _write_array(folder, "rows", order.astype("<u4"))
    return Written(len(hashes), spool.width, spool.is_lowercase, len(repeated), spool.num_not_utf8)


class _Spool:
    """Passes rows on to the files *vectors* and *keys*, and keeps of each key its hash and length."""

    def __init__(self, folder: Path, hash_keys: HashKeys) -> None:
        self._folder = folder
        self._hash_keys = hash_keys
        self._hashes: list[NDArray[np.uint64]] = []
        self._lengths: list[NDArray[np.uint32]] = []
        self._num_rows = 0
        self.width = 0
        self.is_lowercase = True
        self.num_not_utf8 = 0

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """Of the keys written, in order."""
        return np.concatenate(self._hashes)

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """In bytes, of the keys written, in order."""
        return np.concatenate(self._lengths)

    def write(self, rows: Iterator[Row]) -> None:
        """Write all *rows* and check that there were some to keep."""
        with _path(self._folder, "vectors").open("wb") as vectors, _path(self._folder, "keys").open("wb") as blob:
            vectors.write(bytes(_HEADER_BYTES))
            blob.write(bytes(_HEADER_BYTES))
            for keys, block in _blocks(rows):
                self._write_block(keys, block, vectors, blob)
        if not self._num_rows:
            raise PreparationError("the table has no keys; give one that has some")
        if self.num_not_utf8 > self._num_rows * _NOT_UTF8_AT_MOST:
            raise PreparationError(
                f"{self.num_not_utf8} of {self._num_rows} keys are not UTF-8; convert the table from its encoding to UTF-8"
            )
        if self._num_rows - self.num_not_utf8 >= _MAX_KEYS:
            raise PreparationError(f"the table has more than {_MAX_KEYS} keys; give its more frequent ones")

    def _write_block(self, keys: list[bytes], block: FloatArray, vectors: BinaryIO, blob: BinaryIO) -> None:
        self._check(keys, block)
        self._num_rows += len(keys)
        self.width = block.shape[1]
        text = _decode(keys)
        if text is None:
            is_kept = [_decode([key]) is not None for key in keys]
            self.num_not_utf8 += is_kept.count(False)
            keys, block = [key for key, kept in zip(keys, is_kept, strict=True) if kept], block[is_kept]
            text = _decode(keys) or ""
        self.is_lowercase = self.is_lowercase and text == text.lower()
        self._hashes.append(self._hash_keys(keys))
        self._lengths.append(np.fromiter(map(len, keys), dtype=np.uint32, count=len(keys)))
        vectors.write(block.data)
        blob.write(b"".join(keys))

    def _check(self, keys: list[bytes], block: FloatArray) -> None:
        if not np.isfinite(block).all():
            bad = self._num_rows + 1 + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise PreparationError(f"row {bad} of the table has a number that is not finite; mend it or leave it out")
        for index, key in enumerate(keys):
            if not 0 < len(key) <= MAX_KEY_BYTES:
                what = "no key" if not key else f"a key of more than {MAX_KEY_BYTES} bytes"
                raise PreparationError(f"row {self._num_rows + 1 + index} of the table has {what}; mend it or leave it out")


def _blocks(rows: Iterator[Row]) -> Iterator[tuple[list[bytes], FloatArray]]:
    """The rows, some at a time: keys and float32 [keys, width]."""
    for first in rows:
        width = len(first[1])
        part = [first, *islice(rows, max(1, _BLOCK_BYTES // (4 * width)) - 1)]
        block = np.empty((len(part), width), dtype="<f4")
        for target, (_, row) in zip(block, part, strict=True):
            target[:] = row
        yield [key for key, _ in part], block


def _decode(keys: list[bytes]) -> str | None:
    """The keys as one text, None where one is not UTF-8; a character cut at a key's end is not made whole by the next."""
    try:
        return b"\n".join(keys).decode()
    except UnicodeDecodeError:
        return None


def _find_repeated(
    folder: Path, order: NDArray[np.int64], hashes: NDArray[np.uint64], lengths: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """The rows whose key an earlier row has. *order* sorts the hashes, equal ones by row; only these can be equal keys."""
    is_alike = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if not len(is_alike):
        return is_alike
    blob = np.memmap(_path(folder, "keys"), dtype=np.uint8, mode="r", offset=_HEADER_BYTES)
    keys, offsets = blob.data, _offsets(lengths)
    seen: set[bytes] = set()
    repeated, previous = [], -2
    for place in is_alike.tolist():
        if place != previous + 1:
            seen = {_slice(keys, offsets, order[place])}
        key = _slice(keys, offsets, order[place + 1])
        if key in seen:
            repeated.append(int(order[place + 1]))
        seen.add(key)
        previous = place
    return np.array(sorted(repeated), dtype=np.int64)


def _slice(blob: memoryview, offsets: NDArray[np.int64], row: int) -> bytes:
    return bytes(blob[offsets[row] : offsets[row + 1]])


def _leave_out(folder: Path, width: int, lengths: NDArray[np.uint32], is_kept: NDArray[np.bool_]) -> None:
    """Move the rows kept together, in both files, in place: what is written lies never after what is read."""
    with _path(folder, "vectors").open("r+b") as file:
        _move_together(file, np.full(len(lengths), 4 * width), is_kept)
    with _path(folder, "keys").open("r+b") as file:
        _move_together(file, lengths, is_kept)


def _move_together(file: BinaryIO, lengths: NDArray[Any], is_kept: NDArray[np.bool_]) -> None:
    offsets = _offsets(lengths) + _HEADER_BYTES
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_kept, [False]]).astype(np.int8)))
    written = _HEADER_BYTES
    for first, last in edges.reshape(-1, 2).tolist():
        position, stop = int(offsets[first]), int(offsets[last])
        while position < stop:
            file.seek(position)
            part = file.read(min(_BLOCK_BYTES, stop - position))
            file.seek(written)
            file.write(part)
            position += len(part)
            written += len(part)
    file.truncate(written)


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype("<i8")


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _finish(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    """Write the header whose room was left, and wait until the file is on disk."""
    with _path(folder, name).open("r+b") as file:
        file.write(npy_header(FILES[name], shape))
        file.flush()
        os.fsync(file.fileno())


def _write_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    with _path(folder, name).open("wb") as file:
        file.write(npy_header(FILES[name], array.shape))
        file.write(np.ascontiguousarray(array, dtype=FILES[name]).data)
        file.flush()
        os.fsync(file.fileno())


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The first 128 bytes of a .npy file, version 1.0 (numpy.lib.format): the shape may be written when it is known."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}"
    start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return start + text.encode().ljust(_HEADER_BYTES - 11) + b"\n"
