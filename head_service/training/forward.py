"""How each type of head computes its logits, in TensorFlow: one function for training, for measuring and for what is exported.

Averaged token vectors behind a hidden layer: Joulin et al., Bag of Tricks for Efficient Text Classification (fastText).
Convolutions of several widths with the maximum over time: Kim, Convolutional Neural Networks for Sentence Classification.
Attention pooling with several queries: Lin et al., A Structured Self-attentive Sentence Embedding.
The scalar mix of layers: Peters et al., Deep Contextualized Word Representations, here without its overall scale, which the
layer behind it has already.

A token whose mask is 0 changes nothing, whatever its vector.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from head_service.training.heads import HeadSpec, HeadType
from head_service.training.quiet_tensorflow import tf

Tensors = Mapping[str, Any]
Drop = Callable[[Any], Any]
"""Dropout while training; else what it is given."""

FILTER_WIDTHS: Final = (1, 2, 3, 4)
_MASKED: Final = -1e9


def logits_of(spec: HeadSpec, weights: Tensors, inputs: tuple[Any, ...], drop: Drop | None = None) -> Any:
    """float32 [batch, labels] of *inputs*: vectors [batch, width], or [batch, tokens, width] and their mask [batch, tokens]."""
    vectors = inputs[0]
    if "shift" in weights:
        vectors = (vectors - weights["shift"]) * weights["scale"]
    if spec.num_mixed > 1:
        vectors = _mixed(spec, weights, vectors)
    logits = _BODIES[spec.head_type](weights, vectors, inputs[1] if spec.reads_tokens else None, drop or _kept)
    # The logarithm of a sigmoid: softmax of it is the sigmoids scaled to sum to one.
    return -tf.nn.softplus(-logits) if spec.one_vs_rest else logits


def _kept(values: Any) -> Any:
    return values


def _mixed(spec: HeadSpec, weights: Tensors, vectors: Any) -> Any:
    """The softmax-weighted sum of the layers that lie one behind the other."""
    places = tf.shape(vectors)[:-1]
    layers = tf.reshape(vectors, tf.concat([places, [spec.num_mixed, spec.width // spec.num_mixed]], 0))
    shares = tf.nn.softmax(weights["mix"])
    return tf.reduce_sum(layers * shares[:, None], axis=-2)


def _dense(vectors: Any, kernel: Any, bias: Any) -> Any:
    if len(vectors.shape) == 2:
        return tf.matmul(vectors, kernel) + bias
    flat = tf.matmul(tf.reshape(vectors, [-1, kernel.shape[0]]), kernel) + bias
    return tf.reshape(flat, tf.concat([tf.shape(vectors)[:-1], [kernel.shape[1]]], 0))


def _linear(weights: Tensors, vectors: Any, mask: Any, drop: Drop) -> Any:
    del mask
    return _dense(drop(vectors), weights["weights"], weights["bias"])


def _mlp(weights: Tensors, vectors: Any, mask: Any, drop: Drop) -> Any:
    del mask
    hidden = tf.nn.relu(_dense(drop(vectors), weights["hidden_weights"], weights["hidden_bias"]))
    return _dense(drop(hidden), weights["weights"], weights["bias"])


def _fasttext(weights: Tensors, vectors: Any, mask: Any, drop: Drop) -> Any:
    hidden = tf.nn.relu(_dense(drop(vectors), weights["hidden_weights"], weights["hidden_bias"]))
    total = tf.reduce_sum(hidden * mask[:, :, None], axis=1)
    return _dense(drop(total / _count(mask)), weights["weights"], weights["bias"])


def _count(mask: Any) -> Any:
    return tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)


def _attention(weights: Tensors, vectors: Any, mask: Any, drop: Drop) -> Any:
    keys = tf.nn.tanh(_dense(drop(vectors), weights["key_weights"], weights["key_bias"]))
    wanted = _dense(keys, weights["queries"], 0.0) + ((1.0 - mask) * _MASKED)[:, :, None]
    shares = tf.nn.softmax(wanted, axis=1)
    # Zeroed as well as weighted by nothing: 0 times a number that is not finite would not be 0.
    pooled = tf.matmul(shares, vectors * mask[:, :, None], transpose_a=True)
    hidden = tf.nn.relu(_dense(drop(_flat(pooled, weights)), weights["hidden_weights"], weights["hidden_bias"]))
    return _dense(drop(hidden), weights["weights"], weights["bias"])


def _flat(pooled: Any, weights: Tensors) -> Any:
    return tf.reshape(pooled, [-1, weights["hidden_weights"].shape[0]])


def _textcnn(weights: Tensors, vectors: Any, mask: Any, drop: Drop) -> Any:
    """A window begins at each token; behind the last token it sees zeros, however far the batch is padded."""
    present = drop(vectors) * mask[:, :, None]
    found = []
    for width in FILTER_WIDTHS:
        behind = tf.pad(present, [[0, 0], [0, width - 1], [0, 0]])
        windows = tf.nn.conv1d(behind, weights[f"filters_{width}"], 1, "VALID") + weights[f"filters_bias_{width}"]
        found.append(tf.reduce_max(tf.nn.relu(windows) * mask[:, :, None], axis=1))
    return _dense(drop(tf.concat(found, axis=1)), weights["weights"], weights["bias"])


_BODIES: Final[Mapping[HeadType, Callable[[Tensors, Any, Any, Drop], Any]]] = {
    "linear": _linear,
    "mix": _linear,
    "mlp": _mlp,
    "fasttext": _fasttext,
    "attention": _attention,
    "textcnn": _textcnn,
}
