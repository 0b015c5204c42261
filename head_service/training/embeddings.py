"""Embeddings for training, each text's computed once: kept on disk by trunk, engine, view and normalised text.

Vectors of texts are held in memory. Vectors of tokens are a hundred times as many numbers: they are kept as float16, and read
from a file that is mapped into memory and is gone when nobody holds it any more.
"""

import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from clients import Embeddings, Trunk, View
from clients.wire import catalogue
from clients.wire.text import normalize_text
from head_service.errors import TrunkMismatchError
from head_service.pieces import Piece
from head_service.training.features import Features, TokenFeatures

FloatArray = NDArray[np.float32]
HalfArray = NDArray[np.float16]
Vectors = NDArray[np.floating[Any]]
Progress = Callable[[int, int], None]
"""(texts done, texts to do)."""

PART_TEXTS: Final = 1_024
"""Kept as soon as they are here, so that what is interrupted goes on where it was."""

PART_TOKEN_BYTES: Final = 16 * 1024 * 1024
"""Of vectors of tokens asked for at once, were all texts as long as the trunk reads."""

_READ_TEXTS: Final = 64
_CHECKSUM_BYTES = 8
_BROKEN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


class Embedder(Protocol):
    """What training needs of the embedding service; `clients.EmbeddingClient` is one."""

    def trunk(self, name: str = "", *, with_tokenizer: bool = False) -> Trunk:
        """Describe the trunk."""
        ...

    def embed_all(
        self, texts: Sequence[Piece], *, views: Sequence[View] = (), progress: Callable[[int], None] | None = None
    ) -> Embeddings:
        """Embed any number of texts or token ids; *progress* is told how many are done."""
        ...


class EmbeddingCache:
    """Vectors in one SQLite file. What cannot be read, or fails its checksum, is a miss; what cannot be kept is not kept."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def folder(self) -> Path:
        """Where there is room for large files."""
        return self._path.parent

    def get(self, keys: Sequence[bytes]) -> dict[bytes, FloatArray]:
        """The vectors, float32 [width], of those *keys* that are kept."""
        return {key: vector.astype(np.float32) for key, vector in self.each(keys, np.dtype("<f4"))}

    def each(self, keys: Sequence[bytes], dtype: "np.dtype[Any]") -> Iterator[tuple[bytes, Vectors]]:
        """The numbers, *dtype* [any], of those *keys* that are kept, one key after the other."""
        with self._forgiven(), self._open() as database:
            for key in dict.fromkeys(keys):
                row = database.execute("SELECT vector FROM embedding WHERE key = ?", (key,)).fetchone()
                if row and (vector := _unseal(row[0], dtype)) is not None:
                    yield key, vector

    def put(self, vectors: dict[bytes, Vectors]) -> None:
        """Keep *vectors*, float32 or float16."""
        with self._forgiven(), self._open() as database, database:
            rows = [(key, _seal(vector)) for key, vector in vectors.items()]
            database.executemany("INSERT OR REPLACE INTO embedding VALUES (?, ?)", rows)

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        """A file that is broken for good makes room for a new one."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode in _BROKEN:
                self._path.unlink(missing_ok=True)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=30)) as database:
            database.execute("CREATE TABLE IF NOT EXISTS embedding (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
            yield database


def embed_features(
    texts: Sequence[Piece], views: Sequence[catalogue.View], embedder: Embedder, cache: EmbeddingCache, progress: Progress
) -> Features:
    """What a head on *views* is trained on: of several views, their vectors one behind the other.

    Raises:
        TrunkMismatchError: the trunk was exchanged for another meanwhile.
        TrunklineError: the embedding service cannot be reached.
    """
    read = _Reading(embedder, cache, embedder.trunk(), tuple(views), progress)
    if views[0].pooling == "tokens":
        return read.tokens(texts)
    return read.pooled(texts)


def embed_for_training(
    texts: Sequence[str], view: catalogue.View, embedder: Embedder, cache: EmbeddingCache, progress: Progress
) -> FloatArray:
    """float32 [texts, width] by *view*, which pools; only what *cache* does not hold goes through the trunk.

    *progress* is told how many of how many texts needed the trunk and have been through it.

    Raises:
        TrunkMismatchError: the trunk was exchanged for another meanwhile.
        TrunklineError: the embedding service cannot be reached.
    """
    return _Reading(embedder, cache, embedder.trunk(), (view,), progress).pooled(texts)


class _Reading:
    """Texts read by some views of one trunk."""

    def __init__(
        self, embedder: Embedder, cache: EmbeddingCache, trunk: Trunk, views: tuple[catalogue.View, ...], progress: Progress
    ) -> None:
        self._embedder = embedder
        self._cache = cache
        self._trunk = trunk
        self._views = views
        self._progress = progress

    def pooled(self, texts: Sequence[Piece]) -> FloatArray:
        """float32 [texts, width of all views]."""
        keys = [self._keys(text) for text in texts]
        known = self._cache.get([key for of_text in keys for key in of_text])
        missing = {of_text: text for of_text, text in zip(keys, texts, strict=True) if not all(key in known for key in of_text)}
        for of_texts, answer in self._asked(missing, PART_TEXTS):
            fresh: dict[bytes, Vectors] = {}
            for place, view in enumerate(answer.views):
                vectors = np.asarray(view.array, np.float32)
                fresh |= {of_text[place]: vector for of_text, vector in zip(of_texts, vectors, strict=True)}
            self._cache.put(fresh)
            known |= {key: np.asarray(vector, np.float32) for key, vector in fresh.items()}
        return np.stack([np.concatenate([known[key] for key in of_text]) for of_text in keys])

    def tokens(self, texts: Sequence[Piece]) -> TokenFeatures:
        """float16 vectors of each token, of all views one behind the other."""
        keys = [self._keys(text) for text in texts]
        missing = dict(zip(keys, texts, strict=True))
        self._cache.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._cache.folder) as file:
            written = _TokenFile(file)
            for of_text, vectors in self._kept_tokens(list(missing)):
                written.add(of_text, vectors)
                del missing[of_text]
            widest = self._trunk.max_tokens * self._trunk.width * len(self._views) * 2
            for of_texts, answer in self._asked(missing, max(1, PART_TOKEN_BYTES // widest)):
                fresh: dict[bytes, Vectors] = {}
                for of_text, rows in zip(of_texts, zip(*map(_by_text, answer.views), strict=True), strict=True):
                    fresh |= dict(zip(of_text, rows, strict=True))
                    written.add(of_text, np.concatenate(rows, axis=1))
                self._cache.put(fresh)
            return written.features(keys)

    def _kept_tokens(self, keys: list[tuple[bytes, ...]]) -> Iterator[tuple[tuple[bytes, ...], Vectors]]:
        """Of texts whose every view is kept, float16 [tokens, width of all views]."""
        for start in range(0, len(keys), _READ_TEXTS):
            block = keys[start : start + _READ_TEXTS]
            found = dict(self._cache.each([key for of_text in block for key in of_text], np.dtype("<f2")))
            for of_text in block:
                rows = [found[key].reshape(-1, self._width(place)) for place, key in enumerate(of_text) if key in found]
                if len(rows) == len(of_text):
                    yield of_text, np.concatenate(rows, axis=1)

    def _width(self, place: int) -> int:
        return self._views[place].dims or self._trunk.width

    def _asked(self, missing: dict[tuple[bytes, ...], Piece], size: int) -> Iterator[tuple[list[tuple[bytes, ...]], Embeddings]]:
        """The keys and the answers of *missing*, *size* texts at a time."""
        views = [View(pooling=v.pooling, layer=v.layer, normalize=v.normalize, dims=v.dims) for v in self._views]
        keys, total = list(missing), len(missing)
        for start in range(0, total, size):
            asked = keys[start : start + size]
            texts = [missing[key] for key in asked]
            answer = self._embedder.embed_all(texts, views=views, progress=self._telling(start, total))
            if answer.trunk_fingerprint != self._trunk.fingerprint:
                raise TrunkMismatchError("the embedding service's trunk was exchanged during the training; train again")
            yield asked, answer

    def _telling(self, before: int, total: int) -> Callable[[int], None]:
        return lambda done: self._progress(before + done, total)

    def _keys(self, text: Piece) -> tuple[bytes, ...]:
        """One a view. The engine is in it because its rounding is in the vector."""
        # No normalised text has the character that stands before ids.
        normal = normalize_text(text) if isinstance(text, str) else f"\x00{','.join(map(str, text))}"
        parts = [[self._trunk.fingerprint, self._trunk.engine, repr(view), normal] for view in self._views]
        return tuple(hashlib.sha256("\x00".join(some).encode()).digest() for some in parts)


class _TokenFile:
    """Token vectors appended to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[tuple[bytes, ...], tuple[int, int]] = {}
        self._num_rows = 0
        self._width = 0

    def add(self, key: tuple[bytes, ...], vectors: Vectors) -> None:
        """Append *vectors*, [tokens, width]."""
        self._file.write(np.ascontiguousarray(vectors, "<f2").tobytes())
        self._places[key] = (self._num_rows, len(vectors))
        self._num_rows += len(vectors)
        self._width = vectors.shape[1]

    def features(self, keys: Sequence[tuple[bytes, ...]]) -> TokenFeatures:
        """Those of *keys*. The file may be closed: the array holds on to what is in it."""
        self._file.flush()
        rows: HalfArray = np.memmap(self._file, np.dtype("<f2"), "r", shape=(self._num_rows, self._width))
        places = np.array([self._places[key] for key in keys], np.int64).reshape(-1, 2)
        return TokenFeatures(rows, places[:, 0], places[:, 1])


def _by_text(view: Any) -> list[HalfArray]:
    """A view of tokens as one array a text; beyond what float16 holds, the largest number it does."""
    limit = np.finfo(np.float16).max
    half = np.clip(view.array, -limit, limit).astype(np.float16)
    return np.split(half, np.cumsum(view.row_tokens)[:-1])


def _seal(vector: Vectors) -> bytes:
    raw = np.ascontiguousarray(vector, vector.dtype.newbyteorder("<")).tobytes()
    return hashlib.sha256(raw).digest()[:_CHECKSUM_BYTES] + raw


def _unseal(sealed: bytes, dtype: "np.dtype[Any]") -> Vectors | None:
    checksum, raw = sealed[:_CHECKSUM_BYTES], sealed[_CHECKSUM_BYTES:]
    if hashlib.sha256(raw).digest()[:_CHECKSUM_BYTES] != checksum or len(raw) % dtype.itemsize:
        return None
    return np.frombuffer(raw, dtype)
