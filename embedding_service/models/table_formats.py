"""Readers of vector files: each yields (key, row), the key as bytes, the row float32 [width], and holds a few rows at a time.

A reader checks the form of its file: counts, widths, the end. What a table may hold is checked where it is written
(`models.table_files`): numbers, empty and repeated keys, UTF-8. The forms, as the original programs write them:

- word2vec text and fastText .vec: a line "count width"; then a line a row: key, numbers, single spaces between them.
- word2vec binary: the same first line; then key, space, *width* little-endian float32 and, by some writers, a line feed.
- GloVe text: as word2vec text, without the first line. A first line of two whole numbers always is a header.
- .npy with a file of keys beside it, <stem>.keys.txt, a key a line.
- fastText .bin: see `models.fasttext`.

Every text file must end with a line feed, as all these programs leave it: a file cut within its last line is then noticed.
A GloVe file cut between two lines cannot be told from a whole one.
"""

import codecs
import math
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, Final, Literal

import numpy as np

from embedding_service.backend import FloatArray
from embedding_service.models.byte_reader import ByteReader
from embedding_service.models.errors import PreparationError
from embedding_service.models.fasttext import MAGIC, read_fasttext
from embedding_service.models.table_files import MAX_KEY_BYTES, MAX_WIDTH, Row, check_width

Format = Literal["word2vec text", "word2vec binary", "glove text", "fasttext bin", "npy"]

_MAX_LINE_BYTES: Final = MAX_KEY_BYTES + 40 * MAX_WIDTH
_HEADER: Final = re.compile(rb"(\d{1,12})[ \t](\d{1,12})[ \t\r]*\n")
_NPY_MAGIC: Final = b"\x93NUMPY"
_PACKED: Final = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


def recognise(path: Path) -> Format:
    """Which form the file at *path* has, by its first bytes and its first row; its name says nothing.

    Raises:
        PreparationError: none that we read.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        first = file.readline(_MAX_LINE_BYTES)
        second = file.readline(_MAX_LINE_BYTES)
    if start.startswith(_NPY_MAGIC):
        return "npy"
    if start.startswith(MAGIC):
        return "fasttext bin"
    if start.startswith(_PACKED):
        raise PreparationError(f"{path} is compressed; unpack it and give the file inside")
    if header := _HEADER.fullmatch(_without_bom(first)):
        return "word2vec text" if _read_line(second, int(header[2])) else "word2vec binary"
    if _glove_width(_without_bom(first)):
        return "glove text"
    raise PreparationError(
        f"{path} is no table we can read; give a word2vec, GloVe or fastText file, or a .npy with its .keys.txt beside it"
    )


def read_rows(path: Path, form: Format) -> Iterator[Row]:
    """The rows of the file at *path*, in its order.

    Raises:
        PreparationError: the file is not what its form demands.
        OSError: it cannot be read.
    """
    readers = {
        "word2vec text": _read_word2vec_text,
        "word2vec binary": _read_word2vec_binary,
        "glove text": _read_glove,
        "fasttext bin": read_fasttext,
        "npy": _read_npy_and_keys,
    }
    return readers[form](path)


def keys_path(path: Path) -> Path:
    """Where the keys of the .npy file at *path* are."""
    return path.with_name(path.stem + ".keys.txt")


def _without_bom(line: bytes) -> bytes:
    return line.removeprefix(codecs.BOM_UTF8)


def _read_header(line: bytes, path: Path) -> tuple[int, int]:
    header = _HEADER.fullmatch(_without_bom(line))
    if header is None:
        raise PreparationError(f"{path} changed while it was read; start again")
    num_keys, width = int(header[1]), int(header[2])
    if not num_keys:
        raise PreparationError(f"{path} says in its first line that it has no keys; give a table that has some")
    check_width(width, path)
    return num_keys, width


def _read_word2vec_text(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        num_keys, width = _read_header(file.readline(_MAX_LINE_BYTES), path)
        num_rows = 0
        for row in _read_lines(file, path, width, first_line=2):
            num_rows += 1
            if num_rows <= num_keys:
                yield row
        if num_rows != num_keys:
            raise PreparationError(f"{path} says it has {num_keys} keys but has {num_rows}; it may have been cut: copy it again")


def _read_glove(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        width = _glove_width(_without_bom(file.readline(_MAX_LINE_BYTES)))
        check_width(width, path)
        file.seek(0)
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        yield from _read_lines(file, path, width, first_line=1)


def _glove_width(line: bytes) -> int:
    """How many numbers a GloVe file's first line has after its key; 0 where it is no such line."""
    width = line.count(b" ", 0, len(line.rstrip(b" \r\n")))
    return width if width and _read_line(line, width) else 0


def _read_lines(file: BinaryIO, path: Path, width: int, *, first_line: int) -> Iterator[Row]:
    number = first_line
    while line := file.readline(_MAX_LINE_BYTES):
        if not line.endswith(b"\n"):
            raise PreparationError(f"line {number} of {path} has no end; the file may have been cut: copy it again")
        row = _read_line(line, width)
        if row is None:
            raise PreparationError(
                f"line {number} of {path} is not a key and {width} numbers with single spaces between; mend it or leave it out"
            )
        yield row
        number += 1


def _read_line(line: bytes, width: int) -> Row | None:
    """The key and the *width* numbers of *line*; None where it has not exactly these. Keys may have spaces inside."""
    fields = line.rstrip(b" \r\n").rsplit(b" ", width)
    if len(fields) != width + 1 or b"_" in line[len(fields[0]) :]:
        return None
    key = fields[0]
    if key.startswith(b" ") or key.endswith(b" ") or (b" " in key and _is_number(key.rsplit(b" ", 1)[1])):
        return None  # a row that is too long, not a key with a space
    try:
        numbers = list(map(float, fields[1:]))
    except ValueError:
        return None
    with np.errstate(over="ignore"):  # infinite then, and refused as such
        return key, np.array(numbers, dtype=np.float32)


def _is_number(field: bytes) -> bool:
    try:
        return not math.isnan(float(field))
    except ValueError:
        return False


def _read_word2vec_binary(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        num_keys, width = _read_header(file.readline(_MAX_LINE_BYTES), path)
        if path.stat().st_size - file.tell() < num_keys * (4 * width + 1):
            raise PreparationError(f"{path} is smaller than its first line says; it may have been cut: copy it again")
        reader = ByteReader(file, path)
        for number in range(1, num_keys + 1):
            key = reader.take_until(b" ", at_most=MAX_KEY_BYTES)
            if key is None:
                raise PreparationError(f"row {number} of {path} begins with no key; the file is damaged: copy it again")
            yield key.removeprefix(b"\n"), np.frombuffer(reader.take(4 * width), dtype="<f4")
        if not reader.is_at_end and (reader.take(1) != b"\n" or not reader.is_at_end):
            raise PreparationError(f"{path} has more than the {num_keys} keys its first line says; copy it again")


def _read_npy_and_keys(path: Path) -> Iterator[Row]:
    keys = keys_path(path)
    if not keys.is_file():
        raise PreparationError(f"{path} has no {keys.name} beside it; write there the key of each row, one a line")
    yield from pair_rows(path, _read_keys(keys))


def _read_keys(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        while line := file.readline(MAX_KEY_BYTES + 3):
            if not line.endswith(b"\n"):
                raise PreparationError(
                    f"{path} has a key without an end; end each with a line feed, after at most {MAX_KEY_BYTES} bytes"
                )
            yield line[:-1].removesuffix(b"\r")


def pair_rows(path: Path, keys: Iterator[bytes]) -> Iterator[Row]:
    """The rows of the .npy file at *path*, float16, float32 or float64 [n, width], each with its key.

    Raises:
        PreparationError: it is no such file, or there are more or fewer keys than rows.
    """
    array = open_vectors(path)
    for row, key in zip_longest(_rows_of(array), keys):
        if row is None or key is None:
            what = "more" if row is None else "fewer"
            raise PreparationError(f"{path} has {len(array)} rows and there are {what} keys; give one key a row")
        yield key, row


def open_vectors(path: Path) -> FloatArray:
    """Map the .npy file at *path*: any of numpy's real float types [n, width].

    Raises:
        PreparationError: it is something else, or not whole.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        is_whole = path.stat().st_size == array.offset + array.nbytes
    except Exception as error:  # what numpy raises on a damaged header is open-ended
        raise PreparationError(f"{path} is not a whole .npy file; write it again with numpy.save") from error
    if array.dtype.kind != "f" or array.ndim != 2 or not is_whole:
        raise PreparationError(f"{path} is not a table of floating point numbers, rows by width; write it again with numpy.save")
    check_width(array.shape[1], path)
    return array


def _rows_of(array: FloatArray) -> Iterator[FloatArray]:
    for start in range(0, len(array), 1024):
        with np.errstate(over="ignore"):
            block = np.asarray(array[start : start + 1024]).astype(np.float32)
        yield from block
