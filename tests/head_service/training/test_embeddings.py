import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clients import Durations, Embeddings, Trunk, View, ViewArray
from clients.wire import catalogue
from head_service.training.embeddings import EmbeddingCache, embed_for_training

VIEW = catalogue.View()


def vector_of(text: str) -> NDArray[np.float32]:
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8).astype(np.float32)


class FakeEmbedder:
    """A trunk whose vector of a text is its hash; it keeps what it was asked."""

    def __init__(self, fingerprint: str = "sha256:one", engine: str = "fake") -> None:
        self.fingerprint, self.engine = fingerprint, engine
        self.asked: list[list[str]] = []

    def trunk(self, name: str = "", *, with_tokenizer: bool = False) -> Trunk:
        return Trunk("fake", self.fingerprint, 32, 1, 10, 16, View(), (-1,), "", "", self.engine, 1.0, 8, b"")

    def embed_all(
        self, texts: Sequence[str], *, views: Sequence[View] = (), progress: Callable[[int], None] | None = None
    ) -> Embeddings:
        self.asked.append(list(texts))
        if progress:
            progress(len(texts))
        many = ViewArray(np.stack([vector_of(text) for text in texts]))
        flags = (False,) * len(texts)
        return Embeddings("fake", self.fingerprint, (many,), (1,) * len(texts), flags, flags, Durations(0, 0, 0, 0))


def embed(
    texts: Sequence[str], embedder: FakeEmbedder, folder: Path, view: catalogue.View = VIEW
) -> tuple[NDArray[np.float32], list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    cache = EmbeddingCache(folder / "kept" / "embeddings.sqlite")
    return embed_for_training(texts, view, embedder, cache, lambda done, total: told.append((done, total))), told


def test_order_is_kept_and_repeated_texts_go_through_the_trunk_once(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    texts = ["b", "a", "b", "c", "a"]

    vectors, told = embed(texts, embedder, tmp_path)

    np.testing.assert_array_equal([vector_of(text) for text in texts], vectors)
    assert [["b", "a", "c"]] == embedder.asked
    assert [(3, 3)] == told


def test_a_second_head_on_the_same_texts_makes_no_call(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    first, _ = embed(["a", "b"], embedder, tmp_path)

    second, told = embed(["b", "a"], embedder, tmp_path)

    np.testing.assert_array_equal(first[::-1], second)
    assert 1 == len(embedder.asked)
    assert [] == told


def test_only_what_is_new_goes_through_the_trunk(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    embed(["a", "b"], embedder, tmp_path)

    embed(["a", "c", "b"], embedder, tmp_path)

    assert [["a", "b"], ["c"]] == embedder.asked


def test_texts_that_normalise_alike_are_one(tmp_path: Path) -> None:
    embedder = FakeEmbedder()

    vectors, _ = embed(["a  b", "a b "], embedder, tmp_path)

    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert 1 == len(embedder.asked[0])


def test_another_fingerprint_engine_or_view_is_a_miss(tmp_path: Path) -> None:
    embed(["a"], FakeEmbedder(), tmp_path)
    others = [FakeEmbedder(fingerprint="sha256:two"), FakeEmbedder(engine="other"), FakeEmbedder()]

    embed(["a"], others[0], tmp_path)
    embed(["a"], others[1], tmp_path)
    embed(["a"], others[2], tmp_path, catalogue.View(pooling="cls"))

    assert [[["a"]]] * 3 == [other.asked for other in others]


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        rows = database.execute("SELECT key, vector FROM embedding").fetchall()
        database.executemany("UPDATE embedding SET vector = ? WHERE key = ?", [(change(vector), key) for key, vector in rows])


def flip_a_bit(vector: bytes) -> bytes:
    return vector[:20] + bytes([vector[20] ^ 1]) + vector[21:]


@pytest.mark.parametrize("change", [flip_a_bit, lambda vector: vector[:11], lambda _: b""], ids=["bit", "cut", "empty"])
def test_a_damaged_row_is_a_miss_and_is_written_anew(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    embed(["a", "b"], FakeEmbedder(), tmp_path)
    damage(tmp_path / "kept" / "embeddings.sqlite", change)
    again, later = FakeEmbedder(), FakeEmbedder()

    vectors, _ = embed(["a", "b"], again, tmp_path)
    embed(["a", "b"], later, tmp_path)

    np.testing.assert_array_equal([vector_of("a"), vector_of("b")], vectors)
    assert [["a", "b"]] == again.asked
    assert [] == later.asked


def test_a_cache_file_that_is_no_database_is_a_miss_and_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "embeddings.sqlite").write_bytes(b"not a database, and long enough to be looked at" * 30)
    embedder = FakeEmbedder()

    vectors, _ = embed(["a"], embedder, tmp_path)

    np.testing.assert_array_equal([vector_of("a")], vectors)

    later = FakeEmbedder()
    embed(["a"], later, tmp_path)
    assert [] == later.asked
