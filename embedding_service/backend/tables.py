"""A table of vectors by key (words, entities), read where it lies on disk.

Its folder holds five .npy files, written by `models.table_files`: *vectors* float32 [n, width]; *keys* uint8, the keys' UTF-8
one after another; *offsets* int64 [n + 1], where in it each begins; *hashes* uint64 [n], sorted; *rows* uint32 [n], whose
hash each is. All are memory-mapped: a process holds what it reads of them, and processes share it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedding_service.backend import BackendError, FloatArray
from embedding_service.backend.words import read_texts
from embedding_service.models.errors import PreparationError

HashKeys = Callable[[Sequence[bytes]], NDArray[np.uint64]]

FILES: Final = {"vectors": "<f4", "keys": "|u1", "offsets": "<i8", "hashes": "<u8", "rows": "<u4"}
"""What a table's folder holds, as <name>.npy, and of what type."""

_GATHERED_ROWS: Final = 4096


def hash_keys(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """A 64-bit hash of each key: its BLAKE2b of 8 bytes, little-endian."""
    digests = b"".join([hashlib.blake2b(key, digest_size=8).digest() for key in keys])
    return np.frombuffer(digests, dtype="<u8")


@dataclass(frozen=True, slots=True)
class TableSpec:
    """What a table is. *is_lowercase*: no key has a capital letter, so texts are lower-cased before they are read."""

    name: str
    fingerprint: str
    width: int
    num_keys: int
    is_lowercase: bool


@dataclass(frozen=True, slots=True)
class Found:
    """*vectors* float32 [keys, width], one row a key asked for, zeros for those at the places *missing*."""

    vectors: FloatArray
    missing: tuple[int, ...]


class TextVector(NamedTuple):
    """*vector* float32 [width], the mean of the words found; *num_words* counts these and the *missing* ones."""

    vector: FloatArray
    num_words: int
    missing: tuple[str, ...]


class Table:
    """Read-only; any number of threads may be inside at once. *hash_keys* is the function the table was written with.

    Raises:
        PreparationError: its files are gone or are not what *spec* says.
    """

    def __init__(self, spec: TableSpec, folder: Path, *, hash_keys: HashKeys = hash_keys) -> None:
        self.spec = spec
        self._hash_keys = hash_keys
        self._arrays: dict[str, NDArray[Any]] | None = open_arrays(folder)
        shape = self._arrays["vectors"].shape
        if shape != (spec.num_keys, spec.width):
            raise PreparationError(f"the table in {folder} is not the one that was prepared; start again")

    def __repr__(self) -> str:
        return f"<Table {self.spec.name!r} [{self.spec.num_keys} keys, width {self.spec.width}]>"

    def find(self, keys: Sequence[str]) -> Found:
        """The vectors of *keys*, which are taken as they are: neither normalised nor lower-cased.

        Raises:
            BackendError: the table is closed.
        """
        vectors = self._open()["vectors"]
        rows = self._rows_of(keys)
        is_missing = rows < 0
        if not is_missing.any():
            return Found(vectors[rows], ())
        found = np.zeros((len(keys), self.spec.width), dtype=np.float32)
        found[~is_missing] = vectors[rows[~is_missing]]
        return Found(found, tuple(np.flatnonzero(is_missing).tolist()))

    def embed_texts(self, texts: Sequence[str], *, normalize: bool = False) -> list[TextVector]:
        """One vector a text: the mean of its words' rows, by the rule `words.WORDS`; zeros where none was found.

        *normalize* scales vectors to length 1; zeros stay zeros.

        Raises:
            BackendError: the table is closed.
        """
        vectors = self._open()["vectors"]
        read = read_texts(texts, lambda keys: self._rows_of(keys).tolist(), is_lowercase=self.spec.is_lowercase)
        return [
            TextVector(_mean(vectors, text.rows, normalize=normalize), len(text.rows) + len(text.missing), tuple(text.missing))
            for text in read
        ]

    def close(self) -> None:
        """Give the files back. Called once, when no other call is under way."""
        self._arrays = None

    def _open(self) -> dict[str, NDArray[Any]]:
        if self._arrays is None:
            raise BackendError("the table is closed")
        return self._arrays

    def _rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The row of each key, -1 for one that is missing."""
        # A lone surrogate is no UTF-8, so such a key is never found.
        return find_rows(self._open(), [key.encode("utf-8", "surrogatepass") for key in keys], self._hash_keys)


def open_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Map the files of a table, checking types and lengths, not contents.

    Raises:
        PreparationError: one is missing, or does not fit the others.
    """
    try:
        arrays = {name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in FILES}
    except (OSError, ValueError, EOFError) as error:
        raise PreparationError(f"the table in {folder} is incomplete; start again") from error
    num_keys, num_bytes = len(arrays["vectors"]), len(arrays["keys"])
    lengths = {"vectors": num_keys, "keys": num_bytes, "offsets": num_keys + 1, "hashes": num_keys, "rows": num_keys}
    for name, array in arrays.items():
        has_form = array.dtype.str == FILES[name] and array.ndim == (2 if name == "vectors" else 1) and array.flags.c_contiguous
        if not has_form or len(array) != lengths[name]:
            raise PreparationError(f"the table in {folder} is damaged; start again")
    # Plain arrays: a slice of numpy's memmap class takes ten times as long to make.
    return {name: np.asarray(array) for name, array in arrays.items()}


def find_rows(arrays: dict[str, NDArray[Any]], keys: Sequence[bytes], hash_keys: HashKeys) -> NDArray[np.int64]:
    """The row of each of *keys*, -1 for one that is missing: int64 [keys]. Equal hashes are told apart by the keys."""
    rows = np.full(len(keys), -1, dtype=np.int64)
    if not len(keys):
        return rows
    sorted_hashes, offsets, blob = arrays["hashes"], arrays["offsets"], arrays["keys"].data
    hashes = hash_keys(keys)
    places = np.searchsorted(sorted_hashes, hashes)
    wanted = np.arange(len(keys))
    while True:
        inside = places < len(sorted_hashes)
        wanted, places = wanted[inside], places[inside]
        alike = sorted_hashes[places] == hashes[wanted]
        wanted, places = wanted[alike], places[alike]
        if not len(wanted):
            return rows
        candidates = arrays["rows"][places].astype(np.int64)
        stretches = zip(offsets[candidates].tolist(), offsets[candidates + 1].tolist(), wanted.tolist(), strict=True)
        same = np.fromiter((blob[start:stop] == keys[index] for start, stop, index in stretches), dtype=bool, count=len(wanted))
        rows[wanted[same]] = candidates[same]
        wanted, places = wanted[~same], places[~same] + 1


def _mean(vectors: FloatArray, rows: Sequence[int], *, normalize: bool) -> FloatArray:
    """The mean of *rows* of *vectors*: float32 [width], summed in float64."""
    total = np.zeros(vectors.shape[1])
    distinct, counts = np.unique(np.asarray(rows, dtype=np.int64), return_counts=True)
    for start in range(0, len(distinct), _GATHERED_ROWS):
        part = slice(start, start + _GATHERED_ROWS)
        total += np.einsum("i,ij->j", counts[part].astype(np.float64), vectors[distinct[part]])
    if normalize:
        # Of the sum: it points where the mean does, and a float64 holds the squares of any float32.
        total /= max(float(np.sqrt(total @ total)), 1e-300)
    elif rows:
        total /= len(rows)
    return total.astype(np.float32)
