"""One loaded SavedModel: signatures, and running them. With the exporter, the only place that imports TensorFlow."""

import os
import struct
from collections.abc import Collection, Iterator, Mapping
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

from clients.wire.catalogue import MANIFEST_PATH
from clients.wire.tensors import from_tensor
from clients.wire.tfs import serving_pb2 as pb
from head_service.manifest import verify
from head_service.serving.errors import ServingError, invalid

WARMUP_PATH: Final = "assets.extra/tf_serving_warmup_requests"
MAX_WARMUP_RECORDS: Final = 1_000
DEFAULT_SIGNATURE: Final = "serving_default"
INIT_SIGNATURE: Final = "__saved_model_init_op"
"""Stands among the signatures of a TensorFlow 2 export and is told as one, but nobody runs it."""

MAX_CALLABLES: Final = 256
"""Kept per version. One not kept is made again for its call, which is slower and nothing worse."""

Arrays = Mapping[str, NDArray[Any]]


class LoadError(Exception):
    """A version that cannot be served; the message goes into its status."""


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    dtype: np.dtype[Any]


class _Signature:
    """One signature: inputs and outputs by alias, and the values of inputs that a caller may leave out."""

    def __init__(self, definition: Any) -> None:
        self.definition = definition
        self.inputs = {alias: _info(info) for alias, info in sorted(definition.inputs.items())}
        self.outputs = {alias: _info(info) for alias, info in sorted(definition.outputs.items())}
        self.defaults: dict[str, NDArray[Any]] = {
            alias: tf.make_ndarray(tensor) for alias, tensor in sorted(definition.defaults.items())
        }


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
    """A version in memory. `run` is thread-safe; `close` is called once nobody runs it any more."""

    def __init__(self, name: str, version: int, directory: Path, *, intra_threads: int = 1, inter_threads: int = 1) -> None:
        self.name = name
        self.version = version
        _check(directory)
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=intra_threads, inter_op_parallelism_threads=inter_threads)
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with self._session.graph.as_default():
                meta = tf.compat.v1.saved_model.load(self._session, [tf.saved_model.SERVING], str(directory))
        # TensorFlow raises many kinds here, and each of them is this version's status.
        except Exception as error:
            self._session.close()
            raise LoadError(f"{type(error).__name__}: {str(error)[:500]}") from error
        self._callables = _Callables(self._session)
        self._definitions = dict(meta.signature_def)
        self.signatures = {key: _Signature(definition) for key, definition in self._definitions.items() if key != INIT_SIGNATURE}
        self._warm_up(directory)

    def signature_bytes(self) -> dict[str, bytes]:
        """Each signature's serialised tensorflow.SignatureDef, by name."""
        return {key: definition.SerializeToString() for key, definition in self._definitions.items()}

    def run(self, signature_name: str, inputs: Arrays, output_filter: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Run a signature that `check` has passed."""
        signature = self.signatures[signature_name or DEFAULT_SIGNATURE]
        feeds = {signature.inputs[alias].name: array for alias, array in inputs.items()}
        names = {alias: signature.outputs[alias].name for alias in output_filter or signature.outputs}
        results = self._callables.run(feeds, names.values())
        return {alias: results[name] for alias, name in names.items()}

    def run_examples(self, feeds: Collection[str], fetches: Collection[str], examples: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Feed the same serialised *examples*, bytes [examples], to all *feeds*; results by the graph's tensor names."""
        return self._callables.run(dict.fromkeys(sorted(set(feeds)), examples), fetches)

    def close(self) -> None:
        """Free the session."""
        self._session.close()

    def _warm_up(self, directory: Path) -> None:
        try:
            for request in _warmup_requests(directory / WARMUP_PATH):
                arrays = {alias: from_tensor(tensor) for alias, tensor in request.inputs.items()}
                self.run(request.model_spec.signature_name, arrays, tuple(request.output_filter))
        except (ServingError, KeyError, ValueError) as error:
            self.close()
            raise LoadError(f"the warm-up failed: {error}") from error


def _check(directory: Path) -> None:
    if not (directory / "saved_model.pb").is_file():
        raise LoadError("there is no saved_model.pb in it")
    if (directory / MANIFEST_PATH).exists():
        try:
            verify(directory)
        except Exception as error:
            raise LoadError(str(error)) from error


def _info(info: Any) -> _TensorInfo:
    return _TensorInfo(info.name, np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype))


def _as_array(result: Any) -> NDArray[Any]:
    """A scalar text comes as plain bytes, of which numpy would drop the zeros at the end."""
    return np.array(result, dtype=object) if isinstance(result, bytes) else np.asarray(result)


def _code(error: Any) -> grpc.StatusCode:
    """TensorFlow's error codes are gRPC's."""
    by_number = {code.value[0]: code for code in grpc.StatusCode}
    return by_number.get(error.error_code, grpc.StatusCode.UNKNOWN)


def _warmup_requests(path: Path) -> Iterator[pb.PredictRequest]:
    """The predict requests of a TFRecord file: length, its checksum, PredictionLog, its checksum, little-endian."""
    if not path.is_file():
        return
    content, offset = path.read_bytes(), 0
    for _ in range(MAX_WARMUP_RECORDS):
        if offset + 12 > len(content):
            return
        (length,) = struct.unpack_from("<Q", content, offset)
        record = content[offset + 12 : offset + 12 + length]
        yield pb.PredictionLog.FromString(record).predict_log.request
        offset += 12 + length + 4
