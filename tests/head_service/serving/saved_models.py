"""Small SavedModels that TensorFlow itself writes: heads with a manifest, and models of others."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf

from clients.wire.catalogue import MANIFEST_PATH, Manifest, TrunkRef, encode
from clients.wire.tensors import to_tensor
from clients.wire.tfs import inference_pb2
from clients.wire.tfs import serving_pb2 as pb
from head_service.manifest import WARMUP_PATH, hash_files
from tests.head_service.versions_on_disk import FINGERPRINT

WIDTH = 4
LABELS = ("ham", "spam")
WEIGHTS = np.array([[1, 0], [0, 1], [2, 0], [0, 2]], np.float32)


class Linear(tf.Module):  # type: ignore[misc]
    """What a head is, and nothing else."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights = tf.Variable(weights, name="weights")

    def __call__(self, embedding: Any) -> dict[str, Any]:
        logits = tf.matmul(embedding, self.weights)
        return {"scores": tf.nn.softmax(logits), "logits": logits}


class Writing(Linear):
    """A head that also writes a file."""

    def __call__(self, embedding: Any) -> dict[str, Any]:
        tf.io.write_file("/tmp/never-written", "x")
        return super().__call__(embedding)


def save(module: tf.Module, directory: Path, width: int = WIDTH, name: str = "embedding") -> None:
    """Export it as TensorFlow does."""
    spec = tf.TensorSpec([None, width], tf.float32, name=name)
    function = tf.function(module.__call__, input_signature=[spec])
    tf.saved_model.save(module, str(directory), signatures={"serving_default": function.get_concrete_function()})


def described(name: str, version: int, **fields: Any) -> Manifest:
    trunk = TrunkRef("tiny", FINGERPRINT, "fake")
    manifest = Manifest(name=name, version=version, labels=LABELS, width=WIDTH, trunk=trunk)
    return msgspec.structs.replace(manifest, **fields)


def seal(directory: Path, name: str, version: int, **fields: Any) -> None:
    """Write the manifest of what lies in *directory*."""
    (directory / MANIFEST_PATH).parent.mkdir(exist_ok=True)
    whole = msgspec.structs.replace(described(name, version, **fields), files=hash_files(directory))
    (directory / MANIFEST_PATH).write_bytes(encode(whole))


def publish(source: Path, base: Path, name: str, version: int) -> Path:
    """Make a version of *source* appear below *base*, complete, by one rename."""
    staged = base / f".tmp-{version}"
    shutil.copytree(source, staged)
    seal(staged, name, version)
    return staged.rename(base / str(version))


def write_warmup(directory: Path, *records: bytes) -> None:
    (directory / WARMUP_PATH).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(directory / WARMUP_PATH)) as writer:
        for record in records:
            writer.write(record)


def warmup_record(alias: str = "embedding", rows: int = 1) -> bytes:
    request = pb.PredictRequest(inputs={alias: to_tensor(np.zeros((rows, WIDTH), np.float32))})
    return inference_pb2.PredictionLog(predict_log=pb.PredictLog(request=request)).SerializeToString()
