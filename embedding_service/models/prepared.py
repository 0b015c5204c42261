"""What preparation hands to a backend."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embedding_service.backend import EngineSpec, TrunkSpec

EngineName = Literal["onnx-fp32", "onnx-int8", "openvino-bf16", "openvino-fp32"]


@dataclass(frozen=True, slots=True)
class PreparedTrunk:
    """A trunk ready to load: *graph* is the file *engine_name* reads."""

    trunk: TrunkSpec
    engine: EngineSpec
    engine_name: EngineName
    graph: Path
