"""A head as a SavedModel version directory that the stock tensorflow_model_server serves and that explains itself.

Besides `head_service.serving`, this, `head_service.lean_tensorflow` and `head_service.training.quiet_tensorflow` are the only
places that import TensorFlow.
"""

import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from head_service.exporting import NUM_GOLDEN, TENSORFLOW_SETTINGS, WARMUP_ROWS
from head_service.without_keras import without_keras

os.environ.update(TENSORFLOW_SETTINGS | os.environ)

with without_keras():
    import tensorflow as tf

from clients.wire.catalogue import MANIFEST_PATH, GoldenExample, Manifest, Task, encode
from clients.wire.long_text import scores_of_texts
from clients.wire.tensors import to_tensor
from clients.wire.tfs import inference_pb2
from clients.wire.tfs import serving_pb2 as pb
from head_service.errors import ManifestError
from head_service.manifest import WARMUP_PATH, hash_files
from head_service.training.features import Features, TokenFeatures, inputs_of, take, width_of
from head_service.training.forward import logits_of
from head_service.training.heads import Head, scores_of

LABELS_PATH: Final = "assets/labels.txt"
WARMUP_TOKENS: Final = (8, 32, 128)
"""As long as the texts of each of these requests are made, where a vector a token goes in."""


class _HeadModule(tf.Module):  # type: ignore[misc]  # TensorFlow is published without types
    """Scores by the task, and the logits, divided by the temperature, that they are made of."""

    def __init__(self, head: Head, temperature: float, labels: str) -> None:
        super().__init__()
        self.weights = {
            name: tf.Variable(array, name=name, trainable=False, dtype=tf.float32) for name, array in sorted(head.weights.items())
        }
        self.labels = tf.saved_model.Asset(labels)
        self._spec = head.spec
        self._task: Task = head.task
        self._temperature = temperature

    def __call__(self, *inputs: Any) -> dict[str, Any]:
        logits = logits_of(self._spec, self.weights, inputs)
        if self._task == "regression":
            return {"scores": logits, "logits": logits}
        logits = logits / self._temperature
        return {"scores": tf.nn.sigmoid(logits) if self._task == "multi_label" else tf.nn.softmax(logits), "logits": logits}


def export_head(
    head: Head,
    manifest: Manifest,
    features: Features,
    texts: list[str],
    directory: Path,
    rows: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write *head* into the empty *directory*, its manifest last.

    Args:
        head: of any type.
        manifest: complete but for *golden*, *created* and *files*; what it says of the head is held to the head.
        features: of *texts*; the first few become golden examples and warm-up requests.
        texts: held-out ones.
        directory: exists and is empty.
        rows: of *features*, those of each text; None: one each.

    Raises:
        ManifestError: the manifest is not of this head, or the head answers numbers that are not finite.
    """
    _check(head, manifest, features)
    of_golden = (rows or [[row] for row in range(len(features))])[:NUM_GOLDEN]
    golden = _golden(head, manifest, take(features, np.arange(of_golden[-1][-1] + 1)), of_golden, texts)
    with tempfile.TemporaryDirectory() as scratch:
        labels = Path(scratch) / "labels.txt"
        labels.write_text("".join(f"{label}\n" for label in head.labels), encoding="utf-8")
        module = _HeadModule(head, manifest.temperature, str(labels))
        signature = tf.function(module.__call__, input_signature=_input_specs(manifest)).get_concrete_function()
        tf.saved_model.save(module, str(directory), signatures={"serving_default": signature})
    write_warmup(directory / WARMUP_PATH, manifest, features)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    whole = msgspec.structs.replace(manifest, golden=golden, created=created, files=hash_files(directory))
    (directory / MANIFEST_PATH).write_bytes(encode(whole))


def _check(head: Head, manifest: Manifest, features: Features) -> None:
    said = (manifest.labels, manifest.task, manifest.width, manifest.head_type, bool(manifest.mask_input))
    meant = (head.labels, head.task, head.spec.width, head.head_type, head.spec.reads_tokens)
    wrong = [
        name
        for name, one, other in zip(("labels", "task", "width", "head_type", "mask_input"), said, meant, strict=True)
        if one != other
    ]
    if wrong:
        raise ManifestError(f"the manifest is not of this head: {', '.join(wrong)}")
    if width_of(features) != manifest.width:
        raise ManifestError(f"the head takes vectors of {manifest.width} numbers, these are of {width_of(features)}")
    if not all(np.isfinite(array).all() for array in head.weights.values()):
        raise ManifestError("the head has weights that are not finite; train it again")


def _input_specs(manifest: Manifest) -> list[Any]:
    if not manifest.mask_input:
        return [tf.TensorSpec([None, manifest.width], tf.float32, name=manifest.input)]
    return [
        tf.TensorSpec([None, None, manifest.width], tf.float32, name=manifest.input),
        tf.TensorSpec([None, None], tf.float32, name=manifest.mask_input),
    ]


def _golden(
    head: Head, manifest: Manifest, features: Features, rows: Sequence[Sequence[int]], texts: list[str]
) -> tuple[GoldenExample, ...]:
    scores = scores_of_texts(manifest, scores_of(head.logits(features), head.task, manifest.temperature), rows)
    if not np.isfinite(scores).all():
        raise ManifestError("the head answers numbers that are not finite; train it again")
    return tuple(
        GoldenExample(text, head.labels[int(row.argmax())], tuple(round(float(score), 6) for score in row))
        for text, row in zip(texts[: len(scores)], scores, strict=True)
    )


def write_warmup(path: Path, manifest: Manifest, features: Features) -> None:
    """The requests that a server replays before the version answers anybody: the first of *features*, in several numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for num_rows, num_tokens in zip(WARMUP_ROWS, WARMUP_TOKENS, strict=True):
            inputs = _warmup_inputs(features, num_rows, num_tokens)
            names = (manifest.input, manifest.mask_input)[: len(inputs)]
            writer.write(_warmup(manifest, dict(zip(names, inputs, strict=True))).SerializeToString())


def _warmup_inputs(features: Features, num_rows: int, num_tokens: int) -> tuple[NDArray[np.float32], ...]:
    """The first texts, as often as it takes; of tokens, as many of each text, also as often as it takes."""
    texts = np.resize(np.arange(len(features)), num_rows)
    if not isinstance(features, TokenFeatures):
        return inputs_of(features, texts)
    vectors, mask = features.padded(texts)
    owned = [row[np.resize(np.flatnonzero(there), num_tokens)] for row, there in zip(vectors, mask, strict=True)]
    return np.stack(owned), np.ones((num_rows, num_tokens), np.float32)


def _warmup(manifest: Manifest, inputs: dict[str, NDArray[np.float32]]) -> inference_pb2.PredictionLog:
    spec = pb.ModelSpec(name=manifest.name, signature_name="serving_default")
    tensors = {name: to_tensor(array.astype(np.float32)) for name, array in inputs.items()}
    return inference_pb2.PredictionLog(predict_log=pb.PredictLog(request=pb.PredictRequest(model_spec=spec, inputs=tensors)))
