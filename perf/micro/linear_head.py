"""`python -m perf.micro.linear_head FOLDER`: the head that `perf.micro.served_heads` serves, made without training."""

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf

from clients.wire.tensors import to_tensor
from clients.wire.tfs import inference_pb2
from clients.wire.tfs import serving_pb2 as pb
from head_service.manifest import WARMUP_PATH
from perf.micro.served_heads import INPUT, LABELS, WIDTH

WARMUP_ROWS: Final = (1, 8, 32)


class _Linear(tf.Module):  # type: ignore[misc]  # TensorFlow is published without types
    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(np.random.default_rng(0).standard_normal((WIDTH, len(LABELS))).astype(np.float32))
        self.bias = tf.Variable(np.zeros(len(LABELS), np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], tf.float32, name=INPUT)])  # type: ignore[untyped-decorator]
    def predict(self, embedding: Any) -> dict[str, Any]:
        logits = tf.matmul(embedding, self.weights) + self.bias
        return {"scores": tf.nn.softmax(logits), "logits": logits}


def export(directory: Path) -> None:
    """Write a linear head without its manifest, with the warm-up that heads have."""
    module = _Linear()
    tf.saved_model.save(module, str(directory), signatures={"serving_default": module.predict})
    (directory / WARMUP_PATH).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(directory / WARMUP_PATH)) as writer:
        for rows in WARMUP_ROWS:
            request = pb.PredictRequest(inputs={INPUT: to_tensor(np.zeros((rows, WIDTH), np.float32))})
            writer.write(inference_pb2.PredictionLog(predict_log=pb.PredictLog(request=request)).SerializeToString())


if __name__ == "__main__":
    export(Path(sys.argv[1]))
