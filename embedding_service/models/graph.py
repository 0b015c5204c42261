"""From weights to an ONNX graph, in one of two dialects.

All inputs are int64; outputs are named hidden_<k>, where k counts from 0, the embedding layer.

In both, position_ids say where a token stands and which segment it is of: 2 * position + segment, so that one look-up adds
both embeddings; segment is 1 in the second text of a pair and 0 elsewhere.

*onnxruntime*: with the operators that runtime has fused kernels for. Inputs input_ids, position_ids and attention_mask
[batch, seq]; outputs float32 [batch, seq, width].

*flat*: plain operators, and no padding but inside attention, so that rows of unlike lengths may share a pass. Inputs
input_ids and position_ids [tokens], the rows one after another; attention_mask [batch, seq]; grid [batch, seq], which token
stands at each place of the rows padded to one length (any token where there is none); places [tokens], where in grid,
flattened, each token stands. Outputs float32 [tokens, width]. With int8 weights its linear layers say of each weight what
integer it is and, a channel, what one is worth: an engine may multiply by the integers (`backend.openvino`).
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from embedding_service.backend import FloatArray
from embedding_service.models.bert import BertConfig, Weights

Dialect = Literal["flat", "onnxruntime"]

GRAPH_VERSION: Final = 4
"""Part of the name a graph is kept under: raise it with every change of this file that changes the graph."""

_PADDED_INPUTS: Final = {name: ["batch", "seq"] for name in ("input_ids", "position_ids", "attention_mask")}
_FLAT_INPUTS: Final = {
    "input_ids": ["tokens"],
    "position_ids": ["tokens"],
    "attention_mask": ["batch", "seq"],
    "grid": ["batch", "seq"],
    "places": ["tokens"],
}
_OPSET: Final = 17
_MASKED: Final = -1e9
_FUSED: Final = "com.microsoft"


def output_name(layer: int, num_layers: int) -> str:
    """The graph output of *layer*, a negative number."""
    return f"hidden_{num_layers + 1 + layer}"


def build_graph(
    config: BertConfig, weights: Weights, layers: Sequence[int], dialect: Dialect, *, has_int8_weights: bool = False
) -> onnx.ModelProto:
    """A model that computes *layers* (negative numbers) and nothing beyond the highest of them.

    *has_int8_weights* is for the flat dialect; `quantize_int8` makes them of a graph of the other.
    """
    builder = _Builder(config, weights, dialect, has_int8_weights=has_int8_weights)
    wanted = sorted(config.num_layers + 1 + layer for layer in layers)
    hidden = builder.embeddings()
    if 0 in wanted:
        builder.output(hidden, 0)
    for number in range(wanted[-1]):
        hidden = builder.layer(hidden, number)
        if number + 1 in wanted:
            builder.output(hidden, number + 1)
    return builder.model()


def quantize_int8(source: str, target: str) -> None:
    """Write *source* with int8 weights, one scale a channel; activations are scaled anew in each pass."""
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=False,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
    )


def int8_channels(weight: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """*weight* [out, in] as integers -127 to 127 and, for each of out, what one is worth: float32 [out], never 0."""
    scales = np.maximum(np.abs(weight).max(axis=1) / 127, np.finfo(np.float32).tiny)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales


class _Builder:
    """Owns the lists a graph is made of while it grows. Values are referred to by name."""

    def __init__(self, config: BertConfig, weights: Weights, dialect: Dialect, *, has_int8_weights: bool) -> None:
        self._config = config
        self._weights = weights
        self._is_fused = dialect == "onnxruntime"
        self._has_int8_weights = has_int8_weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._outputs: list[onnx.ValueInfoProto] = []
        self._mask = ""

    def embeddings(self) -> str:
        """Add word, position and segment embeddings, normalised."""
        tables = self._weights
        positions = tables["embeddings.position_embeddings.weight"][:, None] + tables["embeddings.token_type_embeddings.weight"]
        words = self._node("Gather", [self._weight("embeddings.word_embeddings.weight"), "input_ids"])
        table = self._constant("positions", positions.reshape(-1, self._config.width))
        here = self._node("Gather", [table, "position_ids"])
        self._mask = self._make_mask()
        return self._normalized(self._node("Add", [words, here]), "embeddings.LayerNorm")

    def layer(self, hidden: str, number: int) -> str:
        """Add one transformer layer."""
        prefix = f"encoder.layer.{number}."
        context = self._fused_attention(hidden, prefix) if self._is_fused else self._attention(hidden, prefix)
        attended = self._residual(context, hidden, prefix + "attention.output.")
        inner = self._gelu(attended, prefix + "intermediate.dense")
        return self._residual(inner, attended, prefix + "output.")

    def output(self, value: str, number: int) -> None:
        """Make *value* the output hidden_<number>."""
        name = f"hidden_{number}"
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        rows = ["batch", "seq"] if self._is_fused else ["tokens"]
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [*rows, self._config.width]))

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        shapes = _PADDED_INPUTS if self._is_fused else _FLAT_INPUTS
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()]
        graph = helper.make_graph(self._nodes, "trunk", inputs, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", _OPSET)] + ([helper.make_opsetid(_FUSED, 1)] if self._is_fused else [])
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="trunkline")

    def _make_mask(self) -> str:
        if self._is_fused:
            return self._node("Cast", ["attention_mask"], to=TensorProto.INT32)
        mask = self._node("Cast", ["attention_mask"], to=TensorProto.FLOAT)
        absent = self._node("Sub", [self._scalar("one", 1.0), mask])
        wide = self._node("Unsqueeze", [absent, self._integers("mask_axes", [1, 2])])
        return self._node("Mul", [wide, self._scalar("masked", _MASKED)])

    def _fused_attention(self, hidden: str, prefix: str) -> str:
        weight, bias = self._packed(prefix)
        query, key, value = self._split(self._multiplied(hidden, prefix + "qkv.weight", weight))
        inputs = [query, key, value, self._constant(prefix + "qkv.bias", bias), self._mask]
        return self._node(
            "MultiHeadAttention", inputs, domain=_FUSED, num_heads=self._config.num_heads, mask_filter_value=_MASKED
        )

    def _packed(self, prefix: str, query_scale: float = 1.0) -> tuple[FloatArray, FloatArray]:
        """Weight [3 * width, width] and bias of query, key and value in one."""
        parts = {"query": query_scale, "key": 1.0, "value": 1.0}
        names = {prefix + f"attention.self.{part}": np.float32(scale) for part, scale in parts.items()}
        weight = np.concatenate([self._weights[f"{name}.weight"] * scale for name, scale in names.items()])
        return weight, np.concatenate([self._weights[f"{name}.bias"] * scale for name, scale in names.items()])

    def _split(self, value: str, axis: int = -1) -> tuple[str, str, str]:
        stem = f"value_{len(self._nodes)}"
        names = (f"{stem}_query", f"{stem}_key", f"{stem}_value")
        self._nodes.append(helper.make_node("Split", [value], names, axis=axis))
        return names

    def _attention(self, hidden: str, prefix: str) -> str:
        heads, width = self._config.num_heads, self._config.width
        # The scale of the scores goes into the query's weights.
        weight, bias = self._packed(prefix, (width // heads) ** -0.5)
        product = self._multiplied(hidden, prefix + "qkv.weight", weight)
        rows = self._node("Gather", [self._node("Add", [product, self._constant(prefix + "qkv.bias", bias)]), "grid"])
        shape = self._integers("heads_shape", [0, 0, 3 * heads, width // heads])
        by_head = self._node("Transpose", [self._node("Reshape", [rows, shape])], perm=[0, 2, 1, 3])
        query, key, value = self._split(by_head, axis=1)
        turned = self._node("Transpose", [key], perm=[0, 1, 3, 2])
        scores = self._node("Add", [self._node("MatMul", [query, turned]), self._mask])
        mixed = self._node("MatMul", [self._node("Softmax", [scores], axis=-1), value])
        joined_shape = self._integers("joined_shape", [-1, width])
        joined = self._node("Reshape", [self._node("Transpose", [mixed], perm=[0, 2, 1, 3]), joined_shape])
        return self._node("Gather", [joined, "places"])

    def _linear(self, value: str, name: str) -> str:
        return self._node("Add", [self._product(value, name), self._weight(f"{name}.bias")])

    def _product(self, value: str, name: str) -> str:
        return self._multiplied(value, f"{name}.weight", self._weights[f"{name}.weight"])

    def _multiplied(self, value: str, name: str, weight: FloatArray) -> str:
        """*value*, [..., in], times *weight*, [out, in]: [..., out]."""
        if not self._has_int8_weights:
            return self._node("MatMul", [value, self._constant(name, weight.T)])
        integers, scales = int8_channels(weight)
        self._constants[name] = numpy_helper.from_array(integers, name)
        read = self._node("DequantizeLinear", [name, self._constant(f"{name}.scales", scales)], axis=0)
        return self._node("Gemm", [value, read], transB=1)

    def _gelu(self, value: str, name: str) -> str:
        if self._is_fused:
            return self._node("BiasGelu", [self._product(value, name), self._weight(f"{name}.bias")], domain=_FUSED)
        raw = self._linear(value, name)
        erf = self._node("Erf", [self._node("Div", [raw, self._scalar("sqrt2", float(np.sqrt(2)))])])
        gate = self._node("Mul", [raw, self._node("Add", [erf, self._scalar("one", 1.0)])])
        return self._node("Mul", [gate, self._scalar("half", 0.5)])

    def _residual(self, value: str, skipped: str, prefix: str) -> str:
        if not self._is_fused:
            return self._normalized(self._node("Add", [self._linear(value, prefix + "dense"), skipped]), prefix + "LayerNorm")
        norm = [self._weight(prefix + "LayerNorm.weight"), self._weight(prefix + "LayerNorm.bias")]
        inputs = [self._product(value, prefix + "dense"), skipped, *norm, self._weight(prefix + "dense.bias")]
        return self._node("SkipLayerNormalization", inputs, domain=_FUSED, epsilon=self._config.epsilon)

    def _normalized(self, value: str, name: str) -> str:
        inputs = [value, self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        return self._node("LayerNormalization", inputs, axis=-1, epsilon=self._config.epsilon)

    def _node(self, kind: str, inputs: list[str], *, domain: str = "", **attributes: Any) -> str:
        name = f"value_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], domain=domain, **attributes))
        return name

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _scalar(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, dtype=np.float32))

    def _constant(self, name: str, value: FloatArray) -> str:
        if name not in self._constants:
            array = np.ascontiguousarray(value, dtype=np.float32).reshape(value.shape)
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def _integers(self, name: str, values: list[int]) -> str:
        self._constants[name] = numpy_helper.from_array(np.array(values, dtype=np.int64), name)
        return name
