import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.backend import BackendError, Batch, View
from embedding_service.backend.pooling import flattened, padded, read_views

IDS = ((2, 5, 3), (2, 9, 8, 7, 3), (2, 3))


def _by_hand(row, pooling):
    readings = {"mean": row.mean(0), "cls": row[0], "max": row.max(0), "sep": row[-1], "tokens": row}
    return np.concatenate([row.mean(0), row.max(0)]) if pooling == "mean_max" else readings[pooling]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_max", "sep", "tokens"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dims", [0, 3])
def test_a_view_reads_each_row_without_its_padding(pooling, normalize, dims):
    hidden = np.random.default_rng(1).normal(size=(3, 5, 8)).astype(np.float32)
    inputs, lengths = padded(IDS)
    mask = inputs["attention_mask"]
    hidden[mask == 0] = 1e6
    flat = hidden[mask == 1]
    view = View(pooling, -1, normalize, dims)
    mixed = ((view,), (View("cls"), view), (view,))
    for views in (((view,),) * 3, mixed):
        result = read_views({-1: flat}, lengths, Batch(IDS, views))
        for row, ids, arrays in zip(hidden, IDS, result, strict=True):
            expected = _by_hand(row[: len(ids)], pooling)[..., : dims or None]
            if normalize:
                expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
            np.testing.assert_allclose(arrays[-1], expected, atol=1e-5)


def test_numbers_that_are_not_finite_fail_the_pass():
    hidden = np.full((2, 4), np.nan, dtype=np.float32)
    with pytest.raises(BackendError, match="not finite"):
        read_views({-1: hidden}, np.array([2]), Batch(((2, 3),), ((View(),),)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_flattened_rows_find_each_token_in_the_grid_and_back(lengths: list[int]) -> None:
    ids = [tuple(range(1 + 100 * row, 1 + 100 * row + length)) for row, length in enumerate(lengths)]

    inputs, told = flattened(ids)

    total, grid, places = sum(lengths), inputs["grid"], inputs["places"]
    assert lengths == told.tolist()
    assert [token for row in ids for token in row] == inputs["input_ids"][:total].tolist()
    assert [2 * place for length in lengths for place in range(length)] == inputs["position_ids"][:total].tolist()
    assert list(range(total)) == grid.reshape(-1)[places[:total]].tolist()
    assert lengths == inputs["attention_mask"].sum(axis=1).tolist()
    assert 0 == grid.shape[1] % 8
    assert {len(values) for name, values in inputs.items() if name not in {"grid", "attention_mask"}} == {len(places)}
    assert len(places) - total < 16


def test_tokens_of_a_second_text_stand_in_segment_one() -> None:
    inputs, _ = padded(IDS, (0, 3, 0))
    assert [0, 2, 4, 7, 9] == inputs["position_ids"][1].tolist()
    assert [0, 2, 4, 6, 8] == inputs["position_ids"][0].tolist()

    flat, _ = flattened(IDS, (0, 3, 0))
    assert [0, 2, 4, 0, 2, 4, 7, 9, 0, 2] == flat["position_ids"].tolist()
