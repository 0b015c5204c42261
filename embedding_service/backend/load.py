"""From a prepared trunk to a backend that runs it; an engine's library is imported only when it is the one chosen."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embedding_service.backend import Backend, EngineSpec, TrunkSpec
from embedding_service.models.errors import PreparationError

EngineName = Literal[
    "onnx-fp32", "onnx-int8", "openvino-bf16", "openvino-fp32", "openvino-int8", "torch-fp32", "torch-bf16", "torch-fp16"
]


@dataclass(frozen=True, slots=True)
class PreparedTrunk:
    """A trunk that can be loaded: *graph* is an ONNX file made for *engine_name*; for torch engines, the model's directory."""

    spec: TrunkSpec
    engine: EngineSpec
    engine_name: EngineName
    graph: Path


def load_backend(prepared: PreparedTrunk) -> Backend:
    """Read and compile *prepared*'s graph.

    Raises:
        PreparationError: the engine is not installed, or refuses the graph.
    """
    try:
        return _load(prepared)
    except Exception as error:  # the engines' own classes are many and private
        raise PreparationError(f"{prepared.engine.label} could not load the trunk: {error}; choose another --engine") from error


def _load(prepared: PreparedTrunk) -> Backend:
    if prepared.engine_name in {"onnx-fp32", "onnx-int8"}:
        from embedding_service.backend.onnx import OnnxBackend  # noqa: PLC0415 (heavy)

        return OnnxBackend(prepared.spec, prepared.engine, prepared.graph)
    if prepared.engine_name.startswith("torch-"):
        from embedding_service.backend.torch import load_torch  # noqa: PLC0415 (heavy)

        return load_torch(prepared)
    from embedding_service.backend.openvino import PRECISIONS, OpenVinoBackend  # noqa: PLC0415 (heavy)

    return OpenVinoBackend(prepared.spec, prepared.engine, prepared.graph, PRECISIONS[prepared.engine_name])


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
