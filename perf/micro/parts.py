"""Benchmarks of parts that need nothing around them: the queue, tensors, the tokeniser, the cache of vectors; and yardsticks.

Everything here is made from constants, so that two machines measure the same: texts, a vocabulary, lengths.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from clients.wire.tensors import from_tensor, to_tensor
from clients.wire.text import TextEncoder, normalize_text
from clients.wire.tfs import tensor_pb2
from embedding_service.backend import PassCost, View
from embedding_service.queue import Entry, Queue, QueueLimits
from embedding_service.reuse import VectorCache
from perf.micro.timing import Benchmark, of_function

WIDTH: Final = 384
MAX_TOKENS: Final = 256

SENTENCES: Final = (
    "The train to the coast was late again and nobody at the station could say why it was.",
    "My new kettle boils water twice as fast as the old one, and it is quieter too!",
    "Does anyone know whether the library opens on Sunday mornings before ten o'clock?",
    "We lost the match in the last minute, but what a game it was to watch from the stand.",
    "The update made my phone slow; going back to the old version took the whole evening.",
    "Grandmother's soup needs three carrots, an onion, two potatoes and a lot of patience.",
    "Rain until Thursday, then sun, they say; I would not hang the washing out just yet.",
    "The invoice is wrong: we ordered twelve chairs, got ten, and were asked to pay for twenty.",
)
"""Short texts, our own."""

WITH_ACCENTS: Final = (
    "  Der Zu\u0308g nach K\u00f6ln\u00a0\u00a0war spa\u0308t \u2014 und niemand\tkonnte sagen,\u200b warum. \u2026 "
)
"""What the normaliser has to work on: letters with accents behind them, odd white space, a mark nobody sees."""


def texts(number: int) -> list[str]:
    """So many different short ones."""
    return [f"{SENTENCES[place % len(SENTENCES)]} {place}" for place in range(number)]


def tokenizer_json() -> bytes:
    """A lower-casing WordPiece of the BERT kind that knows the words of `SENTENCES`, long ones in two parts."""
    words = [word for sentence in SENTENCES for word, _ in BertPreTokenizer().pre_tokenize_str(sentence.lower())]
    parts = [part for word in words for part in ((word,) if len(word) <= 6 else (word[:4], f"##{word[4:]}"))]
    alphabet = [chr(point) for point in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *alphabet, *(f"##{letter}" for letter in alphabet), *parts]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 (a token of text)
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    special = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer.to_str().encode()


def encoder() -> TextEncoder:
    """Of a trunk with that vocabulary."""
    return TextEncoder(tokenizer_json(), max_tokens=MAX_TOKENS)


def yardsticks() -> list[Benchmark]:
    """What depends on the machine and its Python alone, and on nothing of ours; see `perf.micro.baseline`."""
    words = [f"word{number}" for number in range(64)]
    rows, other = (np.random.default_rng(seed).standard_normal((32, WIDTH)).astype(np.float32) for seed in (0, 1))

    def python() -> int:
        lengths: dict[str, int] = {}
        for place, word in enumerate(words):
            key = word.upper() if place % 3 else word
            lengths[key] = lengths.get(key, 0) + len(key) * place
        return sum(sorted(lengths.values())[:32])

    def arrays() -> int:
        total = 0
        for _ in range(4):
            highest = np.maximum(rows, other) + rows
            total += int(highest.sum(axis=1).argmax()) + len(highest.tobytes())
        return total

    return [
        of_function("yardstick, Python", python, "64 words into a dictionary, sorted"),
        of_function("yardstick, numpy", arrays, "four passes over two float32 [32, 384]"),
    ]


@dataclass(slots=True)
class _Waiting:
    """The ticket of a caller who stays."""

    is_settled: bool = False


def queue_lengths(number: int) -> list[int]:
    """Tokens of so many texts: short ones with a median of 24, and 5 % of 256 to 512."""
    draw = np.random.default_rng(0)
    short = np.clip(np.exp(draw.normal(np.log(24), 0.45, number)), 5, 64)
    long = draw.uniform(256, 512, number)
    return [int(length) for length in np.where(draw.random(number) < 0.05, long, short)]


def batch_cut(number: int) -> Benchmark:
    """Cut a batch while *number* entries wait, and put its entries back as if they came now: the queue stays as it is."""
    queue, ticket, view = Queue(QueueLimits(), PassCost()), _Waiting(), (View(),)
    ids = [tuple(range(length)) for length in queue_lengths(number)]
    queue.append([Entry(one, view, ticket, 0, place * 1e-4, float("inf")) for place, one in enumerate(ids)])
    moments = count(1.0, 0.005)

    def cut() -> None:
        now = next(moments)
        batch = queue.take(now).batch
        for entry in batch:
            entry.arrived = now
        queue.append(batch)

    return of_function(f"batch cut, {number} queued", cut, "and its entries queued again")


def tensor_bytes(rows: int) -> list[Benchmark]:
    """float32 [rows, 384] to the bytes of a TensorFlow tensor and back."""
    array = np.random.default_rng(0).standard_normal((rows, WIDTH)).astype(np.float32)
    data = to_tensor(array).SerializeToString()
    parse: Callable[[bytes], tensor_pb2.Tensor] = tensor_pb2.Tensor.FromString
    shape = f"[{rows}, {WIDTH}]"
    return [
        of_function(f"tensor to bytes, {shape}", lambda: to_tensor(array).SerializeToString()),
        of_function(f"tensor from bytes, {shape}", lambda: from_tensor(parse(data))),
    ]


def tokenise(encode: TextEncoder, number: int) -> Benchmark:
    """So many short texts in one call, normalising included."""
    given = texts(number)
    return of_function(f"tokenise, {number} short text{'s' if number > 1 else ''}", lambda: encode.encode(given))


def normalise() -> list[Benchmark]:
    """A text that is in order, and one that is not."""
    plain = SENTENCES[0]
    return [
        of_function("normalise, plain text", lambda: normalize_text(plain)),
        of_function("normalise, accents and odd white space", lambda: normalize_text(WITH_ACCENTS)),
    ]


def cache_lookup(encode: TextEncoder, number: int = 1_000) -> Benchmark:
    """A vector found among *number*, its checksum included."""
    cache, views = VectorCache(64 * 2**20), (View(),)
    vectors = np.random.default_rng(0).standard_normal((number, WIDTH)).astype(np.float32)
    known = [tuple(one.ids) for one in encode.encode(texts(number))]
    for ids, vector in zip(known, vectors, strict=True):
        cache.keep(ids, views, [vector])
    places = count()

    def find() -> None:
        if cache.find(known[next(places) % number], views) is None:
            raise LookupError("the cache has lost a vector")

    return of_function("cache lookup, a vector known", find, f"of {number}")


def parts(queued: Sequence[int] = (64, 512, 2048)) -> list[Benchmark]:
    """All of this module, the yardsticks first."""
    encode = encoder()
    return [
        *yardsticks(),
        *map(batch_cut, queued),
        *(benchmark for rows in (1, 32) for benchmark in tensor_bytes(rows)),
        *(tokenise(encode, number) for number in (1, 32)),
        *normalise(),
        cache_lookup(encode),
    ]
