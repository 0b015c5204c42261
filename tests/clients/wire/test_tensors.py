import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from clients.wire.tensors import MAX_TENSOR_BYTES, TensorError, from_tensor, to_tensor
from clients.wire.tfs import tensor_pb2 as pb

NUMERIC = ["<f2", "<f4", "<f8", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "?", "<c8", "<c16"]
SHAPES = nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
FIELDS = {
    "<f4": "float_val",
    "<f8": "double_val",
    "<i4": "int_val",
    "<i2": "int_val",
    "i1": "int_val",
    "u1": "int_val",
    "<u2": "int_val",
    "<i8": "int64_val",
    "<u4": "uint32_val",
    "<u8": "uint64_val",
    "?": "bool_val",
}


def wire(dtype, shape, **fields):
    tensor = pb.Tensor(dtype=dtype, **fields)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def travelled(tensor):
    return pb.Tensor.FromString(tensor.SerializeToString())


@given(st.sampled_from(NUMERIC).flatmap(lambda dtype: nps.arrays(np.dtype(dtype), SHAPES)))
def test_a_numeric_array_comes_back_bit_for_bit(array):
    back = from_tensor(travelled(to_tensor(array)))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(nps.arrays(np.dtype(object), SHAPES, elements=st.binary(max_size=8)))
def test_an_array_of_bytes_comes_back_the_same(array):
    back = from_tensor(travelled(to_tensor(array)))
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


@given(st.sampled_from(sorted(FIELDS)).flatmap(lambda dtype: nps.arrays(np.dtype(dtype), SHAPES)))
def test_typed_fields_say_the_same_as_raw_bytes(array):
    sent = to_tensor(array)
    typed = wire(sent.dtype, array.shape, **{FIELDS[array.dtype.str.replace("|", "").replace("b1", "?")]: array.ravel().tolist()})
    np.testing.assert_array_equal(from_tensor(travelled(typed)), array)


@given(
    st.builds(
        pb.Tensor,
        dtype=st.integers(0, 25),
        tensor_content=st.binary(max_size=24),
        float_val=st.lists(st.floats(width=32), max_size=3),
        int_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        string_val=st.lists(st.binary(max_size=3), max_size=3),
        half_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        tensor_shape=st.builds(
            pb.TensorShape,
            dim=st.lists(st.builds(pb.TensorShape.Dim, size=st.integers(-2, 2**63 - 1) | st.integers(0, 3)), max_size=4),
            unknown_rank=st.booleans(),
        ),
    )
)
def test_any_tensor_is_an_array_of_its_shape_or_a_tensor_error(tensor):
    try:
        array = from_tensor(tensor)
    except TensorError:
        return
    assert list(array.shape) == [dim.size for dim in tensor.tensor_shape.dim]


def test_a_typed_field_that_is_too_short_repeats_its_last_value():
    assert from_tensor(wire(pb.DT_FLOAT, [2, 2], float_val=[1.0, 2.0])).tolist() == [[1.0, 2.0], [2.0, 2.0]]
    assert from_tensor(wire(pb.DT_STRING, [3], string_val=[b"a", b"b"])).tolist() == [b"a", b"b", b"b"]


def test_no_values_at_all_are_zeros():
    assert from_tensor(wire(pb.DT_INT64, [2])).tolist() == [0, 0]
    assert from_tensor(wire(pb.DT_STRING, [2])).tolist() == [b"", b""]


def test_half_precision_travels_as_bit_patterns():
    half = np.array([1.0, -2.5], np.float16)
    found = from_tensor(wire(pb.DT_HALF, [2], half_val=half.view(np.uint16).tolist()))
    assert found.dtype == np.float16
    assert found.tolist() == [1.0, -2.5]


def test_bfloat16_is_widened_to_float32():
    typed = from_tensor(wire(pb.DT_BFLOAT16, [2], half_val=[0x3F80, 0xC020]))
    raw = from_tensor(wire(pb.DT_BFLOAT16, [2], tensor_content=b"\x80\x3f\x20\xc0"))
    assert typed.dtype == raw.dtype == np.float32
    assert typed.tolist() == raw.tolist() == [1.0, -2.5]


def test_complex_numbers_travel_in_pairs():
    assert from_tensor(wire(pb.DT_COMPLEX64, [1], scomplex_val=[1.0, 2.0])).tolist() == [1 + 2j]
    with pytest.raises(TensorError, match="half"):
        from_tensor(wire(pb.DT_COMPLEX64, [1], scomplex_val=[1.0]))


def test_a_scalar_stays_a_scalar():
    assert to_tensor(np.array(3.5)).tensor_shape.dim == []
    assert from_tensor(to_tensor(np.array(3.5))).shape == ()


def test_a_big_endian_or_strided_array_is_sent_row_major_and_little_endian():
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    np.testing.assert_array_equal(from_tensor(to_tensor(array)), array)


def test_text_is_sent_as_utf8():
    assert from_tensor(to_tensor(np.array(["é", "b"]))).tolist() == ["é".encode(), b"b"]


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["\ud800"], dtype=object),
        np.array(["2026-01-01"], "datetime64[D]"),
        np.zeros(1, np.longdouble),
        np.broadcast_to(np.zeros(1, np.float32), (MAX_TENSOR_BYTES,)),
    ],
)
def test_an_array_without_a_wire_form_is_refused(array):
    with pytest.raises(TensorError):
        to_tensor(array)


@pytest.mark.parametrize(
    "tensor",
    [
        wire(pb.DT_FLOAT, [2], tensor_content=b"1234567"),
        wire(pb.DT_FLOAT, [0], tensor_content=b"1234"),
        wire(pb.DT_FLOAT, [1], float_val=[1.0, 2.0]),
        wire(pb.DT_FLOAT, [-1], float_val=[1.0]),
        wire(pb.DT_FLOAT, [2**40], float_val=[1.0]),
        wire(pb.DT_FLOAT, [2**30, 2**30, 0]),
        wire(pb.DT_FLOAT, [1] * 65, float_val=[1.0]),
        wire(pb.DT_STRING, [2**25], string_val=[b"x"]),
        wire(pb.DT_STRING, [1], string_val=[b"x", b"y"]),
        wire(pb.DT_STRING, [1], tensor_content=b"x"),
        wire(pb.DT_INVALID, [1]),
        wire(99, [1]),
        pb.Tensor(dtype=pb.DT_FLOAT, tensor_shape=pb.TensorShape(unknown_rank=True)),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{len(tensor.tensor_shape.dim)}",
)
def test_a_tensor_that_is_not_what_it_promises_is_refused(tensor):
    with pytest.raises(TensorError):
        from_tensor(tensor)
