"""Vector files as other programs write them; they share nothing with our readers."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedding_service.backend import FloatArray

Words = Sequence[str | bytes]


def as_bytes(word: str | bytes) -> bytes:
    return word if isinstance(word, bytes) else word.encode()


def text_rows(words: Words, vectors: FloatArray, *, trailing: bytes = b"") -> bytes:
    """*trailing* is b" " as word2vec and fastText write, b"" as GloVe and gensim do."""
    rows = []
    for word, vector in zip(words, vectors, strict=True):
        numbers = " ".join(np.format_float_scientific(number, unique=True) for number in vector)
        rows.append(as_bytes(word) + b" " + numbers.encode() + trailing + b"\n")
    return b"".join(rows)


def word2vec_text(words: Words, vectors: FloatArray, *, trailing: bytes = b" ") -> bytes:
    return f"{len(words)} {vectors.shape[1]}\n".encode() + text_rows(words, vectors, trailing=trailing)


def word2vec_binary(words: Words, vectors: FloatArray, *, line_end: bytes = b"\n") -> bytes:
    """*line_end* is b"" for gensim's files."""
    parts = [f"{len(words)} {vectors.shape[1]}\n".encode()]
    for word, vector in zip(words, vectors, strict=True):
        parts += [as_bytes(word), b" ", struct.pack(f"<{len(vector)}f", *vector), line_end]
    return b"".join(parts)


def npy_and_keys(path: Path, words: Words, vectors: FloatArray) -> Path:
    np.save(path, vectors)
    path.with_suffix(".keys.txt").write_bytes(b"".join(as_bytes(word) + b"\n" for word in words))
    return path


def fasttext_bin(
    words: Words,
    inputs: FloatArray,
    *,
    bucket: int,
    minn: int = 3,
    maxn: int = 6,
    labels: Words = (),
    version: int = 12,
    num_pruned: int = -1,
    quantised: tuple[int, int] = (0, 0),
) -> bytes:
    """A whole model: *inputs* are the rows of the words, then those of the buckets."""
    width = inputs.shape[1]
    parts = [struct.pack("<ii", 793712314, version)]
    parts.append(struct.pack("<12id", width, 5, 1, 1, 5, 1, 1, 2, bucket, minn, maxn, 100, 1e-4))
    parts.append(struct.pack("<iiiqq", len(words) + len(labels), len(words), len(labels), 1000, num_pruned))
    parts += [as_bytes(word) + b"\0" + struct.pack("<qb", 7, 0) for word in words]
    parts += [as_bytes(word) + b"\0" + struct.pack("<qb", 7, 1) for word in labels]
    outputs = np.zeros((max(1, len(labels)), width), dtype=np.float32)
    for matrix, flag in zip((inputs, outputs), quantised, strict=True):
        parts.append(struct.pack("<?qq", flag, *matrix.shape) + matrix.astype("<f4").tobytes())
    return b"".join(parts)
