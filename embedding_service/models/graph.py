"""A BERT encoder as an ONNX graph, built from its weights. No torch, no tracing: the layers are written down here.

Source of the computation: Devlin et al. 2018 (BERT), post-layer-norm transformer encoder; weight names as in Hugging Face's
BertModel. Operators are those of the ONNX standard, which ONNX Runtime fuses and OpenVINO reads.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedding_service.models.bert import BertShape, Checkpoint, Weights
from embedding_service.models.errors import PreparationError

OPSET: Final = 20
"""The first with Gelu; LayerNormalization is older."""

MASKED: Final = -10_000.0
"""Added to attention scores of padding; its softmax is zero in float32 and in bfloat16."""


def build_graph(checkpoint: Checkpoint, layers: Sequence[int]) -> onnx.ModelProto:
    """The encoder as a model.

    Inputs: `input_ids` and `attention_mask`, int64 [batch, tokens]. Outputs, one for each of the negative *layers*:
    `hidden_<n>`, float32 [batch, tokens, width], where n counts from 0, the embedding layer.

    Raises:
        PreparationError: a weight is missing or of another shape than the configuration says.
    """
    builder = _Builder(checkpoint.shape, checkpoint.weights)
    hidden = builder.embeddings()
    states = [hidden]
    builder.mask()
    for number in range(checkpoint.shape.num_layers):
        hidden = builder.layer(number, hidden)
        states.append(hidden)
    return builder.model({output_name(layer, checkpoint.shape): states[layer] for layer in layers})


def output_name(layer: int, shape: BertShape) -> str:
    """The graph's output for a negative *layer*."""
    return f"hidden_{layer + shape.num_layers + 1}"


class _Builder:
    """Collects nodes and weights of one graph."""

    def __init__(self, shape: BertShape, weights: Weights) -> None:
        self._shape = shape
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def embeddings(self) -> str:
        s = self._shape
        words = self._node("Gather", self._weight("embeddings.word_embeddings.weight", s.vocab_size, s.width), "input_ids")
        length = self._node("Shape", "input_ids", start=1, end=2)
        positions = self._node(
            "Slice",
            self._weight("embeddings.position_embeddings.weight", s.max_positions, s.width),
            self._constant("zero", np.array([0], np.int64)),
            length,
            self._constant("zero", np.array([0], np.int64)),
        )
        # Every token is of segment 0, so its row is a constant, folded into the positions by any engine.
        segment = self._weights["embeddings.token_type_embeddings.weight"][0]
        placed = self._node("Add", positions, self._constant("segment", segment))
        return self._norm(self._node("Add", words, placed), "embeddings.LayerNorm")

    def mask(self) -> None:
        """`mask_bias`: float32 [batch, 1, 1, tokens], 0 for tokens and `MASKED` for padding."""
        floats = self._node("Cast", "attention_mask", to=TensorProto.FLOAT)
        padding = self._node("Sub", self._constant("one", np.array(1, np.float32)), floats)
        scaled = self._node("Mul", padding, self._constant("masked", np.array(MASKED, np.float32)))
        self._node("Unsqueeze", scaled, self._constant("axes", np.array([1, 2], np.int64)), output="mask_bias")

    def layer(self, number: int, hidden: str) -> str:
        prefix = f"encoder.layer.{number}."
        attended = self._attention(prefix + "attention.", hidden)
        middle = self._norm(self._node("Add", attended, hidden), prefix + "attention.output.LayerNorm")
        grown = self._node("Gelu", self._dense(middle, prefix + "intermediate.dense"))
        shrunk = self._dense(grown, prefix + "output.dense")
        return self._norm(self._node("Add", shrunk, middle), prefix + "output.LayerNorm")

    def _attention(self, prefix: str, hidden: str) -> str:
        """softmax(Q K^T / sqrt(head width) + mask) V, head by head; the scale is folded into the query's weights."""
        scale = 1 / math.sqrt(self._shape.width // self._shape.num_heads)
        query = self._heads(self._dense(hidden, prefix + "self.query", scale), [0, 2, 1, 3])
        key = self._heads(self._dense(hidden, prefix + "self.key"), [0, 2, 3, 1])
        value = self._heads(self._dense(hidden, prefix + "self.value"), [0, 2, 1, 3])
        scores = self._node("Add", self._node("MatMul", query, key), "mask_bias")
        context = self._node("MatMul", self._node("Softmax", scores, axis=-1), value)
        joined = self._node("Transpose", context, perm=[0, 2, 1, 3])
        shape = self._constant("joined", np.array([0, 0, self._shape.width], np.int64))
        return self._dense(self._node("Reshape", joined, shape), prefix + "output.dense")

    def _heads(self, projected: str, order: list[int]) -> str:
        heads = self._shape.num_heads
        shape = self._constant("heads", np.array([0, 0, heads, self._shape.width // heads], np.int64))
        return self._node("Transpose", self._node("Reshape", projected, shape), perm=order)

    def _dense(self, hidden: str, name: str, scale: float = 1.0) -> str:
        weight = self._weights_of(f"{name}.weight").T * np.float32(scale)
        bias = self._weights_of(f"{name}.bias") * np.float32(scale)
        product = self._node("MatMul", hidden, self._constant(f"{name}.weight", np.ascontiguousarray(weight)))
        return self._node("Add", product, self._constant(f"{name}.bias", bias))

    def _norm(self, hidden: str, name: str) -> str:
        width = self._shape.width
        weight, bias = self._weight(f"{name}.weight", width), self._weight(f"{name}.bias", width)
        return self._node("LayerNormalization", hidden, weight, bias, axis=-1, epsilon=self._shape.epsilon)

    def _node(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def _weights_of(self, name: str) -> NDArray[np.float32]:
        try:
            return self._weights[name]
        except KeyError:
            raise PreparationError(f"the weights lack {name}") from None

    def _weight(self, name: str, *shape: int) -> str:
        value = self._weights_of(name)
        if value.shape != shape:
            raise PreparationError(f"the weight {name} has the shape {value.shape}, and config.json means {shape}")
        return self._constant(name, value)

    def _constant(self, name: str, value: NDArray[np.float32] | NDArray[np.int64]) -> str:
        self._constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def model(self, outputs: dict[str, str]) -> onnx.ModelProto:
        for name, state in outputs.items():
            self._node("Identity", state, output=name)
        tokens = ["batch", "tokens"]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, tokens) for name in ("input_ids", "attention_mask")]
        states = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [*tokens, self._shape.width]) for name in outputs]
        graph = helper.make_graph(self._nodes, "bert", inputs, states, list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="trunkline")
        model.ir_version = 10
        return model
