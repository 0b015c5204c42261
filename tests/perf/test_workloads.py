from pathlib import Path

import numpy as np
import pytest

from clients.wire.text import TextEncoder
from perf.workloads import (
    LONG_MAX_TOKENS,
    LONG_MIN_TOKENS,
    NO_TRUNCATION,
    SHORT_MAX_TOKENS,
    SHORT_MEDIAN_TOKENS,
    classes_of,
    long_texts,
    mix_texts,
    short_texts,
    texts_of,
)
from tests.tiny_trunk import make_tiny_trunk


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    """One letter is one token; the encoder itself truncates nothing."""
    return TextEncoder((make_tiny_trunk(tmp_path / "trunk") / "tokenizer.json").read_bytes(), max_tokens=NO_TRUNCATION)


def letters(num_tokens: int) -> str:
    return " ".join("a" * (num_tokens - 2))


@pytest.mark.parametrize("counts", [[*range(4, 50)], [*range(4, 30)], [10] * 40 + [30] * 10, [10] * 10 + [24] * 5 + [60] * 40])
def test_short_texts_have_the_median_and_the_bound_promised(encoder: TextEncoder, counts: list[int]) -> None:
    candidates = [letters(count) for count in (100, *counts, 65, 64)]
    chosen = short_texts(candidates, encoder)
    lengths = [len(encoded.ids) for encoded in encoder.encode(chosen)]

    assert max(lengths) <= SHORT_MAX_TOKENS
    assert np.median(lengths) == pytest.approx(SHORT_MEDIAN_TOKENS, abs=6)
    rest = iter(candidates)
    assert all(text in rest for text in chosen), "their order is kept"


def test_a_part_of_the_texts_is_taken_evenly(encoder: TextEncoder) -> None:
    candidates = [letters(count) for count in range(4, 45)]
    chosen = short_texts(candidates, encoder, count=10)
    lengths = [len(encoded.ids) for encoded in encoder.encode(chosen)]

    assert len(chosen) == 10
    assert np.median(lengths) == pytest.approx(SHORT_MEDIAN_TOKENS, abs=4)


def test_texts_that_are_all_too_short_are_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="median of 24"):
        short_texts([letters(5)] * 10, encoder)


def test_texts_come_from_the_column_text_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text('label,text\nx,one\ny,"two, with\na line break"\n', encoding="utf-8")

    assert ["one", "two, with\na line break"] == texts_of(path)


def lengths_of(texts: list[str], encoder: TextEncoder) -> list[int]:
    return [len(encoded.ids) for encoded in encoder.encode(texts)]


def test_a_twentieth_of_mix_is_long_and_the_rest_is_short(encoder: TextEncoder) -> None:
    candidates = [letters(count) for count in range(4, 45)] * 10
    mixed = mix_texts(candidates, [letters(count) for count in (10, 255, 256, 300, 512, 513)] * 10, encoder, count=200)
    lengths = lengths_of(mixed, encoder)
    long = [length for length in lengths if length >= LONG_MIN_TOKENS]

    assert len(mixed) == 200
    assert len(long) == 10
    assert max(long) <= LONG_MAX_TOKENS
    assert max(length for length in lengths if length < LONG_MIN_TOKENS) <= SHORT_MAX_TOKENS
    assert classes_of(mixed, encoder).count("long") == 10


def test_mix_is_the_same_every_time_and_of_another_order_for_another_seed(encoder: TextEncoder) -> None:
    candidates, documents = [letters(count) for count in range(4, 45)], [letters(300), letters(400)]
    first, again, other = (mix_texts(candidates, documents, encoder, count=40, seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_documents_of_the_right_length_are_taken_as_they_are(encoder: TextEncoder) -> None:
    documents = [letters(count) for count in (100, 256, 400, 512, 700)]

    assert [documents[1], documents[2], documents[3]] == long_texts(documents, encoder, 3)


@pytest.mark.parametrize("documents", [[letters(90)] * 40, [letters(2_000)] * 10, [letters(300)] + [letters(90)] * 40])
def test_where_too_few_fit_neighbours_are_joined_and_cut_at_a_word(documents: list[str], encoder: TextEncoder) -> None:
    long = long_texts(documents, encoder, 4, seed=3)
    everything = " ".join(documents)

    assert all(LONG_MIN_TOKENS <= length <= LONG_MAX_TOKENS for length in lengths_of(long, encoder))
    assert all(text in everything for text in long)
    assert long == long_texts(documents, encoder, 4, seed=3)


def test_too_little_text_for_long_texts_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="only 1 texts of 256 to 512 tokens"):
        long_texts([letters(300), letters(20)], encoder, 2)
