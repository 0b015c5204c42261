import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from head_service.training.features import (
    PADDED_TO,
    TokenFeatures,
    even_batches,
    inputs_of,
    shuffled_batches,
    standardisation,
    take,
)

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=50)


def texts_of(lengths: list[int]) -> TokenFeatures:
    """Text i's token t is (i, t)."""
    return TokenFeatures.of([np.array([[i, t] for t in range(length)], np.float16) for i, length in enumerate(lengths)])


def test_padding_is_zeros_behind_a_mask_of_zeros() -> None:
    vectors, mask = texts_of([1, 3]).padded(np.array([1, 0]))

    assert (2, PADDED_TO, 2) == vectors.shape
    assert [3.0, 1.0] == mask.sum(axis=1).tolist()
    assert [[1, 0], [1, 1], [1, 2], [0, 0]] == vectors[0, :4].tolist()
    assert np.float32 == vectors.dtype == mask.dtype
    assert not vectors[mask == 0].any()


def test_a_part_of_the_texts_shares_their_vectors() -> None:
    whole = texts_of([2, 1, 4])

    some = take(whole, np.array([2, 0]))

    assert isinstance(some, TokenFeatures)
    assert some.rows is whole.rows
    assert [4, 2] == some.lengths.tolist()
    np.testing.assert_array_equal(whole.padded(np.array([2]))[0], some.padded(np.array([0]))[0])


@given(LENGTHS, st.integers(1, 9))
def test_every_text_is_in_one_batch(lengths: list[int], size: int) -> None:
    texts = texts_of(lengths)
    shuffled = list(shuffled_batches(texts, size, np.random.default_rng(0)))

    assert list(range(len(lengths))) == sorted(int(i) for batch in shuffled for i in batch)
    assert max(map(len, shuffled)) <= size
    assert list(range(len(lengths))) == sorted(int(i) for batch in even_batches(texts) for i in batch)


@given(LENGTHS)
def test_batches_for_measuring_keep_to_their_bound_where_a_single_text_does(lengths: list[int]) -> None:
    for batch in even_batches(texts_of(lengths), max_rows=6, max_tokens=50):
        assert len(batch) <= 6
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 50


def test_batches_of_vectors_and_of_tokens_are_drawn_by_the_generator_alone() -> None:
    for features in (texts_of([3, 1, 2] * 40), np.zeros((120, 2), np.float32)):
        first, second = ([batch.tolist() for batch in shuffled_batches(features, 8, np.random.default_rng(5))] for _ in range(2))
        assert first == second


def test_numbers_are_brought_to_mean_0_and_deviation_1_by_the_texts_taken_alone() -> None:
    shift, scale = standardisation(texts_of([2, 3]).take(np.array([1])))

    np.testing.assert_allclose([1.0, 1.0], shift)
    np.testing.assert_allclose(1 / np.std([0, 1, 2]), scale[1], rtol=1e-6)


def test_a_number_that_hardly_varies_stays_small() -> None:
    random = np.random.default_rng(0)
    rows = (random.normal(0, 1, (100, 3)) * np.array([1.0, 1.0, 1e-5]) + 4.0).astype(np.float32)

    shift, scale = standardisation(rows)
    deviation = ((rows - shift) * scale).std(axis=0)

    np.testing.assert_allclose(1.0, deviation[:2], rtol=1e-3)
    assert deviation[2] < 0.01


def test_vectors_of_texts_go_in_as_they_are() -> None:
    (rows,) = inputs_of(np.arange(6, dtype=np.float64).reshape(3, 2), np.array([2, 0]))

    assert [[4, 5], [0, 1]] == rows.tolist()
    assert np.float32 == rows.dtype
