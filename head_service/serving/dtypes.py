"""TensorFlow's two names for each dtype, from numpy's (tensorflow/core/framework/types.cc)."""

from typing import Any, Final

import numpy as np

_SHORT: Final = {
    "float32": "float",
    "float64": "double",
    "float16": "half",
    "object": "string",
}


def short_name(dtype: np.dtype[Any]) -> str:
    """`float`, `int64`, `string`: what TensorFlow's DataTypeString answers."""
    return _SHORT.get(dtype.name, dtype.name)


def proto_name(dtype: np.dtype[Any]) -> str:
    """`DT_FLOAT`, `DT_INT64`, `DT_STRING`: the name in tensorflow.DataType."""
    return f"DT_{short_name(dtype).upper()}"
