"""A trunk run by OpenVINO on the CPU, in an explicit precision."""

import threading
from pathlib import Path
from typing import Literal

import openvino as ov

from embedding_service.backend import LONE_THREADS, BackendError, Batch, BatchResult, EngineSpec, TrunkSpec
from embedding_service.backend.pooling import flattened, read_views

Precision = Literal["bf16", "f32"]


class OpenVinoBackend:
    """See `embedding_service.backend.Backend`.

    The graph is compiled twice, with shared constants: with a stream a core for passes side by side, and for one pass on several.
    """

    def __init__(
        self, trunk: TrunkSpec, engine: EngineSpec, graph: Path, precision: Precision, *, lone_threads: int = LONE_THREADS
    ) -> None:
        self.trunk = trunk
        self.engine = engine
        model, lone_threads = ov.Core().read_model(graph), min(lone_threads, engine.concurrency)
        self._side_by_side: _Compiled | None = _Compiled(compile_graph(model, precision, engine.concurrency))
        self._alone: _Compiled | None = self._side_by_side
        if lone_threads > 1:
            self._alone = _Compiled(compile_graph(model, precision, 1, threads_a_pass=lone_threads))

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        compiled = self._alone if batch.is_alone else self._side_by_side
        if compiled is None:
            raise BackendError("the backend is closed")
        request = compiled.request()
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
        self._side_by_side = self._alone = None


class _Compiled:
    """A compiled model; each thread has its own request."""

    def __init__(self, model: ov.CompiledModel) -> None:
        self._model = model
        self._requests = threading.local()

    def request(self) -> ov.InferRequest:
        """This thread's."""
        request: ov.InferRequest | None = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._model.create_infer_request()
        return request


def compile_graph(graph: Path | ov.Model, precision: Precision, concurrency: int, *, threads_a_pass: int = 1) -> ov.CompiledModel:
    """Compile for *concurrency* passes at once; one thread each is best where there are so many (`perf.micro.threads`)."""
    options = {
        "NUM_STREAMS": str(concurrency),
        "INFERENCE_NUM_THREADS": str(concurrency * threads_a_pass),
        # Pinned, several processes of a machine would share its first core.
        "ENABLE_CPU_PINNING": "NO",
        "INFERENCE_PRECISION_HINT": precision,
    }
    return ov.Core().compile_model(graph, "CPU", options)
