"""Heads of one product, or of two, as parts of a bundle: weights folded together, and the order in which they lie side by side.

Standardisation, the mix of layers and the temperature are linear where they stand, so that all of them go into a kernel and a
bias; what is left of a head is `x @ kernel + bias` and its activation, perhaps behind a hidden layer. Pure; without TensorFlow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from clients.wire.catalogue import BundleMember, Manifest, Task

FloatArray = NDArray[np.float32]
_Wide = NDArray[np.float64]

Activation = Literal["identity", "one_vs_rest", "sigmoid", "softmax"]
"""one_vs_rest: sigmoids, by the power of one over the temperature, that are scaled to sum to one."""

LINEAR_TYPES: Final = frozenset({"linear", "mix"})
BUNDLED_TYPES: Final = LINEAR_TYPES | {"mlp"}
_ACTIVATIONS: Final[Mapping[Task, Activation]] = {
    "single_label": "softmax",
    "multi_label": "sigmoid",
    "regression": "identity",
}


class UnlikeError(Exception):
    """A head whose weights are not those of its type, or of a type that is in no bundle."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """float32 *kernel* [in, out] and *bias* [out]."""

    kernel: FloatArray
    bias: FloatArray

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """float32 [texts, out] of *vectors*, float32 [texts, in]."""
        return vectors @ self.kernel + self.bias


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One head: *last* gives its labels, from what goes in or from *hidden*, of which what is below 0 counts as 0.

    *power*: of a one_vs_rest's sigmoids.
    """

    member: BundleMember
    activation: Activation
    last: Layer
    hidden: Layer | None = None
    power: float = 1.0

    @property
    def kind(self) -> tuple[int, Activation, int]:
        """How wide its hidden layer is, its activation, its number of labels: parts of one kind are computed together."""
        return len(self.hidden.bias) if self.hidden is not None else 0, self.activation, len(self.last.bias)

    def scores(self, vectors: FloatArray) -> FloatArray:
        """float32 [texts, labels] of *vectors*, float32 [texts, width]."""
        read = np.maximum(self.hidden(vectors), np.float32(0.0)) if self.hidden is not None else vectors
        return activated(self.last(read), self.activation, np.float32(self.power))


def activated(values: FloatArray, activation: Activation, power: np.float32) -> FloatArray:
    """float32 [..., labels], as the graph of a bundle has it."""
    match activation:
        case "identity":
            return values
        case "sigmoid":
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)), np.float32)
        case "one_vs_rest":
            return _softmax(np.asarray(-np.logaddexp(np.float32(0.0), -values) * power, np.float32))
        case "softmax":
            return _softmax(values)


def _softmax(values: FloatArray) -> FloatArray:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), np.float32)


def part_of(manifest: Manifest, weights: Mapping[str, FloatArray], digest: str, *, one_vs_rest: bool = False) -> Part:
    """The head of *manifest*, whose file has the SHA-256 *digest*, by the *weights* it was exported with.

    Raises:
        UnlikeError: they are not of its type, or not of this manifest.
    """
    what = f"{manifest.name} version {manifest.version}"
    least = {"weights", "bias"} | ({"hidden_weights", "hidden_bias"} if manifest.head_type == "mlp" else set())
    if manifest.head_type not in BUNDLED_TYPES or not least <= weights.keys() <= least | {"shift", "scale", "mix"}:
        raise UnlikeError(f"{what} has not the weights of a head of one product or two: {manifest.head_type}")
    if one_vs_rest and manifest.task != "single_label":
        raise UnlikeError(f"{what} has no labels of which one is right")
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    layers = [(wide["weights"], wide["bias"])]
    if manifest.head_type == "mlp":
        layers.insert(0, (wide["hidden_weights"], wide["hidden_bias"]))
    layers[0] = _folded(*layers[0], wide)
    if not _fit_together(layers, manifest.width, len(manifest.labels)):
        raise UnlikeError(f"{what} has weights of another shape than its manifest says")
    warmth = 1.0 if manifest.task == "regression" else manifest.temperature
    # Behind the logarithm of a sigmoid nothing can be folded in.
    kernel, bias = layers[-1] if one_vs_rest else (layers[-1][0] / warmth, layers[-1][1] / warmth)
    hidden = _layer(*layers[0]) if len(layers) > 1 else None
    member = BundleMember(manifest.name, manifest.version, 0, len(manifest.labels), digest)
    activation: Activation = "one_vs_rest" if one_vs_rest else _ACTIVATIONS[manifest.task]
    return Part(member, activation, _layer(kernel, bias), hidden, 1.0 / warmth if one_vs_rest else 1.0)


def _layer(kernel: _Wide, bias: _Wide) -> Layer:
    return Layer(kernel.astype(np.float32), bias.astype(np.float32))


def _fit_together(layers: Sequence[tuple[_Wide, _Wide]], width: int, num_labels: int) -> bool:
    for kernel, bias in layers:
        if kernel.ndim != 2 or bias.shape != (kernel.shape[1],) or len(kernel) != width:
            return False
        width = len(bias)
    return width == num_labels


def _folded(kernel: _Wide, bias: _Wide, weights: Mapping[str, _Wide]) -> tuple[_Wide, _Wide]:
    """The first layer, with what stands before it."""
    if "mix" in weights:
        shares = np.exp(weights["mix"] - weights["mix"].max())
        kernel = np.concatenate([share * kernel for share in shares / shares.sum()])
    if "scale" in weights and "shift" in weights and len(weights["scale"]) == len(weights["shift"]) == len(kernel):
        kernel = weights["scale"][:, None] * kernel
        bias = bias - weights["shift"] @ kernel
    return kernel, bias


def laid_out(parts: Iterable[Part]) -> list[list[Part]]:
    """*parts* in groups of one kind, each with the offset it has when they all lie side by side in this order."""
    ordered = sorted(parts, key=lambda part: (part.kind, part.member.name, part.member.version))
    offset = 0
    groups = []
    for _, group in groupby(ordered, key=lambda part: part.kind):
        placed = []
        for part in group:
            placed.append(_at(part, offset))
            offset += part.member.count
        groups.append(placed)
    return groups


def _at(part: Part, offset: int) -> Part:
    member = BundleMember(part.member.name, part.member.version, offset, part.member.count, part.member.manifest)
    return Part(member, part.activation, part.last, part.hidden, part.power)
