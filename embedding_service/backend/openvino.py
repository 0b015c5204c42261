"""A trunk run by OpenVINO on the CPU, in an explicit precision."""

import threading
from pathlib import Path
from typing import Literal

import openvino as ov

from embedding_service.backend import BackendError, Batch, BatchResult, EngineSpec, TrunkSpec
from embedding_service.backend.pooling import flattened, read_views

Precision = Literal["bf16", "f32"]


class OpenVinoBackend:
    """See `embedding_service.backend.Backend`. One compiled model with a stream a core; each thread has its own request."""

    def __init__(
        self, trunk: TrunkSpec, engine: EngineSpec, graph: Path, precision: Precision, *, threads_a_pass: int = 1
    ) -> None:
        self.trunk = trunk
        self.engine = engine
        self._model: ov.CompiledModel | None = compile_graph(graph, precision, engine.concurrency, threads_a_pass=threads_a_pass)
        self._requests = threading.local()

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        request = self._request()
        inputs, lengths = flattened(batch.token_ids, batch.pair_at)
        layers = {view.layer for views in batch.views for view in views}
        try:
            request.infer(inputs, share_inputs=True, share_outputs=True)
            # Views of the request's own memory: read before this thread's next pass.
            hidden = {layer: request.get_tensor(f"hidden_{self.trunk.num_layers + 1 + layer}").data for layer in layers}
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed: {error}") from error
        return read_views(hidden, lengths, batch)

    def close(self) -> None:
        """See `embedding_service.backend.Backend`."""
        self._model = None
        self._requests = threading.local()

    def _request(self) -> ov.InferRequest:
        if self._model is None:
            raise BackendError("the backend is closed")
        request: ov.InferRequest | None = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._model.create_infer_request()
        return request


def compile_graph(graph: Path, precision: Precision, concurrency: int, *, threads_a_pass: int = 1) -> ov.CompiledModel:
    """Compile for *concurrency* passes at once; one thread each is best (`perf.micro.threads`)."""
    options = {
        "NUM_STREAMS": str(concurrency),
        "INFERENCE_NUM_THREADS": str(concurrency * threads_a_pass),
        # Pinned, several processes of a machine would share its first core.
        "ENABLE_CPU_PINNING": "NO",
        "INFERENCE_PRECISION_HINT": precision,
    }
    return ov.Core().compile_model(graph, "CPU", options)
