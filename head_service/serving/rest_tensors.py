"""JSON values to arrays, by the reference's rules and in its words.

An array of numbers takes a quick way; whatever that refuses is read again value by value, which finds what is wrong.
Source: util/json_tensor.cc (FillTensorProto, AddValueToTensor, AddInstanceItem and their callers).
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from clients.wire.tensors import MAX_DIMS
from head_service.serving.dtypes import short_name
from head_service.serving.errors import MAX_ECHO_CHARACTERS, ServingError, echo, invalid
from head_service.serving.rest_json import printable

Array = NDArray[Any]
Shape = tuple[int, ...]

_INTEGERS: Final = ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")
_QUICK: Final[dict[str, frozenset[type]]] = {
    **dict.fromkeys(("float32", "float64"), frozenset({float, int})),
    **dict.fromkeys(_INTEGERS, frozenset({int})),
    "bool": frozenset({bool}),
}
"""What may stand in an array of each dtype. TensorFlow Serving reads no other ones from JSON, but for texts."""

_TYPE_NAMES: Final = {str: "String", dict: "Object", list: "Array", int: "Number", float: "Number", type(None): "Null"}


class Typed(Protocol):
    """An input of a signature."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        ...


def tensor_of(value: object, dtype: np.dtype[Any]) -> Array:
    """*value*, nested lists of one shape or a scalar, as an array of *dtype*; texts are bytes in an object array.

    Raises:
        ServingError: INVALID_ARGUMENT: it is not such a tensor; UNIMPLEMENTED: JSON has no form for *dtype*.
    """
    shape = _shape_of(value)
    quick = _quick(value, dtype, shape)
    if quick is not None:
        return quick
    flat: list[object] = []
    _fill(value, 0, shape, dtype, flat)
    array = np.empty(len(flat), dtype)
    with np.errstate(over="ignore"):
        array[:] = flat
    return array.reshape(shape)


def row_inputs(rows: list[Any], inputs: Mapping[str, Typed]) -> dict[str, Array]:
    """Inputs by alias, each with one row an element of *rows*, which is not empty.

    Raises:
        ServingError: as `tensor_of`; or an element has other inputs or another shape than it should.
    """
    if not isinstance(rows[0], dict) and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map"
        )
    if _is_object(rows[0]):
        return _named_rows(rows, inputs)
    alias = min(inputs)
    quick = _quick(rows, inputs[alias].dtype, _shape_of(rows))
    return {alias: _plain_rows(rows, inputs[alias].dtype) if quick is None else quick}


def column_inputs(value: object, inputs: Mapping[str, Typed]) -> dict[str, Array]:
    """Inputs by alias, whole, from an object of them, or from the one input itself.

    Raises:
        ServingError: as `tensor_of`, or an input is missing. An input that a signature does not have is not read.
    """
    if not isinstance(value, dict) or is_base64(value):
        if len(inputs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map"
            )
        alias = min(inputs)
        return {alias: tensor_of(value, inputs[alias].dtype)}
    arrays = {}
    for alias, info in inputs.items():
        if alias not in value:
            raise invalid(f"Missing named input: {alias} in 'inputs' object.")
        arrays[alias] = tensor_of(value[alias], info.dtype)
    return arrays


def is_base64(value: object) -> bool:
    """Whether *value* is `{"b64": "…"}`, which stands for bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def bytes_of(value: str | dict[str, str]) -> bytes:
    """The bytes of a text, or of a value that `is_base64`; whitespace in it and padding at its end are as one likes.

    Raises:
        ServingError: INVALID_ARGUMENT: it is not base64, or half of a surrogate pair.
    """
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None
    digits = "".join(value["b64"].split()).rstrip("=")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def excerpt(value: object) -> str:
    """The first characters of *value* as JSON, for a message."""
    written = ""
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        written += part[:MAX_ECHO_CHARACTERS]
        if len(written) >= MAX_ECHO_CHARACTERS:
            break
    return printable(written[:MAX_ECHO_CHARACTERS])


def type_name(value: object) -> str:
    """RapidJSON's name for the type of *value*."""
    return str(value) if isinstance(value, bool) else _TYPE_NAMES[type(value)]


def _named_rows(rows: list[Any], inputs: Mapping[str, Typed]) -> dict[str, Array]:
    if all(isinstance(row, dict) and row.keys() == inputs.keys() for row in rows):
        columns = {alias: [row[alias] for row in rows] for alias in inputs}
        quick = {alias: _quick(column, inputs[alias].dtype, _shape_of(column)) for alias, column in columns.items()}
        if all(array is not None for array in quick.values()):
            return {alias: array for alias, array in quick.items() if array is not None}
    found: dict[str, list[Array]] = {alias: [] for alias in inputs}
    for place, row in enumerate(rows):
        if not _is_object(row):
            raise invalid(f"Expecting object but got list at item {place} of input list")
        for alias, value in row.items():
            with_key = f"Failed to process element: {place} key: {echo(printable(alias))} of 'instances' list. Error: "
            if alias not in inputs:
                raise invalid(f"{with_key}INVALID_ARGUMENT: JSON object: does not have named input: {echo(printable(alias))}")
            _add(found[alias], value, inputs[alias].dtype, with_key)
        if row.keys() != inputs.keys():
            raise invalid(
                f"Failed to process element: {place} of 'instances' list. JSON object: {excerpt(row)} "
                f"keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {alias: np.stack(arrays) for alias, arrays in found.items()}


def _plain_rows(rows: list[Any], dtype: np.dtype[Any]) -> Array:
    arrays: list[Array] = []
    for place, row in enumerate(rows):
        if _is_object(row):
            raise invalid(f"Expecting value/list but got object at item {place} of input list")
        _add(arrays, row, dtype, f"Failed to process element: {place} of 'instances' list. Error: ")
    return np.stack(arrays)


def _add(arrays: list[Array], value: object, dtype: np.dtype[Any], prefix: str) -> None:
    """Append the tensor of one element, which has to have the shape of those before."""
    try:
        array = tensor_of(value, dtype)
    except ServingError as error:
        raise invalid(f"{prefix}{error.code.name}: {error.message}") from None
    if arrays and arrays[0].size != array.size:
        raise invalid(f"{prefix}INVALID_ARGUMENT: Expecting tensor size: {arrays[0].size} but got: {array.size}")
    if arrays and arrays[0].shape != array.shape:
        raise invalid(f"{prefix}INVALID_ARGUMENT: Expecting shape {_shown(arrays[0].shape)} but got: {_shown(array.shape)}")
    arrays.append(array)


def _is_object(value: object) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _shape_of(value: object) -> Shape:
    """As the first element of each list says; whether the others agree is not looked at here."""
    shape: list[int] = []
    while isinstance(value, list):
        if len(shape) == MAX_DIMS:
            raise invalid(f"JSON Value is nested deeper than a tensor of {MAX_DIMS} dimensions")
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _quick(value: object, dtype: np.dtype[Any], shape: Shape) -> Array | None:
    """The array if *value* is plainly one; None: it has to be looked at closely."""
    allowed = _QUICK.get(dtype.name)
    if allowed is None or not _types(value, len(shape)) <= allowed:
        return None
    try:
        with np.errstate(over="ignore"):
            array = np.array(value, dtype)
    except (ValueError, OverflowError, TypeError):
        return None
    return array if array.shape == shape else None


def _types(value: object, rank: int) -> set[type]:
    """The types *rank* lists deep in *value*."""
    if rank == 0 or not isinstance(value, list):
        return {type(value)} if rank == 0 else {list}
    if rank == 1:
        return set(map(type, value))
    found: set[type] = set()
    for item in value:
        found |= _types(item, rank - 1)
    return found


def _fill(value: object, level: int, shape: Shape, dtype: np.dtype[Any], flat: list[object]) -> None:
    """Append what lies below *value*, *level* lists deep, to *flat*."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {excerpt(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        flat.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}")
    for item in value:
        _fill(item, level + 1, shape, dtype, flat)


def _element(value: object, dtype: np.dtype[Any]) -> object:
    if dtype == np.dtype(object):
        if isinstance(value, str):
            return bytes_of(value)
        if isinstance(value, dict):
            if not is_base64(value):
                raise invalid(f"JSON Value: {excerpt(value)} not formatted correctly for base64 data")
            return bytes_of(value)
        raise _type_error(value, dtype)
    allowed = _QUICK.get(dtype.name)
    if allowed is None and not isinstance(value, dict):
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED, f"Conversion of JSON Value: {excerpt(value)} to type: {short_name(dtype)}"
        )
    if allowed is None or type(value) not in allowed or not _in_range(value, dtype):
        raise _type_error(value, dtype)
    return value


def _in_range(value: object, dtype: np.dtype[Any]) -> bool:
    return not (isinstance(value, int) and dtype.kind in "iu") or np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _type_error(value: object, dtype: np.dtype[Any]) -> ServingError:
    return invalid(f"JSON Value: {excerpt(value)} Type: {type_name(value)} is not of expected type: {short_name(dtype)}")


def _shown(shape: Shape) -> str:
    return "[" + ",".join(str(size) for size in shape) + "]"
