import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clients.wire.tfs import tensor_pb2 as pb
from head_service.serving.errors import ServingError
from head_service.serving.rpc_tensors import decode_tensor, encode_tensor

NAMES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16")
DTYPES = [np.dtype(name) for name in NAMES]
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0)))


@given(ARRAYS, st.booleans())
@settings(max_examples=200)
def test_an_array_comes_back_as_it_was_sent(array, as_content):
    tensor = pb.Tensor()
    encode_tensor(tensor, array, as_content=as_content)

    assert bool(tensor.tensor_content) == (as_content and array.size > 0)
    found = decode_tensor(tensor, array.dtype)
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize("as_content", [True, False])
def test_bfloat16_travels_as_its_bits(as_content):
    array = np.array([[1.5, -2], [np.inf, 0]], ml_dtypes.bfloat16)
    tensor = pb.Tensor()
    encode_tensor(tensor, array, as_content=as_content)

    assert tensor.dtype == pb.DT_BFLOAT16
    found = decode_tensor(tensor, array.dtype)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found.astype(np.float32), array.astype(np.float32))


def test_a_type_without_a_wire_form_is_told():
    with pytest.raises(ServingError, match="cannot be sent"):
        encode_tensor(pb.Tensor(), np.array(["2020-01-01"], "datetime64[D]"), as_content=False)
