"""Classify and Regress: what their signatures must look like, and their outputs as results.

As the reference does by default, a signature is judged by its inputs and outputs and not by its method name, so that
exports of TensorFlow 2, whose method name is always `tensorflow/serving/predict`, can be asked too.
Sources: servables/tensorflow/{classifier,regressor}.cc, TensorFlow's signature_constants.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from clients.wire.tfs import inference_pb2 as pb
from head_service.serving.dtypes import proto_name
from head_service.serving.errors import ServingError, invalid
from head_service.serving.signature import Signature

CLASSIFY_METHOD: Final = "tensorflow/serving/classify"
REGRESS_METHOD: Final = "tensorflow/serving/regress"
INPUTS: Final = "inputs"
CLASSES: Final = "classes"
SCORES: Final = "scores"
OUTPUTS: Final = "outputs"

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to run for one signature: the tensor that takes the examples, and the tensor of each output by alias."""

    feed: str
    fetches: Mapping[str, str]


def wanted_for(method: str, signature: Signature) -> Wanted:
    """What to run for `CLASSIFY_METHOD` or `REGRESS_METHOD`.

    Raises:
        ServingError: INVALID_ARGUMENT: it is not such a signature; UNIMPLEMENTED: another method.
    """
    if method == CLASSIFY_METHOD:
        return _classification(signature)
    if method == REGRESS_METHOD:
        return _regression(signature)
    raise ServingError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {method}")


def _classification(signature: Signature) -> Wanted:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in {1, 2}:
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUTS not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {_aliases(signature)}")
    fetches = {alias: signature.outputs[alias].name for alias in (CLASSES, SCORES) if alias in signature.outputs}
    if not fetches:
        raise invalid(
            f'Expected classification signature outputs to contain at least one of "{CLASSES}" or "{SCORES}". '
            f"Signature was: {_aliases(signature)}"
        )
    return Wanted(signature.inputs[INPUTS].name, fetches)


def _regression(signature: Signature) -> Wanted:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if INPUTS not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {_aliases(signature)}")
    if OUTPUTS not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {_aliases(signature)}")
    return Wanted(signature.inputs[INPUTS].name, {OUTPUTS: signature.outputs[OUTPUTS].name})


def classification_result(wanted: Wanted, outputs: Arrays, num_examples: int) -> pb.ClassificationResult:
    """Labels [examples, classes] and scores [examples, classes], either of which may be absent, example by example.

    *outputs* are by the graph's tensor names.

    Raises:
        ServingError: INVALID_ARGUMENT: the model answered with another shape or type.
    """
    classes, scores = (outputs.get(wanted.fetches.get(alias, "")) for alias in (CLASSES, SCORES))
    if classes is not None:
        _check_class_output(classes, np.dtype(object), "classes", num_examples)
    if scores is not None:
        _check_class_output(scores, np.dtype(np.float32), "scores", num_examples)
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}")
    result = pb.ClassificationResult()
    for row in range(num_examples):
        found = result.classifications.add()
        for label, score in _classes_of(None if classes is None else classes[row], None if scores is None else scores[row]):
            found.classes.add(label=label, score=score)
    return result


def _classes_of(labels: NDArray[Any] | None, scores: NDArray[Any] | None) -> Iterator[tuple[str, float]]:
    """What is absent is "" or 0."""
    texts = itertools.repeat("") if labels is None else map(_text, labels.tolist())
    values = itertools.repeat(0.0) if scores is None else scores.tolist()
    return zip(texts, values, strict=False)


def regression_result(wanted: Wanted, outputs: Arrays, num_examples: int) -> pb.RegressionResult:
    """One value per example, from [examples] or [examples, 1].

    Raises:
        ServingError: as `classification_result`.
    """
    values = outputs[wanted.fetches[OUTPUTS]]
    if not (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)):
        raise invalid(f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(values)}")
    if len(values) != num_examples:
        raise invalid(f"Input batch size did not match output batch size: {num_examples} vs. {len(values)}")
    if values.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {proto_name(values.dtype)}")
    return pb.RegressionResult(regressions=[pb.Regression(value=value) for value in values.reshape(-1).tolist()])


def _check_class_output(array: NDArray[Any], dtype: np.dtype[Any], name: str, num_examples: int) -> None:
    if array.ndim != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
    if array.dtype != dtype:
        raise invalid(f"Expected {name} Tensor of {proto_name(dtype)}. Got: {proto_name(array.dtype)}")
    if len(array) != num_examples:
        raise invalid(f"Expected {name} output batch size of {num_examples}. Got: {len(array)}")


def _text(label: bytes) -> str:
    # A protobuf string is Unicode; a label that is not cannot be sent as it is.
    return label.decode("utf-8", "replace")


def _shape(array: NDArray[Any]) -> str:
    return "[" + ",".join(str(size) for size in array.shape) + "]"


def _aliases(signature: Signature) -> str:
    return f"inputs {{{','.join(signature.inputs)}}} outputs {{{','.join(signature.outputs)}}}"
