"""A head as a SavedModel version directory that the stock tensorflow_model_server serves and that explains itself.

Besides `head_service.serving`, this is the only place that imports TensorFlow.
"""

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Results that do not depend on the order of a fused computation; its absence is also quiet.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

from clients.wire.catalogue import MANIFEST_PATH, GoldenExample, Manifest, encode
from clients.wire.tensors import to_tensor
from clients.wire.tfs import serving_pb2 as pb
from head_service.manifest import hash_files
from head_service.training.linear import LinearHead

LABELS_PATH: Final = "assets/labels.txt"
WARMUP_PATH: Final = "assets.extra/tf_serving_warmup_requests"
"""A TFRecord of PredictionLog that a server replays before a version is AVAILABLE (TensorFlow Serving, SavedModel warmup)."""

NUM_GOLDEN: Final = 5
WARMUP_ROWS: Final = (1, 8, 32)


class _LinearModule(tf.Module):  # type: ignore[misc]  # TensorFlow is published without types
    """scores = softmax((embedding @ weights + bias) / temperature), and the logits before the softmax."""

    def __init__(self, head: LinearHead, temperature: float, labels: str) -> None:
        super().__init__()
        self.weights = tf.Variable(head.weights, name="weights", trainable=False)
        self.bias = tf.Variable(head.bias, name="bias", trainable=False)
        self.labels = tf.saved_model.Asset(labels)
        self._temperature = temperature

    def __call__(self, embedding: Any) -> dict[str, Any]:
        logits = (tf.matmul(embedding, self.weights) + self.bias) / self._temperature
        return {"scores": tf.nn.softmax(logits), "logits": logits}


def export_linear(
    head: LinearHead, manifest: Manifest, embeddings: NDArray[np.float32], texts: list[str], directory: Path
) -> None:
    """Write *head* into the empty *directory*, its manifest last.

    Args:
        head: its labels are the manifest's.
        manifest: complete but for *golden*, *created* and *files*.
        embeddings: of *texts*, float32 [texts, width]; the first few become golden examples and warm-up requests.
        texts: held-out ones.
        directory: exists and is empty.
    """
    with tempfile.TemporaryDirectory() as scratch:
        labels = Path(scratch) / "labels.txt"
        labels.write_text("".join(f"{label}\n" for label in head.labels), encoding="utf-8")
        module = _LinearModule(head, manifest.temperature, str(labels))
        spec = tf.TensorSpec([None, manifest.width], tf.float32, name=manifest.input)
        signature = tf.function(module.__call__, input_signature=[spec]).get_concrete_function()
        tf.saved_model.save(module, str(directory), signatures={"serving_default": signature})
    _write_warmup(directory / WARMUP_PATH, manifest, embeddings)
    golden = _golden(head, manifest, embeddings[:NUM_GOLDEN], texts)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    whole = msgspec.structs.replace(manifest, golden=golden, created=created, files=hash_files(directory))
    (directory / MANIFEST_PATH).write_bytes(encode(whole))


def _golden(head: LinearHead, manifest: Manifest, embeddings: NDArray[np.float32], texts: list[str]) -> tuple[GoldenExample, ...]:
    scores = head.scores(embeddings, manifest.temperature)
    return tuple(
        GoldenExample(text, head.labels[int(row.argmax())], tuple(round(float(score), 6) for score in row))
        for text, row in zip(texts[: len(scores)], scores, strict=True)
    )


def _write_warmup(path: Path, manifest: Manifest, embeddings: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for rows in WARMUP_ROWS:
            writer.write(_warmup(manifest, np.resize(embeddings, (rows, manifest.width))).SerializeToString())


def _warmup(manifest: Manifest, rows: NDArray[np.float32]) -> pb.PredictionLog:
    spec = pb.ModelSpec(name=manifest.name, signature_name="serving_default")
    request = pb.PredictRequest(model_spec=spec, inputs={manifest.input: to_tensor(rows.astype(np.float32))})
    return pb.PredictionLog(predict_log=pb.PredictLog(request=request))
