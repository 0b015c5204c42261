"""Embeddings for training, each text's computed once: kept on disk by trunk, view and normalised text."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clients import Embeddings, Trunk, View
from clients.wire import catalogue
from clients.wire.text import normalize_text
from head_service.errors import TrunkMismatchError

FloatArray = NDArray[np.float32]
_CHECKSUM_BYTES = 8
_BROKEN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


class Embedder(Protocol):
    """What training needs of the embedding service; `clients.EmbeddingClient` is one."""

    def trunk(self, name: str = "", *, with_tokenizer: bool = False) -> Trunk:
        """Describe the trunk."""
        ...

    def embed_all(
        self, texts: Sequence[str], *, views: Sequence[View] = (), progress: Callable[[int], None] | None = None
    ) -> Embeddings:
        """Embed any number of texts; *progress* is told how many are done."""
        ...


class EmbeddingCache:
    """Vectors in one SQLite file. What cannot be read, or fails its checksum, is a miss; what cannot be kept is not kept."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, keys: Sequence[bytes]) -> dict[bytes, FloatArray]:
        """The vectors, float32 [width], of those *keys* that are kept."""
        found: dict[bytes, FloatArray] = {}
        with self._forgiven(), self._open() as database:
            for key in set(keys):
                row = database.execute("SELECT vector FROM embedding WHERE key = ?", (key,)).fetchone()
                if row and (vector := _unseal(row[0])) is not None:
                    found[key] = vector
        return found

    def put(self, vectors: dict[bytes, FloatArray]) -> None:
        """Keep *vectors*."""
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


def embed_for_training(
    texts: Sequence[str], view: catalogue.View, embedder: Embedder, cache: EmbeddingCache, progress: Callable[[int, int], None]
) -> FloatArray:
    """float32 [texts, width] by *view*; only what *cache* does not hold goes through the trunk.

    *progress* is told how many of how many texts needed the trunk and have been through it.

    Raises:
        TrunkMismatchError: the trunk was exchanged for another meanwhile.
        TrunklineError: the embedding service cannot be reached.
    """
    trunk = embedder.trunk()
    keys = [_key(trunk.fingerprint, trunk.engine, view, text) for text in texts]
    known = cache.get(keys)
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        wanted = View(pooling=view.pooling, layer=view.layer, normalize=view.normalize, dims=view.dims)
        told = progress
        answer = embedder.embed_all(list(missing.values()), views=[wanted], progress=lambda done: told(done, len(missing)))
        if answer.trunk_fingerprint != trunk.fingerprint:
            raise TrunkMismatchError("the embedding service's trunk was exchanged during the training; train again")
        fresh = dict(zip(missing, np.asarray(answer.vectors, np.float32), strict=True))
        cache.put(fresh)
        known |= fresh
    return np.stack([known[key] for key in keys])


def _key(fingerprint: str, engine: str, view: catalogue.View, text: str) -> bytes:
    """The engine is in it because its rounding is in the vector."""
    return hashlib.sha256("\x00".join([fingerprint, engine, repr(view), normalize_text(text)]).encode()).digest()


def _seal(vector: FloatArray) -> bytes:
    raw = np.ascontiguousarray(vector, "<f4").tobytes()
    return hashlib.sha256(raw).digest()[:_CHECKSUM_BYTES] + raw


def _unseal(sealed: bytes) -> FloatArray | None:
    checksum, raw = sealed[:_CHECKSUM_BYTES], sealed[_CHECKSUM_BYTES:]
    if hashlib.sha256(raw).digest()[:_CHECKSUM_BYTES] != checksum or len(raw) % 4:
        return None
    return np.frombuffer(raw, "<f4").astype(np.float32)
