"""Outputs as the JSON that the reference would write. Source: util/json_tensor.cc (MakeJsonFromTensors and its like).

Floats are written with as few digits as bring back the same float, whole ones with `.0`; what is not finite as the bare
words NaN, Infinity and -Infinity, which strict JSON does not know.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from clients.wire.tfs import inference_pb2 as pb
from head_service.serving.dtypes import short_name
from head_service.serving.errors import invalid

Outputs = Mapping[str, NDArray[Any]]

BYTES_SUFFIX: Final = "_bytes"
"""Texts of an output named so are written as base64."""

_WRITTEN: Final = {"float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool", "object"}
_TENS: Final = np.array([float(f"1e{places}") for places in range(23)])
"""The powers of ten that a double holds exactly."""


def row_answer(outputs: Outputs) -> dict[str, Any]:
    """`predictions`: plain rows of the only output, or objects of all of them.

    Raises:
        ServingError: INVALID_ARGUMENT: the outputs do not share a batch size, or JSON has no form for one.
    """
    size = None
    for alias, array in sorted(outputs.items()):
        if not array.ndim:
            raise invalid(f"Tensor name: {alias} has no shape information ")
        if size is not None and len(array) != size:
            raise invalid(f"Tensor name: {alias} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)
    listed = {alias: json_of(alias, array) for alias, array in outputs.items()}
    if len(listed) == 1:
        return {"predictions": next(iter(listed.values()))}
    return {"predictions": [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)]}


def column_answer(outputs: Outputs) -> dict[str, Any]:
    """`outputs`: the only output whole, or an object of all of them.

    Raises:
        ServingError: INVALID_ARGUMENT: JSON has no form for one.
    """
    listed = {alias: json_of(alias, array) for alias, array in outputs.items()}
    return {"outputs": next(iter(listed.values())) if len(listed) == 1 else listed}


def classify_answer(result: pb.ClassificationResult) -> dict[str, Any]:
    """`results`: for each example its [label, score] pairs."""
    rows = []
    for row in result.classifications:
        scores = _floats([found.score for found in row.classes])
        rows.append([[found.label, score] for found, score in zip(row.classes, scores, strict=True)])
    return {"results": rows}


def regress_answer(result: pb.RegressionResult) -> dict[str, Any]:
    """`results`: one number for each example."""
    return {"results": _floats([regression.value for regression in result.regressions])}


def json_of(alias: str, array: NDArray[Any]) -> Any:
    """*array* as nested lists."""
    if array.dtype.name not in _WRITTEN:
        raise invalid(f"Failed to write JSON value for tensor type: {short_name(array.dtype)}")
    if array.dtype == np.dtype(object):
        return _texts(array.tolist(), as_base64=alias.endswith(BYTES_SUFFIX))
    return shortest(array).tolist() if array.dtype == np.float32 else array.tolist()


def written(content: dict[str, Any], *, is_finite: bool) -> bytes:
    """*content* as JSON; *is_finite*: it holds no number that needs one of the bare words."""
    return msgspec.json.encode(content) if is_finite else json.dumps(content, ensure_ascii=False).encode()


def all_finite(outputs: Outputs) -> bool:
    """Whether every number of *outputs* is one that strict JSON knows."""
    return all(bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f")


def shortest(array: NDArray[np.float32]) -> NDArray[np.float64]:
    """Doubles that print with the fewest digits that still read back as the same float32."""
    wide = array.astype(np.float64)
    found = wide.copy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        magnitude = np.floor(np.log10(np.abs(wide)))
        is_open = np.isfinite(magnitude) & (np.abs(magnitude) < 13)
        for digits in range(6, 11):
            places = np.where(is_open, digits - 1 - magnitude, 0).astype(int)
            scale = _TENS[np.abs(places)]
            # Both operands are exact, so the result is the double nearest to the decimal, which prints as that decimal.
            near = np.where(places >= 0, np.rint(wide * scale) / scale, np.rint(wide / scale) * scale)
            is_same = is_open & (near.astype(np.float32) == array)
            found[is_same] = near[is_same]
            is_open &= ~is_same
    odd = np.isfinite(wide) & (wide != 0) & (np.abs(magnitude) >= 13)
    found[odd] = [float(str(value)) for value in array[odd]]
    return found


def _floats(values: list[float]) -> list[float]:
    listed: list[float] = shortest(np.array(values, np.float32)).tolist()
    return listed


def _texts(value: Any, *, as_base64: bool) -> Any:
    if isinstance(value, list):
        return [_texts(item, as_base64=as_base64) for item in value]
    if as_base64:
        return {"b64": base64.b64encode(value).decode()}
    # Bytes that are no text: a JSON string cannot carry them.
    return value.decode("utf-8", "replace")
