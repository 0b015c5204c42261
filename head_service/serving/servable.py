"""One loaded SavedModel: signatures, and running them. With the exporter, the only place that imports TensorFlow."""

import os
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Results that do not depend on the order of a fused computation; its absence is also quiet.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from head_service.without_keras import without_keras

with without_keras():
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.framework.ops import dismantle_graph

from clients.wire.catalogue import Manifest
from clients.wire.tfs import serving_pb2
from head_service.manifest import WARMUP_PATH
from head_service.serving.checks import check_outputs, decode_request
from head_service.serving.errors import ServingError, invalid
from head_service.serving.giving_way import giving_way
from head_service.serving.pace import Pace
from head_service.serving.plans import Plan, plan_of
from head_service.serving.signature import DEFAULT_SIGNATURE, INIT_SIGNATURE, Signature, TensorInfo
from head_service.serving.trust import SERVE_TAG, LoadError, RefusedError, checked, is_steady
from head_service.serving.warmup import Request, requests_in

VARIABLES: Final = "variables/variables"
PROBE_ROWS: Final = 2
PROBE_TOKENS: Final = 3
MAX_CALLABLES: Final = 256
"""Kept per version. One not kept is made again for its call, which is slower and nothing worse."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ServableOptions:
    """How versions are loaded and run.

    *observe_run* is told the model, the API's name, the seconds and the rows of each run, from any thread; *observe_warm_up* the
    model, the seconds and "OK" or "FAILED". *inter_threads* of 1 runs a graph in the thread that asks: ten times quicker for a
    graph as small as a head's.
    """

    intra_threads: int = 1
    inter_threads: int = 1
    tags: frozenset[str] = frozenset({SERVE_TAG})
    allow_foreign: bool = True
    warm_up: bool = True
    warm_up_iterations: int = 1
    observe_run: Callable[[str, str, float, int], None] | None = None
    observe_warm_up: Callable[[str, float, str], None] | None = None


class _LoadedSession(tf.compat.v1.Session):  # type: ignore[misc]  # TensorFlow is published without types
    """While *is_loading*, its steps in C++, which take milliseconds on end, give way to calls.

    Those steps alone: the Python around them needs the interpreter's lock.
    """

    is_loading = True

    def _extend_graph(self) -> None:
        self._step(super()._extend_graph)

    def _call_tf_sessionrun(self, *args: Any) -> Any:
        return self._step(super()._call_tf_sessionrun, *args)

    def _make_callable_from_options(self, callable_options: Any) -> Any:
        # In two steps: one within another would wait for a second thread of a bounded number.
        self._extend_graph()
        return self._step(self._Callable, self, callable_options)

    def _step(self, function: Callable[..., Any], *args: Any) -> Any:
        # Once it answers, somebody waits for it.
        return giving_way(function, *args) if self.is_loading else function(*args)


class _Callables:
    """What a session runs, made once for each choice of tensors; the choices are the callers', so they are bounded."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._made: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}

    def run(self, feeds: Arrays, fetches: Collection[str]) -> dict[str, NDArray[Any]]:
        """The *fetches* by the graph's tensor names, as are the *feeds*."""
        key = tuple(feeds), tuple(sorted(set(fetches)))
        call = self._made.get(key)
        if call is None:
            # Making it takes as long as some hundred runs.
            call = self._make(*key)
            if len(self._made) < MAX_CALLABLES:
                self._made[key] = call
        try:
            results = call(*feeds.values())
        except tf.errors.OpError as error:
            raise ServingError(_code(error), str(error.message)[:1024]) from None
        # What the conversion to a TensorFlow tensor refuses is the caller's doing.
        except (TypeError, ValueError) as error:
            raise invalid(str(error)[:1024]) from None
        return {name: _as_array(result) for name, result in zip(key[1], results, strict=True)}

    def _make(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Any:
        """A callable made from options skips the shape checks that the reference server does not make either."""
        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
        return self._session._make_callable_from_options(options)  # noqa: SLF001 (no public name for it)


class Servable:
    """A version in memory. `run` and `run_plan` are thread-safe; `close` is called once nobody runs it any more."""

    def __init__(self, name: str, version: int, directory: Path, options: ServableOptions | None = None) -> None:
        """Load the version in *directory*, once it is what it ought to be, and warm it up.

        Raises:
            LoadError: it cannot be served.
        """
        self.name = name
        self.version = version
        self._options = options or ServableOptions()
        self._pace = Pace()
        with checked(directory, allow_foreign=self._options.allow_foreign) as (path, manifest):
            if manifest is not None:
                _check_name(manifest, name, version)
                _check_weights(path)
            self._load(path)
            try:
                if manifest is not None:
                    self._probe(manifest)
                if self._options.warm_up:
                    self._warm_up(path)
            except BaseException:
                self.close()
                raise
        self._session.is_loading = False

    def _load(self, directory: Path) -> None:
        threads = self._options.inter_threads
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=self._options.intra_threads,
            # Less than zero: no other thread than the caller's.
            inter_op_parallelism_threads=-1 if threads == 1 else threads,
        )
        self._session = _LoadedSession(graph=tf.Graph(), config=config)
        self._callables = _Callables(self._session)
        problem = ""
        try:
            with self._session.graph.as_default():
                meta = tf.compat.v1.saved_model.load(self._session, sorted(self._options.tags), str(directory))
            self._definitions = dict(meta.signature_def)
            self.signatures = {
                key: _signature(definition) for key, definition in self._definitions.items() if key != INIT_SIGNATURE
            }
            self._is_steady = is_steady(meta)
        # TensorFlow raises many kinds here, and each of them is this version's status.
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:500]}"
        if problem:
            # Here that error is gone, and with it the frames that hold the session.
            self.close()
            raise LoadError(problem)

    def signature_bytes(self) -> dict[str, bytes]:
        """Each signature's serialised tensorflow.SignatureDef, by name."""
        return {key: definition.SerializeToString() for key, definition in self._definitions.items()}

    def signature_dicts(self) -> dict[str, dict[str, Any]]:
        """Each signature's tensorflow.SignatureDef as JSON has it, by name, with every field and the fields' own names."""
        return {
            key: json_format.MessageToDict(
                definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for key, definition in self._definitions.items()
        }

    def is_quick(self, signature_name: str, inputs: Arrays) -> bool:
        """Whether running these *inputs* would take less than handing them to a thread."""
        return self._is_steady and self._pace.is_quick(signature_name or DEFAULT_SIGNATURE, _size(inputs))

    def is_quick_plan(self, plan: Plan) -> bool:
        """As `is_quick`."""
        return self._is_steady and self._pace.is_quick(_kind(plan), _size(_fed(plan)))

    def run(self, signature_name: str, inputs: Arrays, output_filter: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """The outputs of a signature, or those of *output_filter*, by alias; `checks` have passed all three."""
        signature = self.signatures[signature_name or DEFAULT_SIGNATURE]
        feeds = {signature.inputs[alias].name: array for alias, array in inputs.items()}
        names = {alias: signature.outputs[alias].name for alias in output_filter or signature.outputs}
        results = self._run("Predict", signature_name or DEFAULT_SIGNATURE, feeds, names.values())
        return {alias: results[name] for alias, name in names.items()}

    def run_plan(self, plan: Plan) -> dict[str, NDArray[Any]]:
        """Feed the plan's examples to all its feeds; results by the graph's tensor names."""
        return self._run(plan.api, _kind(plan), _fed(plan), plan.fetches)

    def _run(self, api: str, kind: Hashable, feeds: Arrays, fetches: Collection[str]) -> dict[str, NDArray[Any]]:
        begin = time.perf_counter()
        results = self._callables.run(feeds, fetches)
        seconds = time.perf_counter() - begin
        self._pace.ran(kind, _size(feeds), seconds)
        if self._options.observe_run is not None:
            self._options.observe_run(self.name, api, seconds, _num_rows(feeds))
        return results

    def close(self) -> None:
        """Free the session and its graph, in this thread: whoever dropped them last would wait for it. Twice is as once."""
        if not hasattr(self, "_session"):
            return
        graph = self._session.graph
        self._session.close()
        # Callables hold the session, which was made of the graph.
        del self._callables, self._session
        for name in graph.collections:
            graph.clear_collection(name)
        dismantle_graph(graph)

    def _probe(self, manifest: Manifest) -> None:
        """Run it once: whether it takes and gives what its manifest says, and numbers."""
        rows = (PROBE_ROWS, PROBE_TOKENS) if manifest.view.pooling == "tokens" else (PROBE_ROWS,)
        inputs = {manifest.input: np.zeros((*rows, manifest.width), np.float32)}
        if manifest.mask_input:
            inputs[manifest.mask_input] = np.ones(rows, np.float32)
        try:
            outputs = self.run(DEFAULT_SIGNATURE, inputs, ())
        except ServingError as error:
            raise RefusedError(f"it does not run on {manifest.width} inputs: {error.message[:200]}") from None
        shape = outputs[manifest.output].shape
        if shape != (PROBE_ROWS, len(manifest.labels)):
            raise RefusedError(f"it gives {shape} scores for {PROBE_ROWS} rows and {len(manifest.labels)} labels")
        if not all(np.isfinite(array).all() for array in outputs.values()):
            raise RefusedError("it gives scores that are not numbers")

    def _warm_up(self, directory: Path) -> None:
        if not (directory / WARMUP_PATH).is_file():
            return
        begin, said = time.perf_counter(), "FAILED"
        try:
            for request in requests_in(_records(directory / WARMUP_PATH)):
                for _ in range(self._options.warm_up_iterations):
                    self._replay(request)
            said = "OK"
        except ServingError as error:
            raise LoadError(f"the warm-up failed: {error.message[:500]}") from error
        finally:
            if self._options.observe_warm_up is not None:
                self._options.observe_warm_up(self.name, time.perf_counter() - begin, said)

    def _replay(self, request: Request) -> None:
        if not isinstance(request, serving_pb2.PredictRequest):
            self.run_plan(plan_of(self.signatures, request))
            return
        name, output_filter = request.model_spec.signature_name or DEFAULT_SIGNATURE, tuple(request.output_filter)
        inputs = decode_request(self.signatures, name, request.inputs)
        check_outputs(self.signatures[name], output_filter)
        self.run(name, inputs, output_filter)


def _check_name(manifest: Manifest, name: str, version: int) -> None:
    if (manifest.name, manifest.version) != (name, version):
        described = f"{manifest.name!r} version {manifest.version}"
        raise RefusedError(f"its manifest is that of {described}; another one's labels would be told for its scores")


def _check_weights(directory: Path) -> None:
    """Refuse weights that are not numbers. Reads the checkpoint, whose own checksums are compared on the way."""
    if not (directory / f"{VARIABLES}.index").is_file():
        return
    try:
        reader = tf.train.load_checkpoint(str(directory / VARIABLES))
        for name, dtype in reader.get_variable_to_dtype_map().items():
            if dtype.is_floating and not np.isfinite(reader.get_tensor(name).astype(np.float64)).all():
                raise RefusedError(f"weights of {name.split('/')[0][:64]!r} are not numbers")
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise LoadError(f"the weights cannot be read: {str(error)[:200]}") from None


def _records(path: Path) -> Iterator[bytes]:
    """Reads in C++, where the two checksums of each record are compared."""
    try:
        yield from tf.compat.v1.io.tf_record_iterator(str(path))
    except tf.errors.OpError as error:
        raise LoadError(f"{WARMUP_PATH} is damaged: {str(error.message)[:200]}") from None


def _kind(plan: Plan) -> Hashable:
    return plan.feeds, plan.fetches


def _fed(plan: Plan) -> dict[str, NDArray[Any]]:
    return dict.fromkeys(plan.feeds, plan.examples)


def _size(arrays: Arrays) -> int:
    """Elements, and of texts their bytes too: what the time a run takes grows with."""
    return sum(array.size + (sum(map(len, array.flat)) if array.dtype == object else 0) for array in arrays.values())


def _num_rows(arrays: Arrays) -> int:
    return next((array.shape[0] for array in arrays.values() if array.ndim), 1)


def _signature(definition: Any) -> Signature:
    return Signature(
        {alias: _info(info) for alias, info in sorted(definition.inputs.items())},
        {alias: _info(info) for alias, info in sorted(definition.outputs.items())},
        {alias: tf.make_ndarray(tensor) for alias, tensor in sorted(definition.defaults.items())},
    )


def _info(info: Any) -> TensorInfo:
    return TensorInfo(info.name, np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype))


def _as_array(result: Any) -> NDArray[Any]:
    """A scalar text comes as plain bytes, of which numpy would drop the zeros at the end."""
    return np.array(result, dtype=object) if isinstance(result, bytes) else np.asarray(result)


def _code(error: Any) -> grpc.StatusCode:
    """TensorFlow's error codes are gRPC's."""
    by_number = {code.value[0]: code for code in grpc.StatusCode}
    return by_number.get(error.error_code, grpc.StatusCode.UNKNOWN)
