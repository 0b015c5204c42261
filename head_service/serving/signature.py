"""What a model can be asked: its signatures, by what they take and give."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

DEFAULT_SIGNATURE: Final = "serving_default"
INIT_SIGNATURE: Final = "__saved_model_init_op"
"""Stands among the signatures of a TensorFlow 2 export and is told as one, but nobody runs it."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a graph: its *name* there, such as `ParseExample:0`; texts have the dtype of objects."""

    name: str
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Signature:
    """Tensors by alias, and the values of inputs that a caller may leave out."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    defaults: Mapping[str, NDArray[Any]] = field(default_factory=dict)
