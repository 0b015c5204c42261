"""A trunk run by ONNX Runtime on the CPU."""

from pathlib import Path

import onnxruntime as ort

from embedding_service.backend import LONE_THREADS, BackendError, Batch, BatchResult, EngineSpec, FloatArray, TrunkSpec
from embedding_service.backend.pooling import padded, read_views


class OnnxBackend:
    """See `embedding_service.backend.Backend`.

    One session where each caller's thread computes its own pass, and another where threads help it with a pass that is alone.
    """

    def __init__(self, trunk: TrunkSpec, engine: EngineSpec, graph: Path, *, lone_threads: int = LONE_THREADS) -> None:
        self.trunk = trunk
        self.engine = engine
        lone_threads = min(lone_threads, engine.concurrency)
        self._side_by_side: ort.InferenceSession | None = _session(graph, 1)
        self._alone: ort.InferenceSession | None = _session(graph, lone_threads) if lone_threads > 1 else self._side_by_side

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        session = self._alone if batch.is_alone else self._side_by_side
        if session is None:
            raise BackendError("the backend is closed")
        inputs, lengths = padded(batch.token_ids, batch.pair_at)
        layers = sorted({view.layer for views in batch.views for view in views})
        names = [f"hidden_{self.trunk.num_layers + 1 + layer}" for layer in layers]
        try:
            arrays: list[FloatArray] = session.run(names, inputs)
        except Exception as error:  # the runtime's own classes are many and private
            raise BackendError(f"ONNX Runtime failed: {error}") from error
        present = inputs["attention_mask"].astype(bool)
        return read_views({layer: array[present] for layer, array in zip(layers, arrays, strict=True)}, lengths, batch)

    def close(self) -> None:
        """See `embedding_service.backend.Backend`."""
        self._side_by_side = self._alone = None


def _session(graph: Path, threads_a_pass: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_a_pass
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Helpers asleep between two products wake too late to be of help; awake between passes, they take a core from others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads_a_pass > 1 else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
