"""Warm-up files: what a version is asked before it answers anybody (TensorFlow Serving, saved_model_warmup.cc).

`assets.extra/tf_serving_warmup_requests` is a TFRecord of PredictionLog. Predict, Classify, Regress and
MultiInference are replayed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from clients.wire.tensors import TensorError, from_tensor
from clients.wire.tfs import server_pb2
from head_service.serving.trust import LoadError

WARMUP_PATH: Final = "assets.extra/tf_serving_warmup_requests"
MAX_RECORDS: Final = 1_000


@dataclass(frozen=True, slots=True)
class PredictRun:
    """Run *signature* ("": the default one) with these inputs."""

    signature: str
    inputs: Mapping[str, NDArray[Any]]
    output_filter: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExamplesRun:
    """Run *signature*, which has one input, with these serialised tensorflow.Examples."""

    signature: str
    examples: NDArray[Any]


Run = PredictRun | ExamplesRun


def runs_in(directory: Path) -> Iterator[Run]:
    """What the warm-up file of the version in *directory* asks for; nothing when there is none.

    Raises:
        LoadError: the file is damaged, too long, or asks for what cannot be replayed.
    """
    path = directory / WARMUP_PATH
    if not path.is_file():
        return
    for number, record in enumerate(_records(path)):
        if number >= MAX_RECORDS:
            raise LoadError(f"{WARMUP_PATH} has more than {MAX_RECORDS} records")
        try:
            yield from _runs(server_pb2.WarmupRecord.FromString(record))
        except (DecodeError, TensorError):
            raise LoadError(f"record {number} of {WARMUP_PATH} is not a PredictionLog") from None


def _records(path: Path) -> Iterator[bytes]:
    """Reads in C++, where the two checksums of each record are compared."""
    try:
        yield from tf.compat.v1.io.tf_record_iterator(str(path))
    except tf.errors.OpError as error:
        raise LoadError(f"{WARMUP_PATH} is damaged: {str(error.message)[:200]}") from None


def _runs(record: server_pb2.WarmupRecord) -> Iterator[Run]:
    match record.WhichOneof("log_type"):
        case "predict_log":
            request = record.predict_log.request
            inputs = {alias: from_tensor(tensor) for alias, tensor in request.inputs.items()}
            yield PredictRun(request.model_spec.signature_name, inputs, tuple(request.output_filter))
        case "classify_log" | "regress_log" as kind:
            asked = record.classify_log.request if kind == "classify_log" else record.regress_log.request
            yield ExamplesRun(asked.model_spec.signature_name, _examples(asked.input))
        case "multi_inference_log":
            tasks = record.multi_inference_log.request
            for task in tasks.tasks:
                yield ExamplesRun(task.model_spec.signature_name, _examples(tasks.input))
        case kind:
            raise LoadError(f"Unsupported log_type for warmup: {kind or 'none'}")


def _examples(given: server_pb2.WarmupInput) -> NDArray[Any]:
    if given.WhichOneof("kind") == "example_list_with_context":
        listed = given.example_list_with_context
        # Messages one behind the other are merged when they are read: the context's features are in every example.
        return np.array([listed.context + example for example in listed.examples], dtype=object)
    return np.array(list(given.example_list.examples), dtype=object)
