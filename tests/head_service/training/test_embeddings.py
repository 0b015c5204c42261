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
from head_service.training import embeddings
from head_service.training.embeddings import EmbeddingCache, embed_features, embed_for_training
from head_service.training.features import TokenFeatures

VIEW = catalogue.View()


def vector_of(text: str) -> NDArray[np.float32]:
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8).astype(np.float32)


def tokens_of(text: str, layer: int) -> NDArray[np.float32]:
    """As many tokens as letters; the first is the text's own vector."""
    rows = np.tile(np.arange(len(text), dtype=np.float32)[:, None], (1, 32)) + 100 * layer
    rows[0] = vector_of(text)
    return rows


class FakeEmbedder:
    """A trunk whose vector of a text is its hash, whatever the view's layer; it keeps what it was asked."""

    def __init__(self, fingerprint: str = "sha256:one", engine: str = "fake", layers: tuple[int, ...] = (-1,)) -> None:
        self.fingerprint, self.engine, self.layers = fingerprint, engine, layers
        self.asked: list[list[str]] = []

    def trunk(self, name: str = "", *, with_tokenizer: bool = False) -> Trunk:
        return Trunk("fake", self.fingerprint, 32, 3, 10, 16, View(), self.layers, "", "", self.engine, 1.0, 8, b"")

    def embed_all(
        self, texts: Sequence[str], *, views: Sequence[View] = (), progress: Callable[[int], None] | None = None
    ) -> Embeddings:
        self.asked.append(list(texts))
        if progress:
            progress(len(texts))
        arrays = tuple(self._read(texts, view) for view in views)
        flags = (False,) * len(texts)
        return Embeddings("fake", self.fingerprint, arrays, (1,) * len(texts), flags, flags, Durations(0, 0, 0, 0))

    @staticmethod
    def _read(texts: Sequence[str], view: View) -> ViewArray:
        if view.pooling != "tokens":
            return ViewArray(np.stack([vector_of(text) + 1000 * ((view.layer or -1) + 1) for text in texts]))
        rows = [tokens_of(text, view.layer or -1) for text in texts]
        return ViewArray(np.concatenate(rows), tuple(map(len, rows)))


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


TOKENS = catalogue.View("tokens", normalize=False)


def read_tokens(
    texts: Sequence[str], embedder: FakeEmbedder, folder: Path, layers: tuple[int, ...] = (-1,)
) -> list[NDArray[np.float32]]:
    """The vectors of each text's tokens."""
    views = catalogue.at_layers(TOKENS, layers)
    found = embed_features(texts, views, embedder, EmbeddingCache(folder / "embeddings.sqlite"), lambda _, __: None)
    assert isinstance(found, TokenFeatures)
    assert np.float16 == found.rows.dtype
    return [found.rows[s : s + n].astype(np.float32) for s, n in zip(found.starts, found.lengths, strict=True)]


def test_vectors_of_tokens_come_in_order_and_each_text_goes_through_the_trunk_once(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    texts = ["abc", "d", "abc", "ef"]

    found = read_tokens(texts, embedder, tmp_path)
    again = read_tokens(["ef", "abc"], FakeEmbedder(), tmp_path)

    for text, rows in zip([*texts, "ef", "abc"], [*found, *again], strict=True):
        np.testing.assert_array_equal(tokens_of(text, -1), rows)
    assert [["abc", "d", "ef"]] == embedder.asked


def test_vectors_of_tokens_are_kept_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PART_TOKEN_BYTES", 2 * 16 * 32 * 2)
    embedder = FakeEmbedder()

    found = read_tokens(["a", "bc", "def", "gh", "i"], embedder, tmp_path)

    assert [["a", "bc"], ["def", "gh"], ["i"]] == embedder.asked
    assert [1, 2, 3, 2, 1] == [len(rows) for rows in found]


def test_several_layers_lie_one_behind_the_other_and_are_kept_one_by_one(tmp_path: Path) -> None:
    embedder, later = FakeEmbedder(), FakeEmbedder()
    read_tokens(["ab"], embedder, tmp_path, (-1, -2))

    (rows,) = read_tokens(["ab"], later, tmp_path, (-2, -1))
    pooled = embed_features(
        ["ab"], catalogue.at_layers(VIEW, (-1, -2)), embedder, EmbeddingCache(tmp_path / "other.sqlite"), lambda _, __: None
    )

    np.testing.assert_array_equal(np.hstack([tokens_of("ab", -2), tokens_of("ab", -1)]), rows)
    np.testing.assert_array_equal(np.hstack([vector_of("ab"), vector_of("ab") - 1000])[None], pooled)
    assert [] == later.asked


def test_numbers_beyond_float16_become_its_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEmbedder, "_read", staticmethod(lambda _, __: ViewArray(np.full((1, 32), 1e6, np.float32), (1,))))

    (rows,) = read_tokens(["a"], FakeEmbedder(), tmp_path)

    assert 65504.0 == rows.max()


def test_a_damaged_row_of_tokens_is_a_miss_and_is_written_anew(tmp_path: Path) -> None:
    read_tokens(["abc", "de"], FakeEmbedder(), tmp_path)
    damage(tmp_path / "embeddings.sqlite", flip_a_bit)
    again, later = FakeEmbedder(), FakeEmbedder()

    found = read_tokens(["abc", "de"], again, tmp_path)
    read_tokens(["abc", "de"], later, tmp_path)

    np.testing.assert_array_equal(tokens_of("de", -1), found[1])
    assert [["abc", "de"]] == again.asked
    assert [] == later.asked


def test_nothing_is_left_behind_but_the_cache(tmp_path: Path) -> None:
    read_tokens(["abc"], FakeEmbedder(), tmp_path)

    assert ["embeddings.sqlite"] == [path.name for path in tmp_path.iterdir()]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PART_TEXTS", 2)

    class Failing(FakeEmbedder):
        def embed_all(
            self, texts: Sequence[str], *, views: Sequence[View] = (), progress: Callable[[int], None] | None = None
        ) -> Embeddings:
            if "c" in texts:
                raise ConnectionError
            return super().embed_all(texts, views=views, progress=progress)

    with pytest.raises(ConnectionError):
        embed(["a", "b", "c"], Failing(), tmp_path)
    later = FakeEmbedder()
    _, told = embed(["a", "b", "c"], later, tmp_path)

    assert [["c"]] == later.asked
    assert [(1, 1)] == told
