import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedding_service.models.graph import int8_channels

WEIGHTS = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-1e3, 1e3, width=32))


@given(WEIGHTS)
def test_each_channel_is_integers_of_its_own_worth_and_at_most_half_of_one_away(weight):
    integers, scales = int8_channels(weight)

    assert np.int8 == integers.dtype
    assert np.float32 == scales.dtype
    assert np.abs(integers.astype(int)).max() <= 127
    assert (scales > 0).all()
    assert (np.abs(integers * scales[:, None] - weight) <= 0.501 * scales[:, None]).all()


def test_a_channel_of_zeros_stays_zeros():
    integers, scales = int8_channels(np.zeros((2, 3), np.float32))
    assert not integers.any()
    assert np.isfinite(scales).all()
