"""Wire tensors to what a graph takes, and a graph's answers to wire tensors, as TensorFlow Serving sends them.

By default the values lie in the typed fields (Tensor::AsProtoField); `tensor_content` is asked for with
`--enable_serialization_as_tensor_content`. Texts lie in `string_val` either way: clients read no other place.
"""

from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from clients.wire.tensors import TensorError, fill_tensor, from_tensor
from clients.wire.tfs import tensor_pb2 as pb
from head_service.serving.dtypes import short_name
from head_service.serving.errors import ServingError

_FIELDS: Final[dict[str, str]] = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
    "float16": "half_val",
    "bfloat16": "half_val",
}


def decode_tensor(tensor: pb.Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array that *tensor* stands for; *dtype* is the graph's and matters for bfloat16 alone, which numpy does not have.

    Raises:
        TensorError: it is malformed.
    """
    array = from_tensor(tensor)
    if tensor.dtype == pb.DT_BFLOAT16 and dtype.name == "bfloat16":
        return array.astype(dtype)
    return array


def encode_tensor(tensor: pb.Tensor, array: NDArray[Any], *, as_content: bool) -> None:
    """Write *array* into the empty *tensor*.

    Raises:
        ServingError: UNIMPLEMENTED: its dtype has no wire form here.
    """
    if array.dtype.name == "bfloat16":
        fill_tensor(tensor, array.view(np.uint16))
        tensor.dtype = pb.DT_BFLOAT16
    else:
        try:
            fill_tensor(tensor, array)
        except TensorError:
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED, f"an output of type {short_name(array.dtype)} cannot be sent"
            ) from None
    if not as_content and array.dtype.name in _FIELDS:
        getattr(tensor, _FIELDS[array.dtype.name]).extend(_typed(array).tolist())
        tensor.ClearField("tensor_content")


def _typed(array: NDArray[Any]) -> NDArray[Any]:
    """The values as the typed field holds them, flat."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind == "c":
        return flat.view(flat.real.dtype)
    if flat.dtype.name in {"float16", "bfloat16"}:
        return flat.view(np.uint16)
    return flat
