from pathlib import Path

import numpy as np
import pytest

from clients.wire.text import TextEncoder
from perf.workloads import SHORT_MAX_TOKENS, SHORT_MEDIAN_TOKENS, short_texts, texts_of
from tests.tiny_trunk import make_tiny_trunk


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    """One letter is one token; the encoder itself takes more tokens than a SHORT text may have."""
    return TextEncoder((make_tiny_trunk(tmp_path / "trunk") / "tokenizer.json").read_bytes(), max_tokens=512)


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
