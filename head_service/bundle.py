"""A bundle as a SavedModel: one product for many heads, and each its own activation.

The stock tensorflow_model_server serves it like any head.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from clients.wire.catalogue import MANIFEST_PATH, Manifest, encode
from head_service.errors import ManifestError
from head_service.export import write_warmup
from head_service.manifest import WARMUP_PATH, hash_files
from head_service.parts import FloatArray, Layer, Part
from head_service.training.quiet_tensorflow import tf

_VARIABLES: Final = "variables/variables"
_SUFFIX: Final = "/.ATTRIBUTES/VARIABLE_VALUE"


class _BundleModule(tf.Module):  # type: ignore[misc]  # TensorFlow is published without types
    """The scores of all heads side by side. Heads of one kind are one operation, however many they are."""

    def __init__(self, groups: Sequence[Sequence[Part]]) -> None:
        super().__init__()
        self._groups = [_Group(group) for group in groups]
        # First those that read what goes in: their products are one.
        flat = [part.last for group in groups for part in group if part.hidden is None]
        hidden = [part.hidden for group in groups for part in group if part.hidden is not None]
        self._first = _SideBySide([*flat, *hidden])

    def __call__(self, embedding: Any) -> dict[str, Any]:
        values = self._first(embedding)
        widths = [group.width for group in self._groups]
        pieces = tf.split(values, widths, axis=1) if len(widths) > 1 else [values]
        scores = [group(piece) for piece, group in zip(pieces, self._groups, strict=True)]
        return {"scores": tf.concat(scores, axis=1) if len(scores) > 1 else tf.identity(scores[0])}


class _SideBySide(tf.Module):  # type: ignore[misc]
    """Layers that read the same, as one."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.kernel = tf.Variable(np.concatenate([layer.kernel for layer in layers], axis=1), name="kernel", trainable=False)
        self.bias = tf.Variable(np.concatenate([layer.bias for layer in layers]), name="bias", trainable=False)

    def __call__(self, vectors: Any) -> Any:
        return tf.matmul(vectors, self.kernel) + self.bias


class _Group(tf.Module):  # type: ignore[misc]
    """What comes behind the first product, for heads of one kind. *width* is how much of that product is theirs."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        hidden, self._activation, self._num_labels = parts[0].kind
        self._num_heads = len(parts)
        self._powers = np.array([part.power for part in parts], np.float32)
        self.width = self._num_heads * (hidden or self._num_labels)
        self.kernels: Any = None
        self.biases: Any = None
        if hidden:
            self.kernels = tf.Variable(np.stack([part.last.kernel for part in parts]), name="kernels", trainable=False)
            self.biases = tf.Variable(np.stack([part.last.bias for part in parts]), name="biases", trainable=False)

    def __call__(self, values: Any) -> Any:
        if self.kernels is not None:
            apart = tf.reshape(tf.nn.relu(values), [-1, self._num_heads, self.width // self._num_heads])
            # One product a head, all in one operation: [heads, texts, hidden] by [heads, hidden, labels].
            products = tf.matmul(tf.transpose(apart, [1, 0, 2]), self.kernels) + self.biases[:, None, :]
            values = self._flat(tf.transpose(products, [1, 0, 2]))
        if self._activation == "identity":
            return values
        if self._activation == "sigmoid":
            return tf.nn.sigmoid(values)
        apart = tf.reshape(values, [-1, self._num_heads, self._num_labels])
        if self._activation == "one_vs_rest":
            apart = -tf.nn.softplus(-apart) * self._powers[:, None]
        return self._flat(tf.nn.softmax(apart))

    def _flat(self, apart: Any) -> Any:
        return tf.reshape(apart, [-1, self._num_heads * self._num_labels])


def export_bundle(groups: Sequence[Sequence[Part]], manifest: Manifest, rows: FloatArray, directory: Path) -> None:
    """Write the bundle of *groups*, as `head_service.parts.laid_out` made them, into the empty *directory*, its manifest last.

    Args:
        groups: the heads.
        manifest: complete but for *created* and *files*.
        rows: float32 [texts, width], for the warm-up.
        directory: exists and is empty.
    """
    module = _BundleModule(groups)
    spec = tf.TensorSpec([None, manifest.width], tf.float32, name=manifest.input)
    signature = tf.function(module.__call__, input_signature=[spec]).get_concrete_function()
    tf.saved_model.save(module, str(directory), signatures={"serving_default": signature})
    write_warmup(directory / WARMUP_PATH, manifest, rows)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    whole = msgspec.structs.replace(manifest, created=created, files=hash_files(directory))
    (directory / MANIFEST_PATH).write_bytes(encode(whole))


def read_weights(directory: Path) -> dict[str, FloatArray]:
    """The weights of the head in *directory*, which was held to its manifest, by the names that they were exported with.

    Raises:
        ManifestError: they cannot be read.
    """
    try:
        reader = tf.train.load_checkpoint(str(directory / _VARIABLES))
        names = [name for name in reader.get_variable_to_dtype_map() if name.endswith(_SUFFIX)]
        return {name.removesuffix(_SUFFIX).rpartition("/")[2]: reader.get_tensor(name) for name in names}
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise ManifestError(f"the weights cannot be read: {str(error)[:200]}") from None
