"""One loaded SavedModel: signatures, and running them. With the exporter, the only place that imports TensorFlow."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Results that do not depend on the order of a fused computation; its absence is also quiet.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from clients.wire.catalogue import Manifest
from head_service.serving.errors import ServingError, invalid
from head_service.serving.pace import Pace
from head_service.serving.trust import DEFAULT_SIGNATURE, INIT_SIGNATURE, SERVE_TAG, LoadError, RefusedError, checked
from head_service.serving.warmup import WARMUP_PATH, ExamplesRun, Run, runs_in

__all__ = ["DEFAULT_SIGNATURE", "WARMUP_PATH", "LoadError", "Servable", "ServableOptions"]

VARIABLES: Final = "variables/variables"
PROBE_ROWS: Final = 2
PROBE_TOKENS: Final = 3
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ServableOptions:
    """How versions are loaded and run.

    *observe_run* is told the model, the seconds and the rows of each run, from any thread; *observe_warm_up* the model, the
    seconds and "OK" or "FAILED". *inter_threads* of 1 runs a graph in the thread that asks: ten times quicker for a graph as
    small as a head's.
    """

    intra_threads: int = 1
    inter_threads: int = 1
    tags: frozenset[str] = frozenset({SERVE_TAG})
    allow_foreign: bool = True
    warm_up: bool = True
    warm_up_iterations: int = 1
    observe_run: Callable[[str, float, int], None] | None = None
    observe_warm_up: Callable[[str, float, str], None] | None = None


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    dtype: np.dtype[Any]


class _Signature:
    """One signature, ready to call: inputs and outputs by alias, and a callable a set of aliases asked for."""

    def __init__(self, session: Any, definition: Any) -> None:
        self.definition = definition
        self.inputs = {alias: _info(info) for alias, info in sorted(definition.inputs.items())}
        self.outputs = {alias: _info(info) for alias, info in sorted(definition.outputs.items())}
        self._session = session
        self._callables: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}

    def run(self, inputs: Arrays, wanted: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        given = tuple(inputs)
        call = self._callables.get((given, wanted))
        if call is None:
            call = self._callables[given, wanted] = self._make(given, wanted)
        try:
            results = call(*inputs.values())
        except tf.errors.OpError as error:
            raise ServingError(_code(error), str(error.message)[:1024]) from None
        # What the conversion to a TensorFlow tensor refuses is the caller's doing.
        except (TypeError, ValueError) as error:
            raise invalid(str(error)[:1024]) from None
        return dict(zip(wanted, results, strict=True))

    def _make(self, given: tuple[str, ...], wanted: tuple[str, ...]) -> Any:
        """A callable made from options skips the shape checks that the reference server does not make either."""
        options = config_pb2.CallableOptions()
        options.feed.extend(self.inputs[alias].name for alias in given)
        options.fetch.extend(self.outputs[alias].name for alias in wanted)
        return self._session._make_callable_from_options(options)  # noqa: SLF001 (no public name for it)


class Servable:
    """A version in memory. `run` is thread-safe; `close` is called once nobody runs it any more."""

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

    def _load(self, directory: Path) -> None:
        threads = self._options.inter_threads
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=self._options.intra_threads,
            # Less than zero: no other thread than the caller's.
            inter_op_parallelism_threads=-1 if threads == 1 else threads,
        )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with self._session.graph.as_default():
                meta = tf.compat.v1.saved_model.load(self._session, sorted(self._options.tags), str(directory))
            self.signatures = {
                key: _Signature(self._session, definition)
                for key, definition in meta.signature_def.items()
                if key != INIT_SIGNATURE
            }
        # TensorFlow raises many kinds here, and each of them is this version's status.
        except Exception as error:
            self._session.close()
            raise LoadError(f"{type(error).__name__}: {str(error)[:500]}") from error

    def signature_bytes(self) -> dict[str, bytes]:
        """Each signature's serialised tensorflow.SignatureDef, by name."""
        return {key: signature.definition.SerializeToString() for key, signature in self.signatures.items()}

    def is_quick(self, signature_name: str, inputs: Arrays) -> bool:
        """Whether running these *inputs* would take less than handing them to a thread."""
        return self._pace.is_quick(signature_name or DEFAULT_SIGNATURE, _num_elements(inputs))

    def run(self, signature_name: str, inputs: Arrays, output_filter: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Run a signature that `check` has passed."""
        signature = self.signatures[signature_name or DEFAULT_SIGNATURE]
        begin = time.perf_counter()
        outputs = signature.run(inputs, output_filter or tuple(signature.outputs))
        seconds = time.perf_counter() - begin
        self._pace.ran(signature_name or DEFAULT_SIGNATURE, _num_elements(inputs), seconds)
        if self._options.observe_run is not None:
            self._options.observe_run(self.name, seconds, _num_rows(inputs))
        return outputs

    def close(self) -> None:
        """Free the session."""
        self._session.close()

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
            for run in runs_in(directory):
                for _ in range(self._options.warm_up_iterations):
                    self._replay(run)
            said = "OK"
        except (ServingError, KeyError, ValueError) as error:
            raise LoadError(f"the warm-up failed: {str(error)[:500]}") from error
        finally:
            if self._options.observe_warm_up is not None:
                self._options.observe_warm_up(self.name, time.perf_counter() - begin, said)

    def _replay(self, run: Run) -> None:
        if isinstance(run, ExamplesRun):
            [alias] = self.signatures[run.signature or DEFAULT_SIGNATURE].inputs
            self.run(run.signature, {alias: run.examples}, ())
        else:
            self.run(run.signature, run.inputs, run.output_filter)


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


def _num_elements(inputs: Arrays) -> int:
    return sum(array.size for array in inputs.values())


def _num_rows(inputs: Arrays) -> int:
    return next((array.shape[0] for array in inputs.values() if array.ndim), 1)


def _info(info: Any) -> _TensorInfo:
    return _TensorInfo(info.name, np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype))


def _code(error: Any) -> grpc.StatusCode:
    """TensorFlow's error codes are gRPC's."""
    by_number = {code.value[0]: code for code in grpc.StatusCode}
    return by_number.get(error.error_code, grpc.StatusCode.UNKNOWN)
