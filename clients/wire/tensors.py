"""numpy arrays to TensorFlow's wire tensors and back, without TensorFlow.

Sent: `tensor_content`, or `string_val` for text. Understood: those and every typed field, of which one that holds fewer
values than the tensor has elements repeats its last value, and an empty one means zeros.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clients.wire.metadata import MAX_MESSAGE_BYTES
from clients.wire.tfs import tensor_pb2 as pb

Array = NDArray[Any]

MAX_DIMS: Final = 64
"""numpy's own bound."""

MAX_TENSOR_BYTES: Final = MAX_MESSAGE_BYTES
"""A typed field may name a shape far larger than itself, so the message's size does not bound the array's."""


class TensorError(ValueError):
    """The array has no wire form, or the wire tensor is not the array its dtype and shape promise."""


class _Kind(NamedTuple):
    """How one wire dtype lies in memory: *element* in the array and in tensor_content, *field* and its C type *typed*."""

    element: np.dtype[Any]
    field: str
    typed: np.dtype[Any]


def _kind(element: str, field: str, typed: str) -> _Kind:
    return _Kind(np.dtype(element), field, np.dtype(typed))


_KINDS: Final["Mapping[pb.DataType.ValueType, _Kind]"] = {
    pb.DT_FLOAT: _kind("<f4", "float_val", "<f4"),
    pb.DT_DOUBLE: _kind("<f8", "double_val", "<f8"),
    pb.DT_INT32: _kind("<i4", "int_val", "<i4"),
    pb.DT_INT16: _kind("<i2", "int_val", "<i4"),
    pb.DT_INT8: _kind("i1", "int_val", "<i4"),
    pb.DT_UINT8: _kind("u1", "int_val", "<i4"),
    pb.DT_UINT16: _kind("<u2", "int_val", "<i4"),
    pb.DT_INT64: _kind("<i8", "int64_val", "<i8"),
    pb.DT_UINT32: _kind("<u4", "uint32_val", "<u4"),
    pb.DT_UINT64: _kind("<u8", "uint64_val", "<u8"),
    pb.DT_BOOL: _kind("?", "bool_val", "?"),
    pb.DT_COMPLEX64: _kind("<c8", "scomplex_val", "<f4"),
    pb.DT_COMPLEX128: _kind("<c16", "dcomplex_val", "<f8"),
    pb.DT_HALF: _kind("<f2", "half_val", "<i4"),
    # numpy has no bfloat16: its bits are read as integers and widened to float32.
    pb.DT_BFLOAT16: _kind("<u2", "half_val", "<i4"),
}
_SENT: Final = {kind.element: number for number, kind in _KINDS.items() if number != pb.DT_BFLOAT16}


def to_tensor(array: Array) -> pb.Tensor:
    """*array* as a wire tensor.

    Raises:
        TensorError: its dtype has no wire form. Text is str, bytes, or an object array of either.
    """
    tensor = pb.Tensor()
    fill_tensor(tensor, array)
    return tensor


def fill_tensor(tensor: pb.Tensor, array: Array) -> None:
    """`to_tensor` into an empty *tensor* that is part of another message already, which saves a copy."""
    if array.nbytes > MAX_TENSOR_BYTES:
        raise TensorError(f"an array of {array.nbytes} bytes is larger than {MAX_TENSOR_BYTES}")
    if array.dtype.kind in "OSU":
        tensor.dtype = pb.DT_STRING
        tensor.string_val.extend(_text_bytes(value) for value in array.ravel().tolist())
    else:
        element = array.dtype.newbyteorder("<")
        number = _SENT.get(element)
        if number is None:
            raise TensorError(f"dtype {array.dtype} has no wire form")
        tensor.dtype = number
        tensor.tensor_content = array.astype(element, copy=False).tobytes()
    add = tensor.tensor_shape.dim.add
    for size in array.shape:
        add(size=size)


def _text_bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TensorError(f"an object array holds a {type(value).__name__}; only str and bytes have a wire form")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise TensorError("a text is not valid Unicode") from None


def from_tensor(tensor: pb.Tensor) -> Array:
    """The array a wire *tensor* stands for; text is an object array of bytes, bfloat16 becomes float32.

    It is read-only where it lies in the message's own bytes.

    Raises:
        TensorError: unknown dtype or rank, a negative or huge size, or not as many bytes or values as the shape says.
    """
    shape = _shape(tensor)
    if tensor.dtype == pb.DT_STRING:
        return _texts(tensor, math.prod(shape)).reshape(shape)
    kind = _KINDS.get(tensor.dtype)
    if kind is None:
        raise TensorError(f"dtype number {tensor.dtype} is not one we know")
    num_elements = math.prod(shape)
    _check_size(num_elements * kind.element.itemsize)
    array = _content(tensor.tensor_content, kind, num_elements)
    if array is None:
        array = _typed(tensor, kind, num_elements)
    return _widened(array, tensor.dtype).reshape(shape)


def _shape(tensor: pb.Tensor) -> tuple[int, ...]:
    if tensor.tensor_shape.unknown_rank:
        raise TensorError("a tensor without a rank has no shape")
    shape = tuple([dim.size for dim in tensor.tensor_shape.dim])
    if len(shape) > MAX_DIMS:
        raise TensorError(f"{len(shape)} dimensions are more than {MAX_DIMS}")
    # numpy multiplies the sizes up before it sees a zero among them.
    if any(size < 0 or size > MAX_TENSOR_BYTES for size in shape) or _product_but_zeros(shape) > MAX_TENSOR_BYTES:
        raise TensorError("a size is negative or larger than any tensor of ours")
    return shape


def _product_but_zeros(shape: tuple[int, ...]) -> int:
    return math.prod(size for size in shape if size)


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_TENSOR_BYTES:
        raise TensorError(f"a tensor of {num_bytes} bytes is larger than {MAX_TENSOR_BYTES}")


def _content(data: bytes, kind: _Kind, num_elements: int) -> Array | None:
    if not data:
        return None
    if len(data) != num_elements * kind.element.itemsize:
        raise TensorError(f"{len(data)} bytes are not {num_elements} elements of {kind.element}")
    return np.frombuffer(data, dtype=kind.element)


def _typed(tensor: pb.Tensor, kind: _Kind, num_elements: int) -> Array:
    field = getattr(tensor, kind.field)
    values: Array = np.fromiter(field, dtype=kind.typed, count=len(field))
    if kind.element.kind == "c":
        if len(values) % 2:
            raise TensorError("half a complex number")
        return _repeated(values.view(kind.element), num_elements)
    if kind.field == "half_val":
        return _repeated(values.astype("<u2").view(kind.element), num_elements)
    return _repeated(values.astype(kind.element, copy=False), num_elements)


def _repeated(values: Array, num_elements: int) -> Array:
    if len(values) > num_elements:
        raise TensorError(f"{len(values)} values are more than {num_elements} elements")
    if len(values) == num_elements:
        return values
    full = np.zeros(num_elements, dtype=values.dtype)
    if len(values):
        full[: len(values)] = values
        full[len(values) :] = values[-1]
    return full


def _texts(tensor: pb.Tensor, num_elements: int) -> Array:
    if tensor.tensor_content:
        raise TensorError("texts never travel as tensor_content")
    _check_size(num_elements * np.dtype(object).itemsize)
    values = list(tensor.string_val)
    if len(values) > num_elements:
        raise TensorError(f"{len(values)} values are more than {num_elements} elements")
    full = np.full(num_elements, values[-1] if values else b"", dtype=object)
    full[: len(values)] = values
    return full


def _widened(array: Array, dtype: "pb.DataType.ValueType") -> Array:
    if dtype != pb.DT_BFLOAT16:
        return array
    return (array.astype("<u4") << np.uint32(16)).view("<f4")
