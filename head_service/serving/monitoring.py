"""What is counted, under TensorFlow Serving's names, as Prometheus reads it; and what watches both edges from outside.

Names, labels and bounds: servables/tensorflow/util.cc, model_servers and batching; a "/" of theirs is a ":" in Prometheus.
Written here, not by prometheus_client: it would end the counters' names with _total.
"""

import asyncio
import bisect
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from head_service.serving.errors import HTTP_STATUS

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
LATENCY_BOUNDS_MICROS: Final = tuple(10 * 1.8**power for power in range(33))
EXAMPLE_BOUNDS: Final = tuple(float(2**power) for power in range(15))

_NAME: Final = re.compile(r"(?i)/v1/models/([^/:]+).*:(classify|regress|predict)")
_CODES: Final = {status: code.name for code, status in reversed(HTTP_STATUS.items())}
_API: Final = {"Predict": "predict", "Classify": "classify", "Regress": "regress", "MultiInference": "multi_inference"}

Answer = TypeVar("Answer")
Labels = tuple[str, ...]


class Counter:
    """A number a set of labels that only grows."""

    kind = "counter"

    def __init__(self, name: str, labels: Sequence[str], help_text: str) -> None:
        self.name, self.labels, self.help_text = name, tuple(labels), help_text
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def add(self, *values: str, by: float = 1) -> None:
        """Of the labels' *values*. From any thread."""
        with self._lock:
            self._values[values] = self._values.get(values, 0) + by

    def lines(self) -> list[str]:
        """As Prometheus reads them."""
        with self._lock:
            return [f"{self.name}{_labelled(self.labels, values)} {value:g}" for values, value in self._values.items()]


class Histogram:
    """How often a set of labels had values up to each of *bounds*."""

    kind = "histogram"

    def __init__(self, name: str, labels: Sequence[str], help_text: str, bounds: Sequence[float]) -> None:
        self.name, self.labels, self.help_text = name, tuple(labels), help_text
        self._bounds = tuple(bounds)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *values: str) -> None:
        """One *value* of the labels' *values*. From any thread."""
        with self._lock:
            counts = self._counts.setdefault(values, [0] * (len(self._bounds) + 1))
            counts[bisect.bisect_left(self._bounds, value)] += 1
            self._sums[values] = self._sums.get(values, 0.0) + value

    def lines(self) -> list[str]:
        """As Prometheus reads them: cumulative buckets, sum and count."""
        lines = []
        with self._lock:
            for values, counts in self._counts.items():
                total = 0
                for bound, count in zip((*map("{:g}".format, self._bounds), "+Inf"), counts, strict=True):
                    total += count
                    lines.append(f"{self.name}_bucket{_labelled((*self.labels, 'le'), (*values, bound))} {total}")
                labels = _labelled(self.labels, values)
                lines += [f"{self.name}_sum{labels} {self._sums[values]:g}", f"{self.name}_count{labels} {total}"]
        return lines


class Monitoring:
    """All that is counted. *knows* tells whether a model is configured: other names are counted as one, "other"."""

    def __init__(self, knows: Callable[[str], bool], thread_pool: str = "") -> None:
        self._knows = knows
        self._thread_pool = thread_pool
        self._requests = Counter(":tensorflow:serving:request_count", ("model_name", "status"), "The total number of requests.")
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            ("model_name", "API", "entrypoint"),
            "Distribution of wall time (in microseconds) for Tensorflow Serving request.",
            LATENCY_BOUNDS_MICROS,
        )
        self._runtime = Histogram(
            ":tensorflow:serving:runtime_latency",
            ("model_name", "API", "runtime"),
            "Distribution of wall time (in microseconds) for running the graph.",
            LATENCY_BOUNDS_MICROS,
        )
        self._examples = Histogram(
            ":tensorflow:serving:request_example_counts", ("model",), "The number of examples of a request.", EXAMPLE_BOUNDS
        )
        self._waits = Histogram(
            ":tensorflow:serving:batching_session:queuing_latency",
            ("thread_pool_name",),
            "Distribution of wall time spent (in microseconds) in queuing",
            LATENCY_BOUNDS_MICROS,
        )
        self._warm_ups = Histogram(
            ":tensorflow:serving:model_warmup_latency",
            ("model_path", "status"),
            "Latency of model warmup (in microseconds)",
            LATENCY_BOUNDS_MICROS,
        )

    def exposition(self) -> bytes:
        """Everything, as Prometheus reads it."""
        lines: list[str] = []
        for metric in (self._requests, self._latency, self._runtime, self._examples, self._waits, self._warm_ups):
            lines += [f"# HELP {metric.name} {metric.help_text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return ("\n".join(lines) + "\n").encode()

    def request_ended(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """A call of *api* was answered with *status*, a gRPC code's name."""
        name = model if self._knows(model) else "other"
        self._requests.add(name, status)
        self._latency.observe(seconds * 1e6, name, api, entrypoint)

    def run_ended(self, model: str, api: str, seconds: float, rows: int) -> None:
        """A graph ran for *api*: Predict, Classify, Regress or MultiInference. From any thread."""
        self._runtime.observe(seconds * 1e6, model, api, "TF1")
        self._examples.observe(rows, model)

    def waited(self, seconds: float) -> None:
        """An entry left the batching queue."""
        self._waits.observe(seconds * 1e6, self._thread_pool)

    def warmed_up(self, model: str, seconds: float, status: str) -> None:
        """A version was warmed up, or could not be. From any thread."""
        self._warm_ups.observe(seconds * 1e6, model, status)


class RpcMonitor(grpc.aio.ServerInterceptor):
    """Times each call of the PredictionService."""

    def __init__(self, monitoring: Monitoring) -> None:
        self._monitoring = monitoring
        self._handlers: dict[int, tuple[Any, Any]] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler, timed."""
        handler = await continuation(handler_call_details)
        api = _API.get(handler_call_details.method.rpartition("/")[2])
        if handler is None or api is None or handler.unary_unary is None:
            return handler
        _, timed = self._handlers.get(id(handler), (None, None))
        if timed is None:
            timed = grpc.unary_unary_rpc_method_handler(
                self._timed(handler.unary_unary, api),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
            self._handlers[id(handler)] = (handler, timed)
        return timed

    def _timed(self, function: Callable[[Any, Any], Awaitable[Answer]], api: str) -> Callable[[Any, Any], Awaitable[Answer]]:
        async def call(request: Any, context: Any) -> Answer:
            begin, status = time.perf_counter(), "CANCELLED"
            try:
                answer = await function(request, context)
                status = "OK"
            except asyncio.CancelledError:
                raise
            except Exception:
                code = context.code()
                status = code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
                raise
            finally:
                self._monitoring.request_ended(_model_of(request), api, "GRPC", status, time.perf_counter() - begin)
            return answer

        return call


class RestMonitor:
    """ASGI middleware: answers *path* with the metrics, and times each predict, classify and regress."""

    def __init__(self, app: ASGIApp, monitoring: Monitoring, path: str) -> None:
        self._app = app
        self._monitoring = monitoring
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == self._path:
            await _answer(send, self._monitoring.exposition())
        elif match := _NAME.fullmatch(scope["path"]):
            await self._timed(match, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _timed(self, match: re.Match[str], scope: Scope, receive: Receive, send: Send) -> None:
        begin, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            code = _CODES.get(status, "INVALID_ARGUMENT" if 400 <= status < 500 else "UNKNOWN")
            self._monitoring.request_ended(match[1], match[2].lower(), "REST", code, time.perf_counter() - begin)


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-type", CONTENT_TYPE), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _model_of(request: Any) -> str:
    """Of a MultiInference, of its first task."""
    tasks = getattr(request, "tasks", None)
    if tasks is not None:
        return str(tasks[0].model_spec.name) if tasks else ""
    return str(request.model_spec.name)


def _labelled(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}"


def _escaped(value: str) -> str:
    table: Mapping[str, str] = {"\\": r"\\", '"': r"\"", "\n": r"\n"}
    return "".join(table.get(letter, letter) for letter in value)
