"""Warm-up files: what a version is asked before it answers anybody (TensorFlow Serving, saved_model_warmup.cc).

`assets.extra/tf_serving_warmup_requests` is a TFRecord of PredictionLog. Predict, Classify, Regress and MultiInference are
replayed.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.message import DecodeError

from clients.wire.tfs import inference_pb2, serving_pb2
from head_service.manifest import WARMUP_PATH
from head_service.serving import plans
from head_service.serving.trust import LoadError

MAX_RECORDS: Final = 1_000

Request = serving_pb2.PredictRequest | plans.Request


def requests_in(records: Iterable[bytes]) -> Iterator[Request]:
    """What the *records* of a warm-up file ask for.

    Raises:
        LoadError: there are too many, or one asks for what cannot be replayed.
    """
    for number, record in enumerate(records):
        if number >= MAX_RECORDS:
            raise LoadError(f"{WARMUP_PATH} has more than {MAX_RECORDS} records")
        try:
            log = inference_pb2.PredictionLog.FromString(record)
        except DecodeError:
            raise LoadError(f"record {number} of {WARMUP_PATH} is not a PredictionLog") from None
        yield _request(log)


def _request(log: inference_pb2.PredictionLog) -> Request:
    match log.WhichOneof("log_type"):
        case "predict_log":
            return log.predict_log.request
        case "classify_log":
            return log.classify_log.request
        case "regress_log":
            return log.regress_log.request
        case "multi_inference_log":
            return log.multi_inference_log.request
        case kind:
            raise LoadError(f"Unsupported log_type for warmup: {kind or 'none'}")
