"""A trunk run by ONNX Runtime on the CPU."""

from pathlib import Path

import onnxruntime as ort

from embedding_service.backend import BackendError, Batch, BatchResult, EngineSpec, FloatArray, TrunkSpec
from embedding_service.backend.pooling import padded, read_views


class OnnxBackend:
    """See `embedding_service.backend.Backend`. One session; each caller's thread computes its own pass."""

    def __init__(self, trunk: TrunkSpec, engine: EngineSpec, graph: Path) -> None:
        self.trunk = trunk
        self.engine = engine
        self._session: ort.InferenceSession | None = ort.InferenceSession(graph, _options(), providers=["CPUExecutionProvider"])

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        if self._session is None:
            raise BackendError("the backend is closed")
        inputs, lengths = padded(batch.token_ids, batch.pair_at)
        layers = sorted({view.layer for views in batch.views for view in views})
        names = [f"hidden_{self.trunk.num_layers + 1 + layer}" for layer in layers]
        try:
            arrays: list[FloatArray] = self._session.run(names, inputs)
        except Exception as error:  # the runtime's own classes are many and private
            raise BackendError(f"ONNX Runtime failed: {error}") from error
        present = inputs["attention_mask"].astype(bool)
        return read_views({layer: array[present] for layer, array in zip(layers, arrays, strict=True)}, lengths, batch)

    def close(self) -> None:
        """See `embedding_service.backend.Backend`."""
        self._session = None


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options
