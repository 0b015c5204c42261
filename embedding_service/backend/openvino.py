"""A trunk run by OpenVINO on the CPU, in an explicit precision."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Literal

import openvino as ov

from embedding_service.backend import LONE_THREADS, BackendError, Batch, BatchResult, EngineSpec, TrunkSpec
from embedding_service.backend.pooling import flattened, read_views

Precision = Literal["bf16", "f32", "int8"]
"""What linear layers multiply. With int8, a graph's weights being so, each token's activations are scaled to integers by
themselves, `INT8_GROUP` at a time, so that who came with a text changes its vector by rounding at most; all else is bf16 where
the processor has it."""

INT8_GROUP: Final = 64
"""Activations with a scale of their own. Fewer are more exact and slower, see `perf.micro.int8_groups`."""

PRECISIONS: Final[Mapping[str, Precision]] = {"openvino-bf16": "bf16", "openvino-fp32": "f32", "openvino-int8": "int8"}
"""By the name of the engine."""

_CORE: Final = ov.Core()
"""One for the life of the process. The first compilation gives its thread an alternative signal stack, the end of the last
core with its graphs frees that stack, and takes it back only from the thread that happens to run then: signals would kill."""

# The first to ask for a dtype makes a table of them behind a C++ lock, and may lose the interpreter meanwhile to a second, which
# waits for that lock and keeps the interpreter: two first passes at once would stop the process for good (OpenVINO 2026.4.1).
ov.Type.i64.to_dtype()

MOST_COPIES: Final = 4
"""With as many cores at most, each pass beside others has a compiled graph to itself: one that takes several passes at once
wakes and waits for threads of its own, a millisecond a pass. With more cores they share one, since each holds the weights."""


class OpenVinoBackend:
    """See `embedding_service.backend.Backend`.

    The graph is compiled for passes side by side, with a thread each, and for one pass on several. Constants are shared.
    """

    def __init__(
        self,
        trunk: TrunkSpec,
        engine: EngineSpec,
        graph: Path,
        precision: Precision,
        *,
        lone_threads: int = LONE_THREADS,
        int8_group: int = INT8_GROUP,
    ) -> None:
        self.trunk = trunk
        self.engine = engine
        model, lone_threads = _CORE.read_model(graph), min(lone_threads, engine.concurrency)
        compiled = partial(compile_graph, model, precision, int8_group=int8_group)
        self._side_by_side: _Requests | None = _Requests(_side_by_side(compiled, engine.concurrency))
        self._alone: _Requests | None = self._side_by_side
        if lone_threads > 1:
            self._alone = _Requests([compiled(1, threads_a_pass=lone_threads)])

    def embed(self, batch: Batch) -> BatchResult:
        """See `embedding_service.backend.Backend`."""
        requests = self._alone if batch.is_alone else self._side_by_side
        if requests is None:
            raise BackendError("the backend is closed")
        inputs, lengths = flattened(batch.token_ids, batch.pair_at)
        layers = {view.layer for views in batch.views for view in views}
        with requests.one() as request:
            try:
                request.infer(inputs, share_inputs=True, share_outputs=True)
                # Views of the request's own memory: read before it is used again.
                hidden = {layer: request.get_tensor(f"hidden_{self.trunk.num_layers + 1 + layer}").data for layer in layers}
            except RuntimeError as error:
                raise BackendError(f"OpenVINO failed: {error}") from error
            return read_views(hidden, lengths, batch)

    def close(self) -> None:
        """See `embedding_service.backend.Backend`."""
        self._side_by_side = self._alone = None


class _Requests:
    """As many passes at once as *models* are, on one each, in turns; who comes when all are in use waits."""

    def __init__(self, models: Sequence[ov.CompiledModel]) -> None:
        self._free: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for model in models:
            self._free.put(model.create_infer_request())
        # Freed after their requests.
        self._models = models

    @contextlib.contextmanager
    def one(self) -> Iterator[ov.InferRequest]:
        """One that nobody else uses meanwhile."""
        request = self._free.get()
        try:
            yield request
        finally:
            self._free.put(request)


def _side_by_side(compiled: Callable[[int], ov.CompiledModel], concurrency: int) -> list[ov.CompiledModel]:
    """For each of *concurrency* passes the graph it runs on, *compiled* for so many at once."""
    if concurrency > MOST_COPIES:
        return [compiled(concurrency)] * concurrency
    return [compiled(1) for _ in range(concurrency)]


def compile_graph(
    graph: Path | ov.Model, precision: Precision, concurrency: int, *, threads_a_pass: int = 1, int8_group: int = INT8_GROUP
) -> ov.CompiledModel:
    """Compile for *concurrency* passes at once; one thread each is best where there are so many (`perf.micro.threads`)."""
    options: dict[str, Any] = {
        "NUM_STREAMS": str(concurrency),
        "INFERENCE_NUM_THREADS": str(concurrency * threads_a_pass),
        # Pinned, several processes of a machine would share its first core.
        "ENABLE_CPU_PINNING": "NO",
        "INFERENCE_PRECISION_HINT": precision,
    }
    if precision == "int8":
        has_bf16 = "BF16" in _CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        options |= {"INFERENCE_PRECISION_HINT": "bf16" if has_bf16 else "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": int8_group}
    return _CORE.compile_model(graph, "CPU", options)
