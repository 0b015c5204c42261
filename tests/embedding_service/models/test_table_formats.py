from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedding_service.backend import FloatArray
from embedding_service.models.errors import PreparationError
from embedding_service.models.fasttext import ngram_ids
from embedding_service.models.table_formats import read_rows, recognise
from tests.embedding_service.models.table_writers import (
    fasttext_bin,
    npy_and_keys,
    text_rows,
    word2vec_binary,
    word2vec_text,
)

WORDS = ("the", "ñandú", "日本語", "New_York")
VECTORS = np.array([[1, -2.5, 3e-7], [0, 0, 1], [0.1, 0.2, 0.3], [-1e30, 2, 7]], dtype=np.float32)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
# What a key of every form may hold: no white space, which separates in some, and no NUL, which ends one in others.
keys = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12).filter(
    lambda key: not key.startswith("\ufeff")
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], FloatArray]:
    words = draw(st.lists(keys, min_size=1, max_size=12, unique=True))
    width = draw(st.integers(2, 6))
    return words, draw(hnp.arrays(np.float32, (len(words), width), elements=floats))


def read(path: Path) -> tuple[list[bytes], FloatArray]:
    rows = list(read_rows(path, recognise(path)))
    return [key for key, _ in rows], np.stack([row for _, row in rows])


def read_bytes(folder: Path, content: bytes) -> tuple[list[bytes], FloatArray]:
    path = folder / "table"
    path.write_bytes(content)
    return read(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For property tests, whose examples share it."""
    return tmp_path_factory.mktemp("formats")


WHOLE = {
    "word2vec text": word2vec_text(WORDS, VECTORS),
    "gensim text": word2vec_text(WORDS, VECTORS, trailing=b""),
    "windows text": word2vec_text(WORDS, VECTORS, trailing=b"").replace(b"\n", b"\r\n"),
    "text with a byte order mark": b"\xef\xbb\xbf" + word2vec_text(WORDS, VECTORS),
    "glove": text_rows(WORDS, VECTORS),
    "glove with a byte order mark": b"\xef\xbb\xbf" + text_rows(WORDS, VECTORS),
    "word2vec binary": word2vec_binary(WORDS, VECTORS),
    "gensim binary": word2vec_binary(WORDS, VECTORS, line_end=b""),
}


@pytest.mark.parametrize("form", WHOLE)
def test_a_file_is_read_whatever_program_wrote_it(tmp_path: Path, form: str) -> None:
    words, vectors = read_bytes(tmp_path, WHOLE[form])

    assert [word.encode() for word in WORDS] == words
    assert VECTORS.tobytes() == vectors.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_is_read_with_the_keys_beside_it(tmp_path: Path, dtype: str, order: "str") -> None:
    vectors = np.asarray(np.arange(12).reshape(4, 3), dtype=dtype, order=order)  # type: ignore[call-overload]
    words, found = read(npy_and_keys(tmp_path / "users.npy", WORDS, vectors))

    assert [word.encode() for word in WORDS] == words
    assert np.float32 == found.dtype
    assert np.arange(12).reshape(4, 3).tolist() == found.tolist()


@settings(max_examples=60, deadline=None)
@given(tables())
def test_every_form_gives_back_what_was_written(folder: Path, table: tuple[list[str], FloatArray]) -> None:
    words, vectors = table
    expected = [word.encode() for word in words], vectors.tobytes()

    contents = [word2vec_text(words, vectors), word2vec_binary(words, vectors), word2vec_binary(words, vectors, line_end=b"")]
    contents.append(text_rows(words, vectors))
    for content in contents:
        found, rows = read_bytes(folder, content)
        assert expected == (found, rows.tobytes())
    found, rows = read(npy_and_keys(folder / "table.npy", words, vectors))
    assert expected == (found, rows.tobytes())


def test_a_key_of_a_glove_file_may_have_spaces_inside(tmp_path: Path) -> None:
    words, _ = read_bytes(tmp_path, b"the 1 2\n. . . 3 4\nat name@domain.com 5 6\n")

    assert [b"the", b". . .", b"at name@domain.com"] == words


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no table we can read"),
        (b"hello\n", "no table we can read"),
        (b"a 1 2 x\n", "no table we can read"),
        (b"\x1f\x8b\x08\x00rest", "compressed; unpack it"),
        (b"PK\x03\x04rest", "compressed; unpack it"),
        (b"3 2\na 1 2\nb 3 4\n", "says it has 3 keys but has 2"),
        (b"1 2\na 1 2\nb 3 4\n", "says it has 1 keys but has 2"),
        (b"0 2\n", "it has no keys"),
        (b"5 65537\na 1 2\n", "rows of 65537 numbers"),
        (b"5 0\n", "rows of 0 numbers"),
        (b"2 2\na 1 2\nb 3\n", "line 3 of .* is not a key and 2 numbers"),
        (b"2 2\na 1 2\nb 3 4 5\n", "line 3 of .* is not a key and 2 numbers"),
        (b"a 1 2\nb 3 4 5\n", "line 2 of .* is not a key and 2 numbers"),
        (b"a 1 2\nb  3 4\n", "line 2 of .* is not a key and 2 numbers"),
        (b"a 1 2\n\nb 3 4\n", "line 2 of .* is not a key and 2 numbers"),
        (b"a 1 2\nb 1_0 4\n", "line 2 of .* is not a key and 2 numbers"),
        (b"a 1 2\nb 3 4", "line 2 of .* has no end"),
    ],
)
def test_a_text_that_is_no_table_is_refused_with_its_line(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(PreparationError, match=reason):
        read_bytes(tmp_path, content)


def test_a_binary_file_that_holds_more_or_less_than_it_says_is_refused(tmp_path: Path) -> None:
    whole = word2vec_binary(WORDS, VECTORS)
    with pytest.raises(PreparationError, match="more than the 4 keys"):
        read_bytes(tmp_path, whole + b"\n")
    with pytest.raises(PreparationError, match="smaller than its first line says"):
        read_bytes(tmp_path, whole.replace(b"4 3\n", b"900 3\n", 1))
    with pytest.raises(PreparationError, match="begins with no key"):
        read_bytes(tmp_path, b"1 2\n" + b"x" * 5000 + b" 12345678")


CUT_UNSEEN = {"glove": {len(text_rows(WORDS[:count], VECTORS[:count])) for count in range(1, 4)}}
CUT_UNSEEN["word2vec binary"] = {len(WHOLE["word2vec binary"]) - 1}
"""A GloVe file is cut between two lines unseen; the last line feed of a binary file is not missed."""


@pytest.mark.parametrize("form", WHOLE)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    whole = WHOLE[form]
    unseen = {place + 3 * form.endswith("mark") for place in CUT_UNSEEN.get(form.removesuffix(" with a byte order mark"), ())}
    for place in set(range(len(whole))) - unseen:
        with pytest.raises(PreparationError):
            read_bytes(tmp_path, whole[:place])
    for place in unseen:
        words, vectors = read_bytes(tmp_path, whole[:place])
        assert VECTORS[: len(words)].tobytes() == vectors.tobytes()


def test_a_npy_or_its_keys_cut_anywhere_are_refused(tmp_path: Path) -> None:
    path = npy_and_keys(tmp_path / "users.npy", WORDS, VECTORS)
    for file in (path, path.with_suffix(".keys.txt")):
        whole = file.read_bytes()
        for place in range(len(whole)):
            file.write_bytes(whole[:place])
            with pytest.raises(PreparationError):
                read(path)
        file.write_bytes(whole + b"x\n")
        with pytest.raises(PreparationError):
            read(path)
        file.write_bytes(whole)


@pytest.mark.parametrize("array", [np.arange(6).reshape(2, 3), np.ones(3), np.ones((2, 2, 2)), np.ones((2, 70_000), np.float16)])
def test_a_npy_of_another_kind_is_refused(tmp_path: Path, array: FloatArray) -> None:
    with pytest.raises(PreparationError):
        read(npy_and_keys(tmp_path / "users.npy", WORDS[:2], array))


def test_a_npy_that_would_be_unpickled_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.npy"
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
    path.with_suffix(".keys.txt").write_text("a\n")
    with pytest.raises(PreparationError, match=r"not a whole \.npy file"):
        read(path)


def test_a_npy_without_keys_beside_it_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "users.npy", VECTORS)
    with pytest.raises(PreparationError, match=r"has no users\.keys\.txt beside it"):
        read(tmp_path / "users.npy")


starts = st.sampled_from(
    [b"", b"2 3\n", b"1 1\n", b"a 1 2\n", b"\xba\x16\x4f\x2f\x0c\0\0\0", b"\x93NUMPY\x01\x00v\x00", b"9 99999\n"]
)


@settings(max_examples=200, deadline=None)
@given(starts, st.binary(max_size=200))
def test_garbage_gives_rows_or_one_kind_of_error(folder: Path, start: bytes, rest: bytes) -> None:
    (folder / "table.keys.txt").write_text("a\n")
    try:
        words, vectors = read_bytes(folder, start + rest)
    except PreparationError:
        return
    assert len(words) == len(vectors)


damaged_forms = st.sampled_from(["npy", "fasttext", "binary", "text"])


@settings(max_examples=200, deadline=None)
@given(damaged_forms, st.data())
def test_a_damaged_byte_gives_rows_or_one_kind_of_error(folder: Path, form: str, data: st.DataObject) -> None:
    path = npy_and_keys(folder / "damaged.npy", WORDS, VECTORS)
    content = {
        "npy": path.read_bytes(),
        "fasttext": fasttext_bin(WORDS, np.ones((4 + 9, 3), dtype=np.float32), bucket=9, labels=["__label__a"]),
        "binary": WHOLE["word2vec binary"],
        "text": WHOLE["word2vec text"],
    }[form]
    place = data.draw(st.integers(0, min(len(content), 256) - 1))
    path.write_bytes(content[:place] + data.draw(st.binary(min_size=1, max_size=2)) + content[place + 1 :])
    with suppress(PreparationError):
        read(path)


def reference_vector(
    word: bytes, index: int, inputs: FloatArray, num_words: int, bucket: int, minn: int, maxn: int
) -> FloatArray:
    """By the definition: whole characters, n-grams of "<word>" but for lone brackets, FNV-1a over signed bytes."""
    text = f"<{word.decode()}>"
    rows = [inputs[index]]
    for size in range(minn, maxn + 1):
        for start in range(len(text) - size + 1):
            ngram = text[start : start + size]
            if ngram not in {"<", ">"}:
                code = np.uint32(2166136261)
                for signed in np.frombuffer(ngram.encode(), dtype=np.int8):
                    with np.errstate(over="ignore"):
                        code = np.uint32(code ^ np.uint32(int(signed) % 2**32)) * np.uint32(16777619)
                rows.append(inputs[num_words + int(code) % bucket])
    return np.mean(rows, axis=0, dtype=np.float64).astype(np.float32)


@pytest.mark.parametrize(("minn", "maxn"), [(3, 6), (1, 3), (0, 0)])
def test_a_fasttext_word_is_the_mean_of_its_row_and_its_ngrams(tmp_path: Path, minn: int, maxn: int) -> None:
    words, bucket = [*WORDS, "</s>", "a"], 50 if maxn else 0
    inputs = np.random.default_rng(1).normal(size=(len(words) + bucket, 4)).astype(np.float32)

    content = fasttext_bin(words, inputs, bucket=bucket, minn=minn, maxn=maxn, labels=["__label__x"])
    found, vectors = read_bytes(tmp_path, content)

    assert [word.encode() for word in words] == found
    for index, word in enumerate(found):
        is_alone = word == b"</s>" or not maxn
        expected = inputs[index] if is_alone else reference_vector(word, index, inputs, len(words), bucket, max(1, minn), maxn)
        np.testing.assert_allclose(vectors[index], expected, atol=1e-6)


def test_ngrams_have_the_buckets_that_fasttext_gives_them() -> None:
    # Printed by fastText 0.9.2's get_subwords for models of 1000 buckets.
    nandu = [630, 424, 44, 949, 210, 74, 923, 671, 46, 615, 203, 34, 884, 424]
    assert nandu == ngram_ids("ñandú".encode(), 3, 6, 1000)
    assert [687, 587, 749, 409, 559, 417, 575, 355, 283, 255] == ngram_ids("日本語".encode(), 1, 3, 1000)
    assert [750, 600, 220, 806] == ngram_ids(b"a", 1, 3, 1000)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 11}, "version 11"),
        ({"num_pruned": 3}, "pruned"),
        ({"quantised": (1, 0)}, "quantised"),
        ({"quantised": (0, 1)}, "quantised"),
        ({"bucket": 8}, "damaged"),
        ({"maxn": 1000}, "damaged"),
        ({"minn": -1}, "damaged"),
    ],
)
def test_a_fasttext_model_of_another_kind_is_refused_in_words(tmp_path: Path, changes: dict[str, int], reason: str) -> None:
    inputs = np.ones((4 + 9, 3), dtype=np.float32)
    with pytest.raises(PreparationError, match=reason):
        read_bytes(tmp_path, fasttext_bin(WORDS, inputs, **{"bucket": 9, **changes}))  # type: ignore[arg-type]


def test_a_fasttext_model_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = fasttext_bin(WORDS, np.ones((4 + 9, 3), dtype=np.float32), bucket=9, labels=["__label__a"])
    for place in range(len(whole)):
        with pytest.raises(PreparationError):
            read_bytes(tmp_path, whole[:place])
    with pytest.raises(PreparationError, match="does not end where its last matrix does"):
        read_bytes(tmp_path, whole + b"x")
