"""An unmodified third-party client, in a process of its own: tensorflow-serving-api's stubs against a head server's address.

Prints a JSON object of what it saw. Arguments: HOST:PORT, a model's name, its input's width.
"""

import json
import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


def main() -> None:
    address, name, width = sys.argv[1], sys.argv[2], int(sys.argv[3])
    channel = grpc.insecure_channel(address)
    predict = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    model = model_service_pb2_grpc.ModelServiceStub(channel)

    def request(**inputs: object) -> predict_pb2.PredictRequest:
        made = predict_pb2.PredictRequest()
        made.model_spec.name = name
        for alias, value in inputs.items():
            made.inputs[alias].CopyFrom(tf.make_tensor_proto(value, dtype=tf.float32))
        return made

    def code(call) -> list[str]:  # type: ignore[no-untyped-def]
        try:
            call()
        except grpc.RpcError as error:
            return [error.code().name, error.details()]
        return ["OK", ""]

    good = request(embedding=np.full((2, width), 0.05, np.float32))
    answer = predict.Predict(good, timeout=10)
    typed = request(embedding=np.full((2, width), 0.05, np.float32))
    typed.inputs["embedding"].ClearField("tensor_content")
    typed.inputs["embedding"].float_val.append(0.05)
    broken = request(embedding=np.zeros((1, width), np.float32))
    broken.inputs["embedding"].tensor_content = b"123"
    missing, extra, wrong, unknown, version, label, signature, unfiltered, twice, shape = (request() for _ in range(10))
    unknown.model_spec.name = "nobody"
    version.model_spec.version.value = 99
    label.model_spec.version_label = "nobody"
    signature.model_spec.signature_name = "nothing"
    wrong.inputs["other"].CopyFrom(good.inputs["embedding"])
    for made in (extra, unfiltered, twice):
        made.inputs["embedding"].CopyFrom(good.inputs["embedding"])
    extra.inputs["other"].CopyFrom(good.inputs["embedding"])
    unfiltered.output_filter.append("nothing")
    twice.output_filter.extend(["scores", "scores"])
    shape.inputs["embedding"].CopyFrom(tf.make_tensor_proto(np.zeros((1, width + 1), np.float32)))
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = name
    described = predict.GetModelMetadata(metadata, timeout=10)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    described.metadata["signature_def"].Unpack(signatures)
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = name
    states = model.GetModelStatus(status, timeout=10).model_version_status
    status.model_spec.name = "nobody"
    no_spec = predict_pb2.PredictRequest()
    calls = {
        "missing": missing, "extra": extra, "wrong": wrong, "unknown": unknown, "version": version, "label": label,
        "signature": signature, "unfiltered": unfiltered, "twice": twice, "shape": shape, "broken": broken, "no spec": no_spec,
    }  # fmt: skip
    seen = {
        "scores": tf.make_ndarray(answer.outputs["scores"]).tolist(),
        "outputs": sorted(answer.outputs),
        "version": answer.model_spec.version.value,
        "signature": answer.model_spec.signature_name,
        "typed": tf.make_ndarray(predict.Predict(typed, timeout=10).outputs["scores"]).tolist(),
        "inputs": {alias: info.dtype for alias, info in signatures.signature_def["serving_default"].inputs.items()},
        "states": [[item.version, item.state, item.status.error_code] for item in states],
        "errors": {key: code(lambda made=made: predict.Predict(made, timeout=10)) for key, made in calls.items()},
        "no status": code(lambda: model.GetModelStatus(status, timeout=10)),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
