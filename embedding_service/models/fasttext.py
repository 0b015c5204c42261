"""Reader of fastText's .bin models, version 12, not quantised: a vector for each word of the dictionary.

A word's vector is the mean of its own row of the input matrix and of the rows its character n-grams share, as fastText's
`getWordVector` has it. Words outside the dictionary are not looked up: a table has the keys it has. Layout, little-endian, as
in `src/{fasttext,args,dictionary,densematrix}.cc` of fastText 0.9.2:

    i32 magic, i32 version; i32 dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate; f64 t;
    i32 size, nwords, nlabels; i64 ntokens, pruneidx_size; size entries: word, NUL, i64 count, i8 type (0 word, 1 label);
    pruneidx_size pairs of i32, where that is positive; then two matrices, input and output:
    u8 is quantised, i64 rows, i64 columns, f32 [rows, columns].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from embedding_service.models.byte_reader import ByteReader
from embedding_service.models.errors import PreparationError
from embedding_service.models.table_files import Row, check_width

MAGIC: Final = (793_712_314).to_bytes(4, "little")
_VERSION: Final = 12
_END_OF_SENTENCE: Final = b"</s>"
_MAX_WORD_BYTES: Final = 1 << 16
_MAX_NGRAM: Final = 64


@dataclass(frozen=True, slots=True)
class _Model:
    """What the head of the file says, and where in it the dictionary's entries and the input matrix's numbers begin."""

    width: int
    bucket: int
    minn: int
    maxn: int
    has_ngrams: bool
    num_words: int
    dictionary_start: int
    matrix_start: int


def read_fasttext(path: Path) -> Iterator[Row]:
    """The words of the model at *path* and their vectors, float32 [dim], in the dictionary's order.

    The input matrix is memory-mapped, and its rows are summed in float32 in fastText's order.

    Raises:
        PreparationError: the file is damaged, or of a kind we do not read.
        OSError: it cannot be read.
    """
    model = _read_model(path)
    shape = (model.num_words + model.bucket, model.width)
    matrix = np.asarray(np.memmap(path, dtype="<f4", mode="r", offset=model.matrix_start, shape=shape))
    with path.open("rb") as file:
        file.seek(model.dictionary_start)
        for index, word in enumerate(_read_words(ByteReader(file, path), model.num_words, path)):
            rows = [index]
            if model.has_ngrams and word != _END_OF_SENTENCE:
                rows += [model.num_words + ngram for ngram in ngram_ids(word, model.minn, model.maxn, model.bucket)]
            with np.errstate(all="ignore"):  # what is not finite then is refused by who writes the table
                yield word, matrix[rows].sum(axis=0, dtype=np.float32) * np.float32(1 / len(rows))


def ngram_ids(word: bytes, minn: int, maxn: int, bucket: int) -> list[int]:
    """The buckets of the character n-grams of "<word>", in fastText's order.

    FNV-1a of 32 bits, but for one quirk that every model depends on: a byte above 127 is sign-extended before it is mixed in.
    """
    text = b"<" + word + b">"
    starts = [index for index, byte in enumerate(text) if byte & 0xC0 != 0x80] + [len(text)]
    mixed = [byte if byte < 128 else byte | 0xFFFF_FF00 for byte in text]
    num_characters = len(starts) - 1
    ids = []
    for first in range(num_characters):
        code = 2_166_136_261
        for size in range(1, min(maxn, num_characters - first) + 1):
            for byte in mixed[starts[first + size - 1] : starts[first + size]]:
                code = (code ^ byte) * 16_777_619 & 0xFFFF_FFFF
            is_bracket = size == 1 and first in {0, num_characters - 1}
            if size >= minn and not is_bracket:
                ids.append(code % bucket)
    return ids


def _read_model(path: Path) -> _Model:
    """Read and check all but the numbers; every part must be there, to the last byte."""
    with path.open("rb") as file:
        reader = ByteReader(file, path)
        _, version = reader.unpack("<2i")
        if version != _VERSION:
            raise PreparationError(
                f"{path} is a fastText model of version {version}; give one of version {_VERSION}, or a .vec file"
            )
        dim, *_, bucket, minn, maxn, _, _ = reader.unpack("<12id")
        num_entries, num_words, num_labels, _, num_pruned = reader.unpack("<3i2q")
        check_width(dim, path)
        if num_words <= 0 or num_labels < 0 or num_entries != num_words + num_labels:
            raise _damaged(path)
        if bucket < 0 or minn < 0 or not 0 <= maxn <= _MAX_NGRAM or (maxn and not bucket):
            raise _damaged(path)
        if num_pruned > 0:
            raise PreparationError(f"{path} is a pruned fastText model; give the whole one, or a .vec file")
        start = reader.position
        for _ in _read_words(reader, num_words, path):
            pass
        for _ in range(num_labels):
            _read_entry(reader, path)
        matrix = _find_matrices(file, reader.position, (num_words + bucket, dim), path)
        return _Model(dim, bucket, minn, maxn, maxn > 0 and num_pruned < 0, num_words, start, matrix)


def _read_words(reader: ByteReader, num_words: int, path: Path) -> Iterator[bytes]:
    for _ in range(num_words):
        word, kind = _read_entry(reader, path)
        if kind != 0:
            raise _damaged(path)
        yield word


def _read_entry(reader: ByteReader, path: Path) -> tuple[bytes, int]:
    word = reader.take_until(b"\0", at_most=_MAX_WORD_BYTES)
    if word is None:
        raise _damaged(path)
    _, kind = reader.unpack("<qb")
    return word, kind


def _find_matrices(file: BinaryIO, position: int, shape: tuple[int, int], path: Path) -> int:
    """Where the input matrix's numbers begin; it must be of *shape*, and the output matrix end where the file does."""
    input_shape, start, end = _read_matrix_head(file, position, path)
    if input_shape != shape:
        raise _damaged(path)
    _, _, end = _read_matrix_head(file, end, path)
    if end != path.stat().st_size:
        raise PreparationError(f"{path} does not end where its last matrix does; it may have been cut: copy it again")
    return start


def _read_matrix_head(file: BinaryIO, position: int, path: Path) -> tuple[tuple[int, int], int, int]:
    """The shape of the matrix at *position*, where its numbers begin, and where they end."""
    file.seek(position)
    reader = ByteReader(file, path)
    is_quantised, rows, columns = reader.unpack("<B2q")
    if is_quantised:
        raise PreparationError(f"{path} is a quantised fastText model; give the model it was made from, or a .vec file")
    if rows < 0 or columns < 0:
        raise _damaged(path)
    start = position + reader.position
    return (rows, columns), start, start + 4 * rows * columns


def _damaged(path: Path) -> PreparationError:
    return PreparationError(f"{path} is a damaged fastText model; copy it again, or give a .vec file")
