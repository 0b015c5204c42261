"""Predict, and what is asked about models: TensorFlow Serving's checks in its order and its words, whatever the transport.

Sources: servables/tensorflow/predict_util.cc, model_servers/get_model_status_impl.cc, get_model_metadata_impl.cc.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

import grpc
from numpy.typing import NDArray

from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.batching import Batcher
from head_service.serving.errors import ServingError, invalid, not_found
from head_service.serving.servable import DEFAULT_SIGNATURE, Servable
from head_service.serving.versions import VersionManager

MAX_WAITING: Final = 1_024
"""Runs that wait for a thread; one more is refused at once."""

DecodeInputs = Callable[[Servable, str], dict[str, NDArray[Any]]]
"""(servable, signature name) to arrays by alias; raises ServingError. Called once the version is known."""


class Predictor:
    """Runs models on its threads."""

    def __init__(self, manager: VersionManager, *, threads: int, batcher: Batcher | None = None) -> None:
        self._manager = manager
        self._batcher = batcher
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
        self._waiting = 0

    async def predict(
        self, spec: pb.ModelSpec, decode: DecodeInputs, output_filter: tuple[str, ...] = (), *, deadline: float | None = None
    ) -> tuple[pb.ModelSpec, dict[str, NDArray[Any]]]:
        """The spec that answered, with its version and signature, and the outputs by alias.

        *deadline* is seconds of `time.monotonic`; work whose deadline passed while it waited is not run.

        Raises:
            ServingError: see COMPAT's table of situations; UNAVAILABLE when too much waits.
        """
        with contextlib.ExitStack() as stack:
            version, loaded = stack.enter_context(self._manager.use(spec))
            servable = cast("Servable", loaded)
            signature = spec.signature_name or DEFAULT_SIGNATURE
            if signature not in servable.signatures:
                raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{_short(signature)}" not found.')
            inputs = decode(servable, signature)
            check_outputs(servable, signature, output_filter)
            running = self._start(servable, signature, inputs, output_filter, deadline)
            # The version is in use until the thread is done with it, also when the caller leaves before.
            kept = stack.pop_all()
            running.add_done_callback(lambda _: kept.close())
            outputs = await asyncio.shield(running)
        answered = pb.ModelSpec(name=spec.name, signature_name=signature)
        answered.version.value = version
        return answered, outputs

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(
        self,
        servable: Servable,
        signature: str,
        inputs: dict[str, NDArray[Any]],
        output_filter: tuple[str, ...],
        deadline: float | None,
    ) -> "asyncio.Future[dict[str, NDArray[Any]]]":
        if self._batcher is not None:
            return self._batcher.submit(servable, signature, inputs, output_filter, deadline=deadline)
        if servable.is_quick(signature, inputs) and (deadline is None or time.monotonic() < deadline):
            return _done(servable, signature, inputs, output_filter)
        if self._waiting >= MAX_WAITING:
            raise ServingError(grpc.StatusCode.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full")

        def work() -> dict[str, NDArray[Any]]:
            if deadline is not None and time.monotonic() >= deadline:
                raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the model could run")
            return servable.run(signature, inputs, output_filter)

        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        self._waiting += 1
        running.add_done_callback(self._ended)
        return running

    def _ended(self, running: "asyncio.Future[dict[str, NDArray[Any]]]") -> None:
        self._waiting -= 1
        if not running.cancelled():
            # Read, so that the error of a call whose caller left is not reported as lost.
            running.exception()


def _done(
    servable: Servable, signature: str, inputs: dict[str, NDArray[Any]], output_filter: tuple[str, ...]
) -> "asyncio.Future[dict[str, NDArray[Any]]]":
    """Run here and now: it takes less than waking a thread would."""
    done = asyncio.get_running_loop().create_future()
    done.set_result(servable.run(signature, inputs, output_filter))
    return done


def check_inputs(servable: Servable, signature: str, given: Mapping[str, object]) -> None:
    """Whether *given* are the signature's inputs."""
    wanted = servable.signatures[signature].inputs
    extra, missing = sorted(given.keys() - wanted.keys()), sorted(wanted.keys() - given.keys())
    if len(given) != len(wanted):
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(wanted)} len({_set(given)}) != len({_set(wanted)}). "
            f"Sent extra: {_set(extra)}. Missing but required: {_set(missing)}."
        )
    if missing:
        raise invalid(
            f"Signature input alias: {missing[0]}(feed name: {wanted[missing[0]].name}) not found in request and no default "
            f"value provided. Inputs expected to be in the request {_set(wanted)}, or default input alias set: {{}}"
        )


def check_outputs(servable: Servable, signature: str, output_filter: tuple[str, ...]) -> None:
    """Whether the outputs asked for are the signature's, each once."""
    wanted = servable.signatures[signature].outputs
    for place, alias in enumerate(output_filter):
        if alias not in wanted:
            raise invalid(
                f"output tensor alias not found in signature: {_short(alias)} Outputs expected to be in the set {_set(wanted)}."
            )
        if alias in output_filter[:place]:
            raise invalid(f"duplicate output tensor alias: {alias}")


def model_status(manager: VersionManager, spec: pb.ModelSpec) -> pb.GetModelStatusResponse:
    """The versions of a model, newest first, or the one that *spec* names."""
    model = manager.models.get(spec.name)
    asked = spec.version.value if spec.HasField("version") else None
    if spec.version_label and model is not None:
        asked = model.config.version_labels.get(spec.version_label)
        if asked is None:
            raise invalid(f"Unrecognized servable version label: {_short(spec.version_label)}")
    numbers = sorted(model.versions, reverse=True) if model else []
    shown = [number for number in numbers if asked is None or number == asked]
    if not shown or model is None:
        what = "any versions" if asked is None else f"version {asked}"
        raise not_found(f"Could not find {what} of model {_short(spec.name)}")
    response = pb.GetModelStatusResponse()
    for number in shown:
        version = model.versions[number]
        status = pb.Status(error_code=grpc.StatusCode.UNKNOWN.value[0] if version.error else 0, error_message=version.error)
        response.model_version_status.add(version=number, state=version.state, status=status)
    return response


def _set(names: Mapping[str, object] | list[str]) -> str:
    return "{" + ",".join(_short(name) for name in sorted(names)) + "}"


def _short(name: str) -> str:
    return name[:64]
