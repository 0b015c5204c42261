"""An unmodified third-party client, in a process of its own: tensorflow-serving-api's stubs against two head servers.

Prints one JSON object of what it saw. Arguments: HOST:PORT of the plain server and of the other one, the models' directory.
"""

import base64
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.contract.kinds import KINDS

SECONDS = 30.0
SLOW_STEPS = 300_000
"""Of a loop in the graph; some tenths of a second at the least."""


class Client:
    """Both services of one server."""

    def __init__(self, address: str) -> None:
        channel = grpc.insecure_channel(address)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(channel)

    def predict(self, model: str, signature: str = "", **inputs: object) -> predict_pb2.PredictResponse:
        return self.prediction.Predict(predict_request(model, signature, **inputs), timeout=SECONDS)


def predict_request(model: str, signature: str = "", **inputs: object) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for alias, value in inputs.items():
        is_plain = isinstance(value, list | float)
        tensor = value if isinstance(value, TensorProto) else tf.make_tensor_proto(value, tf.float32 if is_plain else None)
        request.inputs[alias].CopyFrom(tensor)
    return request


def outcome(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["OK", ""]


def plain(tensor: Any) -> Any:
    array = tf.make_ndarray(tensor)
    if array.dtype == object:
        return np.vectorize(lambda text: text.decode("latin-1"), otypes=[object])(array).tolist()
    return array.tolist()


def spec_of(answer: Any) -> list[Any]:
    return [answer.model_spec.name, answer.model_spec.version.value, answer.model_spec.signature_name]


def example(**features: object) -> Any:
    made = tf.train.Example()
    for name, value in features.items():
        feature = made.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.float_list.value.append(value)
    return made


def examples(listed: Iterable[Any], context: Any = None) -> input_pb2.Input:
    if context is None:
        return input_pb2.Input(example_list=input_pb2.ExampleList(examples=listed))
    return input_pb2.Input(example_list_with_context=input_pb2.ExampleListWithContext(examples=listed, context=context))


TWO = examples([example(x=2.0, word=b"good"), example(x=4.0)])


def classify_request(model: str, signature: str, given: input_pb2.Input = TWO) -> classification_pb2.ClassificationRequest:
    request = classification_pb2.ClassificationRequest(input=given)
    request.model_spec.name, request.model_spec.signature_name = model, signature
    return request


def regress_request(model: str, signature: str, given: input_pb2.Input = TWO) -> regression_pb2.RegressionRequest:
    request = regression_pb2.RegressionRequest(input=given)
    request.model_spec.name, request.model_spec.signature_name = model, signature
    return request


def multi_request(*tasks: tuple[str, str, str], given: input_pb2.Input = TWO) -> inference_pb2.MultiInferenceRequest:
    request = inference_pb2.MultiInferenceRequest(input=given)
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = model, signature
    return request


def classes_of(result: Any) -> list[Any]:
    return [[[found.label, found.score] for found in row.classes] for row in result.classifications]


def values_of(result: Any) -> list[float]:
    return [row.value for row in result.regressions]


def seen_errors(client: Client) -> dict[str, list[str]]:
    """The situations of Predict, each by its name."""

    def two(**inputs: object) -> predict_pb2.PredictRequest:
        return predict_request("module", "", **inputs)

    good = {"a": [1.0], "b": [2.0]}
    requests = {name: two(**good) for name in ("no name", "model", "version", "label", "signature", "filter", "twice", "huge")}
    requests["no spec"] = predict_pb2.PredictRequest()
    requests["no name"].model_spec.name = ""
    requests["model"].model_spec.name = "nobody"
    requests["version"].model_spec.version.value = 99
    requests["label"].model_spec.version_label = "nobody"
    requests["signature"].model_spec.signature_name = "nothing"
    requests["missing"] = two(a=[1.0])
    requests["extra"] = two(**good, c=[1.0])
    requests["wrong name"] = two(a=[1.0], c=[1.0])
    requests["default, wrong name"] = predict_request("module", "scaled", x=[1.0], c=[1.0])
    requests["default, missing"] = predict_request("module", "scaled", by=1.0)
    requests["default, extra"] = predict_request("module", "scaled", x=[1.0], by=1.0, c=1.0)
    requests["broken"] = two(**good)
    requests["broken"].inputs["b"].tensor_content = b"123"
    requests["huge"].inputs["b"].tensor_shape.dim[0].size = 1 << 60
    requests["filter"].output_filter.extend(["sum", "nothing"])
    requests["twice"].output_filter.extend(["sum", "sum"])
    requests["shape"] = two(a=[1.0, 2.0], b=[1.0, 2.0, 3.0])
    requests["dtype"] = two(a=np.array([1]), b=np.array([1]))
    # Of two faults the first that the reference looks for is told.
    requests["model, then signature"] = predict_request("nobody", "nothing")
    requests["signature, then inputs"] = predict_request("module", "nothing")
    requests["inputs, then filter"] = two(a=[1.0])
    requests["inputs, then filter"].output_filter.append("nothing")
    requests["filter, then run"] = two(a=[1.0, 2.0], b=[1.0, 2.0, 3.0])
    requests["filter, then run"].output_filter.append("nothing")
    return {name: outcome(lambda made=made: client.prediction.Predict(made, timeout=SECONDS)) for name, made in requests.items()}


def seen_inference_errors(client: Client) -> dict[str, list[str]]:
    prediction = client.prediction
    nothing = input_pb2.Input()
    broken = input_pb2.Input.FromString(TWO.SerializeToString())
    broken.example_list.examples[0].features.feature["x"].int64_list.value.append(1)
    no_version = classify_request("session", "classify_both")
    no_version.model_spec.version.value = 99
    both = ("session", "classify_both", "classify")
    classify = {
        "no spec": classification_pb2.ClassificationRequest(),
        "no name": classify_request("", ""),
        "model": classify_request("nobody", ""),
        "version": no_version,
        "signature": classify_request("session", "nothing"),
        "empty": classify_request("session", "classify_both", nothing),
        "not parsed": classify_request("session", "classify_both", broken),
        **{name: classify_request("session", f"classify_{name}") for name in ("flat", "double", "uneven", "other", "nothing")},
        "two inputs": classify_request("module", "serving_default"),
        "three outputs": classify_request("module", "upper"),
    }
    regress = {
        "regress, no spec": regression_pb2.RegressionRequest(),
        "regress, signature": regress_request("session", "nope"),
        "regress, empty": regress_request("session", "regress_flat", nothing),
        "two outputs": regress_request("session", "classify_both"),
        **{name: regress_request("session", f"regress_{name}") for name in ("matrix", "whole", "short")},
        "regress, other": regress_request("session", "regress_other"),
    }
    multi = {
        "no task": inference_pb2.MultiInferenceRequest(input=TWO),
        "two models": multi_request(both, ("module", "classified", "classify")),
        "nameless": multi_request(both, ("", "", "classify")),
        "same twice": multi_request(both, both),
        "multi, signature": multi_request(("session", "nothing", "classify")),
        "predict task": multi_request(("session", "serving_default", "predict")),
        "multi, empty": multi_request(both, given=nothing),
        "multi, model": multi_request(("nobody", "", "classify")),
    }
    seen = {name: outcome(lambda made=made: prediction.Classify(made, timeout=SECONDS)) for name, made in classify.items()}
    seen |= {name: outcome(lambda made=made: prediction.Regress(made, timeout=SECONDS)) for name, made in regress.items()}
    return seen | {
        name: outcome(lambda made=made: prediction.MultiInference(made, timeout=SECONDS)) for name, made in multi.items()
    }


def seen_results(client: Client) -> dict[str, Any]:
    def classify(model: str, signature: str, given: input_pb2.Input = TWO) -> list[Any]:
        answer = client.prediction.Classify(classify_request(model, signature, given), timeout=SECONDS)
        return [classes_of(answer.result), spec_of(answer)]

    def regress(model: str, signature: str, given: input_pb2.Input = TWO) -> list[Any]:
        answer = client.prediction.Regress(regress_request(model, signature, given), timeout=SECONDS)
        return [values_of(answer.result), spec_of(answer)]

    tasks = (("session", "classify_both", "classify"), ("session", "regress_column", "regress"))
    multi = client.prediction.MultiInference(multi_request(*tasks), timeout=SECONDS)
    in_context = examples([example(x=2.0), example(x=4.0)], example(word=b"same"))
    return {
        "both": classify("session", "classify_both"),
        "labels": classify("session", "classify_labels"),
        "scores": classify("session", "classify_scores"),
        "context": classify("session", "classify_labels", in_context),
        "tf2 classify": classify("module", "classified", examples([example(x=1.0), example(x=-1.0)])),
        "flat": regress("session", "regress_flat"),
        "column": regress("session", "regress_column"),
        "tf2 regress": regress("module", "counted_features", examples([example(n=3), example(n=4)])),
        "multi": [
            [spec_of(row), row.WhichOneof("result"), classes_of(row.classification_result), values_of(row.regression_result)]
            for row in multi.results
        ],
    }


def seen_tensors(client: Client) -> dict[str, Any]:
    """Every kind there and back, from typed fields and from tensor_content, and how the answer carries it."""
    seen: dict[str, Any] = {}
    for kind, field in KINDS.items():
        array = tf.cast(tf.constant([[0, 1], [1, 2]]), kind).numpy()
        proto = tf.make_tensor_proto(array.astype(tf.as_dtype(kind).as_numpy_dtype))
        typed = TensorProto(dtype=proto.dtype, tensor_shape=proto.tensor_shape)
        typed_field(typed, tf.make_ndarray(proto), field)
        answers = [client.predict("module", kind, x=given).outputs["y"] for given in (proto, typed)]
        filled = [found.name for found, _ in answers[0].ListFields() if found.name not in {"dtype", "tensor_shape"}]
        seen[kind] = {
            "fields": filled,
            "same": [bool((tf.make_ndarray(answer) == tf.make_ndarray(proto)).all()) for answer in answers],
            "dtype": tf.as_dtype(answers[0].dtype).name,
            "shape": [dim.size for dim in answers[0].tensor_shape.dim],
        }
    texts = client.predict("module", "string", x=tf.make_tensor_proto([b"a\0", "é".encode(), b"\xff"])).outputs["y"]
    scalar = client.predict("module", "string", x=tf.make_tensor_proto(b"a\0")).outputs["y"]
    seen["string"] = [plain(texts), bool(texts.tensor_content), plain(scalar)]
    return seen


def typed_field(tensor: Any, array: Any, field: str) -> None:
    flat = array.reshape(-1)
    if field == "half_val":
        flat = flat.view(np.uint16)
    elif flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    getattr(tensor, field).extend(flat.tolist())


def seen_predict(client: Client) -> dict[str, Any]:
    def values(answer: predict_pb2.PredictResponse) -> dict[str, Any]:
        return {alias: plain(tensor) for alias, tensor in answer.outputs.items()}

    filtered = predict_request("module", "", a=[1.0], b=[2.0])
    filtered.output_filter.append("product")
    repeated = predict_request("session", "", x=[1.0, 1.0, 1.0])
    repeated.inputs["x"].ClearField("tensor_content")
    repeated.inputs["x"].ClearField("float_val")
    zeros = predict_pb2.PredictRequest.FromString(repeated.SerializeToString())
    repeated.inputs["x"].float_val.extend([1.0, 2.0])
    chosen, labelled = (predict_request("session", "", x=[2.0]) for _ in range(2))
    chosen.model_spec.version.value = 1
    labelled.model_spec.version_label = "stable"
    latest = client.predict("session", "", x=[2.0])
    keras = client.predict("keras", "", **{keras_input(client): [[1.0, 2.0, 3.0]]})
    return {
        "two": values(client.predict("module", "", a=[1.0], b=[2.0])),
        "filtered": values(client.prediction.Predict(filtered, timeout=SECONDS)),
        "repeated": values(client.prediction.Predict(repeated, timeout=SECONDS)),
        "zeros": values(client.prediction.Predict(zeros, timeout=SECONDS)),
        "default": values(client.predict("module", "scaled", x=[2.0])),
        "no default": values(client.predict("module", "scaled", x=[2.0], by=5.0)),
        "latest": [values(latest), spec_of(latest)],
        "chosen": [values(client.prediction.Predict(chosen, timeout=SECONDS))],
        "labelled": [values(client.prediction.Predict(labelled, timeout=SECONDS))],
        "examples": values(client.predict("session", "regress_flat", inputs=np.array([example(x=2.0).SerializeToString()]))),
        "keras": list(values(keras).values()),
    }


def keras_input(client: Client) -> str:
    return next(iter(metadata_of(client, "keras").signature_def["serving_default"].inputs))


def metadata_of(client: Client, model: str) -> Any:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = model
    described = client.prediction.GetModelMetadata(request, timeout=SECONDS)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert described.metadata["signature_def"].Unpack(signatures)
    return signatures


def seen_models(client: Client) -> dict[str, Any]:
    metadata = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata.model_spec.name = "session"
    odd = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["asset"])
    odd.model_spec.name = "session"
    unknown = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    unknown.model_spec.name = "nobody"
    status, one, missing, nobody = (get_model_status_pb2.GetModelStatusRequest() for _ in range(4))
    for request in (status, one, missing):
        request.model_spec.name = "session"
    one.model_spec.version.value, missing.model_spec.version.value = 1, 99
    nobody.model_spec.name = "nobody"
    signatures = metadata_of(client, "session").signature_def

    def states(request: Any) -> list[Any]:
        rows = client.model.GetModelStatus(request, timeout=SECONDS).model_version_status
        return [[row.version, row.state, row.status.error_code, row.status.error_message] for row in rows]

    def asked(request: Any) -> list[str]:
        return outcome(lambda: client.prediction.GetModelMetadata(request, timeout=SECONDS))

    return {
        "methods": {name: definition.method_name for name, definition in signatures.items()},
        "inputs": {alias: [info.dtype, info.name] for alias, info in signatures["regress_flat"].inputs.items()},
        "all": states(status),
        "one": states(one),
        "errors": {
            "no field": asked(metadata),
            "other field": asked(odd),
            "metadata, model": asked(unknown),
            "metadata, no spec": asked(get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])),
            "status, model": outcome(lambda: client.model.GetModelStatus(nobody, timeout=SECONDS)),
            "status, version": outcome(lambda: client.model.GetModelStatus(missing, timeout=SECONDS)),
            "status, no spec": outcome(lambda: client.model.GetModelStatus(get_model_status_pb2.GetModelStatusRequest())),
        },
    }


def set_label(client: Client, home: str) -> list[str]:
    """The running models again, and `stable` on version 1 of one."""
    request = model_management_pb2.ReloadConfigRequest()
    for name in ("session", "module", "keras"):
        model = request.config.model_config_list.config.add(name=name, base_path=f"{home}/{name}", model_platform="tensorflow")
        model.model_version_policy.all.SetInParent()
    request.config.model_config_list.config[0].version_labels["stable"] = 1
    return outcome(lambda: client.model.HandleReloadConfigRequest(request, timeout=SECONDS))


def seen_late(client: Client) -> dict[str, Any]:
    """While every thread is busy a call runs out of time; afterwards its work must not have been done."""
    slow = predict_request("module", "slow", steps=tf.make_tensor_proto(np.int64(SLOW_STEPS)))
    late = predict_request("module", "counted", by=tf.make_tensor_proto(np.int64(1)))
    # Sent one after the other on one connection, they are taken up in this order.
    busy = [client.prediction.Predict.future(slow, timeout=SECONDS) for _ in range(2 * max(2, os.cpu_count() or 1))]
    told = outcome(lambda: client.prediction.Predict(late, timeout=0.2))
    was_busy = sum(not call.done() for call in busy) >= max(2, os.cpu_count() or 1)
    for call in busy:
        call.result()
    count = client.predict("module", "counted", by=tf.make_tensor_proto(np.int64(0)))
    return {"told": told, "was busy": was_busy, "count": plain(count.outputs["count"])}


def main() -> None:
    client, other = Client(sys.argv[1]), Client(sys.argv[2])
    content = other.predict("module", "", a=[1.0], b=[2.0]).outputs["sum"]
    texts = other.predict("module", "string", x=tf.make_tensor_proto([b"a"])).outputs["y"]
    seen = {
        "reload": set_label(client, sys.argv[3]),
        "errors": seen_errors(client),
        "inference errors": seen_inference_errors(client),
        "results": seen_results(client),
        "tensors": seen_tensors(client),
        "predict": seen_predict(client),
        "models": seen_models(client),
        "late": seen_late(client),
        "content": [base64.b64encode(content.tensor_content).decode(), len(content.float_val)],
        "texts": [plain(texts), len(texts.string_val)],
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
