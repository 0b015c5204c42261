import mmap
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedding_service.backend import BackendError, FloatArray
from embedding_service.backend.tables import HashKeys, Table, TableSpec, hash_keys
from embedding_service.models.errors import PreparationError
from embedding_service.models.table_files import write_table

WORDS = ("king", "queen", "frog", "日本語")
VECTORS = np.array([[3, 4], [0, 1], [-3, -4], [1e30, 1e30]], dtype=np.float32)


def make(folder: Path, words: Sequence[str] = WORDS, vectors: FloatArray = VECTORS, *, hash_keys: HashKeys = hash_keys) -> Table:
    folder.mkdir()
    rows = [(word.encode(), vector) for word, vector in zip(words, vectors, strict=True)]
    written = write_table(rows, folder, hash_keys=hash_keys)
    spec = TableSpec("words", "sha256:0", written.width, written.num_keys, written.is_lowercase)
    return Table(spec, folder, hash_keys=hash_keys)


def weak(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """Three hashes for all keys, the largest of all among them."""
    return np.array([(0, 7, 2**64 - 1)[zlib.crc32(key) % 3] for key in keys], dtype=np.uint64)


def test_keys_are_found_and_those_that_are_not_are_named(tmp_path: Path) -> None:
    found = make(tmp_path / "table").find(["frog", "toad", "king", "", "frog", "\ud800", "日本語"])

    assert (1, 3, 5) == found.missing
    assert np.float32 == found.vectors.dtype
    assert VECTORS[[2, 0, 2, 3]].tolist() == found.vectors[[0, 2, 4, 6]].tolist()
    assert not found.vectors[[1, 3, 5]].any()


def test_no_keys_give_no_vectors(tmp_path: Path) -> None:
    found = make(tmp_path / "table").find([])

    assert ((0, 2), ()) == (found.vectors.shape, found.missing)


def test_keys_are_taken_as_they_are(tmp_path: Path) -> None:
    assert (0, 1) == make(tmp_path / "table").find(["King", " king"]).missing


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(max_size=5).filter(lambda word: 0 < len(word.encode("utf-8", "ignore")) == len(word.encode("utf-8", "replace")))
    )
)
def test_keys_with_one_hash_are_told_apart(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    words = ["first", *words]
    distinct = list(dict.fromkeys(words))
    vectors = np.arange(2 * len(words), dtype=np.float32).reshape(-1, 2)
    table = make(tmp_path_factory.mktemp("weak") / "table", words, vectors, hash_keys=weak)

    found = table.find([*distinct, "absent-1", "absent-2", "absent-3", "absent-4"])

    assert tuple(range(len(distinct), len(distinct) + 4)) == found.missing
    assert [vectors[words.index(word)].tolist() for word in distinct] == found.vectors[: len(distinct)].tolist()


def test_the_hash_of_a_key_stays_what_it_is_on_disk() -> None:
    # By `printf king | b2sum -l 64`. Folders outlive processes and versions.
    assert [int.from_bytes(bytes.fromhex("a0c66bd15af968a9"), "little")] == hash_keys([b"king"]).tolist()
    assert (0,) == hash_keys([]).shape


def test_nothing_is_loaded_before_it_is_asked_for(tmp_path: Path) -> None:
    table = make(tmp_path / "table")

    for array in table._open().values():
        base = array
        while isinstance(base, np.ndarray):
            assert not base.flags.owndata
            base = base.base
        assert isinstance(base, mmap.mmap)


def test_what_is_found_is_the_callers_own(tmp_path: Path) -> None:
    table = make(tmp_path / "table")
    table.find(["king"]).vectors[:] = 9

    assert VECTORS[:1].tolist() == table.find(["king"]).vectors.tolist()


def test_a_text_is_the_mean_of_its_words(tmp_path: Path) -> None:
    table = make(tmp_path / "table")

    first, second, third = table.embed_texts(["The King, the QUEEN; the king!", "king frog", "toad"])

    assert (6, ("the", "the", "the")) == (first.num_words, first.missing)
    assert [2.0, 3.0] == first.vector.tolist()
    assert ([0.0, 0.0], 2, ()) == (second.vector.tolist(), second.num_words, second.missing)
    assert ([0.0, 0.0], 1, ("toad",)) == (third.vector.tolist(), third.num_words, third.missing)
    assert np.float32 == first.vector.dtype


def test_vectors_are_scaled_to_length_one_on_demand(tmp_path: Path) -> None:
    table = make(tmp_path / "table")

    king, nothing, large = table.embed_texts(["king king", "king frog", "日本語"], normalize=True)

    np.testing.assert_allclose([0.6, 0.8], king.vector, rtol=1e-6)
    assert [0.0, 0.0] == nothing.vector.tolist()
    np.testing.assert_allclose([0.5**0.5, 0.5**0.5], large.vector, rtol=1e-6)


def test_a_long_text_is_summed_without_losing_its_last_word(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(10_000)]
    vectors = np.ones((10_000, 1), dtype=np.float32)
    vectors[0], vectors[1] = 2**25, -(2**25)
    table = make(tmp_path / "table", words, vectors)

    [text] = table.embed_texts([" ".join(words)])

    assert 10_000 == text.num_words
    assert np.float32(9_998 / 10_000) == text.vector[0]


def test_a_text_does_not_depend_on_its_company(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = [f"w{number}" for number in range(500)]
    table = make(tmp_path / "table", words, rng.normal(size=(500, 30)).astype(np.float32))
    texts = [" ".join(rng.choice(words, size=20)) for _ in range(50)]

    together = table.embed_texts(texts)

    assert [table.embed_texts([text])[0].vector.tobytes() for text in texts] == [text.vector.tobytes() for text in together]


def test_many_threads_may_ask_at_once(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(5_000)]
    vectors = np.arange(10_000, dtype=np.float32).reshape(-1, 2)
    table = make(tmp_path / "table", words, vectors)

    def ask(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 5_000, size=2_000)
        return bool((table.find([words[row] for row in rows]).vectors == vectors[rows]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))


def test_a_closed_table_says_so(tmp_path: Path) -> None:
    table = make(tmp_path / "table")
    table.close()

    with pytest.raises(BackendError, match="closed"):
        table.find(["king"])
    with pytest.raises(BackendError, match="closed"):
        table.embed_texts(["king"])


def test_files_that_are_gone_or_of_another_table_are_refused(tmp_path: Path) -> None:
    spec = make(tmp_path / "table").spec
    make(tmp_path / "other", WORDS[:2], VECTORS[:2])
    with pytest.raises(PreparationError, match="not the one that was prepared"):
        Table(spec, tmp_path / "other")
    with pytest.raises(PreparationError, match="incomplete"):
        Table(spec, tmp_path / "absent")
