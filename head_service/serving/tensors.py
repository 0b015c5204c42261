"""JSON values to arrays and back, by TensorFlow Serving's REST rules (tensorflow_serving/util/json_tensor.cc)."""

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class JsonTensorError(ValueError):
    """A JSON value that is no tensor of the wanted type."""


def array_of(value: object, dtype: np.dtype[Any]) -> Array:
    """*value*, nested lists of one shape, as an array; bytes travel as {"b64": …} or as strings, for object dtype."""
    try:
        if dtype == np.dtype(object):
            return np.array(_bytes_of(value), dtype=object)
        array = np.array(value)
    except ValueError:
        raise JsonTensorError("Encountered list at unexpected size: all elements must have the same shape") from None
    if array.size and not _is_numeric(array, dtype):
        raise JsonTensorError(f"JSON Value is not of expected type: {dtype.name}")
    return _cast(array, dtype)


def json_of(array: Array, *, as_base64: bool) -> Any:
    """*array* as nested lists."""
    if array.dtype == np.dtype(object):
        return _strings_of(array.tolist(), as_base64)
    if array.dtype.kind not in "fiub":
        return array.astype(np.float32).tolist()
    return array.tolist()


def _is_numeric(array: Array, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "b":
        return array.dtype.kind == "b"
    return array.dtype.kind in ("fiu" if dtype.kind == "f" or dtype.name == "bfloat16" else "iu")


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise JsonTensorError(f"a number is outside the range of {dtype.name}")
    return array.astype(dtype)


def _bytes_of(value: object) -> Any:
    if isinstance(value, list):
        return [_bytes_of(item) for item in value]
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error:
            raise JsonTensorError("a b64 value is not base64") from None
    raise JsonTensorError("JSON Value is not of expected type: string")


def _strings_of(value: Any, as_base64: bool) -> Any:
    if isinstance(value, list):
        return [_strings_of(item, as_base64) for item in value]
    return {"b64": base64.b64encode(value).decode()} if as_base64 else value.decode("utf-8", "replace")
