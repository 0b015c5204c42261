"""What this machine could do at most: the measured rate of its matrix products over the operations that a text takes.

A rate is the best of several products of square matrices on all cores, by the libraries that the engines use: nothing is counted
but the product, so no engine can be better.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clients.wire.text import TextEncoder
from embedding_service.models.bert import BertConfig
from perf.results import Limit, Missing
from perf.workloads import NO_TRUNCATION, Workload

SIZES: Final = (1024, 2048)
REPEATS: Final = 7
SECONDS_A_SIZE: Final = 2.0
BF16_FEATURES: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Without one of these a bf16 product is a float32 product."""

_OPSET: Final = 17

Product = Callable[[], Any]
"""One product of two matrices."""

Make = Callable[[int], Product]
"""A product of square matrices with so many rows."""


def flops_of(num_tokens: int, config: BertConfig) -> float:
    """Of one forward pass over so many tokens: 2 a multiplication with its addition, of the matrix products only.

    A layer has four products of width x width and two of width x inner width a token, and two of tokens x tokens x width:
    8 d^2 + 4 d i a token, with i = 4 d the usual 24 d^2, and 4 d tokens^2.
    """
    linear = config.num_layers * (8 * config.width**2 + 4 * config.width * config.inner_width) * num_tokens
    return float(linear + 4 * config.num_layers * config.width * num_tokens**2)


def limit_of(precision: str, gflops: float, workload: Workload, lengths: Sequence[int], config: BertConfig) -> Limit:
    """The most texts a second at *gflops* (1e9 a second), for texts of such *lengths* in tokens."""
    mean = sum(flops_of(length, config) for length in lengths) / len(lengths)
    return Limit(precision=precision, gflops=gflops, workload=workload.name, texts_per_second=gflops * 1e9 / mean)


def lengths_of(workload: Workload, tokenizer_json: bytes, most_tokens: int) -> list[int]:
    """Tokens of each text, cut at what the trunk takes."""
    encoder = TextEncoder(tokenizer_json, max_tokens=NO_TRUNCATION)
    return [min(len(encoded.ids), most_tokens) for encoded in encoder.encode(workload.texts)]


def peaks(features: Sequence[str], sizes: Sequence[int] = SIZES) -> tuple[dict[str, float], list[Missing]]:
    """Measured peak by precision, in 1e9 operations a second; and the precisions that this processor does not have."""
    makes: dict[str, Make] = {"float32": float32_product, "int8": int8_product}
    missing = []
    if BF16_FEATURES & set(features):
        makes["bf16"] = bf16_product
    else:
        missing.append(Missing(what="limit, bf16", why="this processor has no bf16 products"))
    return {name: max(gflops(make, size) for size in sizes) for name, make in makes.items()}, missing


def gflops(make: Make, size: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of the fastest of `REPEATS` products or more, until `SECONDS_A_SIZE` have passed; 2 size^3 operations each."""
    product = make(size)
    product()
    best, started, count = float("inf"), clock(), 0
    while count < REPEATS or clock() < started + SECONDS_A_SIZE:
        before = clock()
        product()
        best = min(best, clock() - before)
        count += 1
    return 2 * size**3 / best / 1e9


def float32_product(size: int) -> Product:
    """By ONNX Runtime."""
    return _onnxruntime(_float_model(size), _random(size))


def int8_product(size: int) -> Product:
    """By ONNX Runtime: 8-bit activations without, weights with sign, sums of 32 bits, as the dynamic-int8 engine has them."""
    chance = np.random.default_rng(0)
    weights = chance.integers(-127, 128, (size, size), dtype=np.int8)
    model = _model(
        helper.make_node("MatMulInteger", ["x", "w"], ["y"]),
        (TensorProto.UINT8, TensorProto.INT32),
        size,
        numpy_helper.from_array(weights, "w"),
    )
    return _onnxruntime(model, chance.integers(0, 256, (size, size), dtype=np.uint8))


def bf16_product(size: int) -> Product:
    """By OpenVINO, asked for bf16."""
    import openvino  # noqa: PLC0415 (only where the processor has it)

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(_float_model(size).SerializeToString()), "CPU", settings)
    request, given = compiled.create_infer_request(), openvino.Tensor(_random(size))
    return lambda: request.infer([given], share_inputs=True, share_outputs=True)


def _random(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)


def _float_model(size: int) -> onnx.ModelProto:
    weights = numpy_helper.from_array(_random(size), "w")
    return _model(helper.make_node("MatMul", ["x", "w"], ["y"]), (TensorProto.FLOAT, TensorProto.FLOAT), size, weights)


def _model(node: onnx.NodeProto, types: tuple[int, int], size: int, weights: onnx.TensorProto) -> onnx.ModelProto:
    given, answered = (
        helper.make_tensor_value_info(name, kind, [size, size]) for name, kind in zip(("x", "y"), types, strict=True)
    )
    graph = helper.make_graph([node], "product", [given], [answered], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)


def _onnxruntime(model: onnx.ModelProto, given: NDArray[Any]) -> Product:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": given})
