"""Predict, and what is asked about models: TensorFlow Serving's checks in its order and its words, whatever the transport.

Sources: servables/tensorflow/predict_util.cc, model_servers/get_model_status_impl.cc, get_model_metadata_impl.cc.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from clients.wire.tensors import TensorError
from clients.wire.tfs import serving_pb2 as pb
from clients.wire.tfs import tensor_pb2
from head_service.serving.errors import ServingError, echo, invalid, not_found
from head_service.serving.rpc_tensors import decode_tensor
from head_service.serving.servable import DEFAULT_SIGNATURE, Servable
from head_service.serving.versions import VersionManager

MAX_WAITING: Final = 1_024
"""Runs that wait for a thread; one more is refused at once."""

Outputs = dict[str, NDArray[Any]]

DecodeInputs = Callable[[Servable, str], dict[str, NDArray[Any]]]
"""(servable, signature name) to arrays by alias; raises ServingError. Called once the version is known."""


@dataclass(frozen=True, slots=True)
class ExamplesRun:
    """Tensors of a graph by name: those that take the *examples*, bytes [examples], and those to answer with."""

    examples: NDArray[Any]
    feeds: Collection[str]
    fetches: Collection[str]


PlanExamples = Callable[[Servable], ExamplesRun]
"""What to run on a version; raises ServingError. Called once the version is known."""


class Predictor:
    """Runs models on its threads."""

    def __init__(self, manager: VersionManager, *, threads: int) -> None:
        self._manager = manager
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
        self._waiting = 0

    async def predict(
        self,
        spec: pb.ModelSpec,
        decode: DecodeInputs,
        output_filter: tuple[str, ...] = (),
        *,
        deadline: float | None = None,
        heavy: bool = False,
    ) -> tuple[pb.ModelSpec, dict[str, NDArray[Any]]]:
        """The spec that answered, with its version and signature, and the outputs by alias.

        *deadline* is seconds of `time.monotonic`; work whose deadline passed while it waited is not run.
        *heavy*: decoding takes so long that the event loop must not do it.

        Raises:
            ServingError: see COMPAT's table of situations; UNAVAILABLE when too much waits.
        """
        with contextlib.ExitStack() as stack:
            version, loaded = stack.enter_context(self._manager.use(spec))
            servable = cast("Servable", loaded)
            signature = spec.signature_name or DEFAULT_SIGNATURE
            inputs = await asyncio.to_thread(decode, servable, signature) if heavy else decode(servable, signature)
            check_outputs(servable, signature, output_filter)
            outputs = await self._run(lambda: servable.run(signature, inputs, output_filter), stack.pop_all(), deadline)
        return answered_by(spec, version), outputs

    async def run_examples(
        self, spec: pb.ModelSpec, plan: PlanExamples, *, deadline: float | None = None
    ) -> tuple[int, ExamplesRun, dict[str, NDArray[Any]]]:
        """The version that answered, what *plan* made of it, and the outputs by the graph's tensor names.

        Raises:
            ServingError: as `predict`.
        """
        with contextlib.ExitStack() as stack:
            version, loaded = stack.enter_context(self._manager.use(spec))
            servable = cast("Servable", loaded)
            run = plan(servable)
            outputs = await self._run(
                lambda: servable.run_examples(run.feeds, run.fetches, run.examples), stack.pop_all(), deadline
            )
        return version, run, outputs

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], Outputs], kept: contextlib.ExitStack, deadline: float | None) -> Outputs:
        """*kept* holds the version and is closed when the thread is done with it, also when the caller leaves before."""
        if self._waiting >= MAX_WAITING:
            kept.close()
            raise ServingError(grpc.StatusCode.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full")

        def in_time() -> Outputs:
            if deadline is not None and time.monotonic() >= deadline:
                raise _too_late()
            return work()

        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outputs] = loop.create_future()

        def settle(done: Future[Outputs]) -> None:
            self._waiting -= 1
            kept.close()
            if not answer.done():
                _copy(done, answer)

        running = self._pool.submit(in_time)
        self._waiting += 1
        running.add_done_callback(lambda done: _tell(loop, settle, done))
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                return await answer
        except TimeoutError:
            raise _too_late() from None
        finally:
            # A caller that leaves takes along what has not begun; what runs is run to its end.
            running.cancel()


def check_name(spec: pb.ModelSpec) -> None:
    """Whether *spec* names a model at all."""
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")


def answered_by(spec: pb.ModelSpec, version: int) -> pb.ModelSpec:
    """What an answer says of itself: the name, the version that answered and the signature used."""
    answered = pb.ModelSpec(name=spec.name, signature_name=spec.signature_name or DEFAULT_SIGNATURE)
    answered.version.value = version
    return answered


def _too_late() -> ServingError:
    return ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the model had answered")


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[[Future[Outputs]], None], done: Future[Outputs]) -> None:
    # A run may outlive the loop when the process ends; then there is nobody to tell.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(settle, done)


def _copy(done: Future[Outputs], answer: "asyncio.Future[Outputs]") -> None:
    if done.cancelled():
        answer.cancel()
    elif error := done.exception():
        answer.set_exception(error)
    else:
        answer.set_result(done.result())


def decode_request(servable: Servable, signature: str, given: Mapping[str, tensor_pb2.Tensor]) -> dict[str, NDArray[Any]]:
    """The inputs of *signature* by alias: those of the request, and the signature's defaults for what is absent.

    Raises:
        ServingError: FAILED_PRECONDITION: no such signature; INVALID_ARGUMENT: *given* are not its inputs.
    """
    if signature not in servable.signatures:
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{echo(signature)}" not found.')
    wanted, defaults = servable.signatures[signature].inputs, servable.signatures[signature].defaults
    check_size(wanted, defaults, given)
    arrays = {}
    for alias, info in wanted.items():
        if alias in given:
            arrays[alias] = _decoded(alias, given[alias], info.dtype)
        elif alias in defaults:
            arrays[alias] = defaults[alias]
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and no default value provided. "
                f"Inputs expected to be in the request {_set(given)}, or default input alias set: {_listed(defaults)}"
            )
    if given.keys() - wanted.keys():
        used = given.keys() & wanted.keys()
        raise invalid(f"Inputs contains invalid name. Used request inputs: {_listed(used)}, request input: {_listed(given)}")
    return arrays


def check_size(wanted: Mapping[str, object], defaults: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Whether as many inputs are *given* as *wanted*; fewer will do where some have *defaults*."""
    if len(given) > len(wanted) or (len(given) < len(wanted) and not defaults):
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(wanted)} len({_set(given)}) != len({_set(wanted)}). "
            f"Sent extra: {_set(given.keys() - wanted.keys())}. "
            f"Missing but required: {_set(wanted.keys() - given.keys())}."
        )


def _decoded(alias: str, tensor: tensor_pb2.Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        return decode_tensor(tensor, dtype)
    except TensorError:
        raise invalid(f"tensor parsing error: {alias}") from None


def check_outputs(servable: Servable, signature: str, output_filter: tuple[str, ...]) -> None:
    """Whether the outputs asked for are the signature's, each once."""
    wanted = servable.signatures[signature].outputs
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in wanted:
            raise invalid(
                f"output tensor alias not found in signature: {echo(alias)} Outputs expected to be in the set {_set(wanted)}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.add(alias)


def model_status(manager: VersionManager, spec: pb.ModelSpec) -> pb.GetModelStatusResponse:
    """The versions of a model, newest first, or the one that *spec* names."""
    model = manager.models.get(spec.name)
    asked = spec.version.value if spec.HasField("version") else None
    if spec.version_label and model is not None:
        asked = model.config.version_labels.get(spec.version_label)
        if asked is None:
            raise invalid(f"Unrecognized servable version label: {echo(spec.version_label)}")
    numbers = sorted(model.versions, reverse=True) if model else []
    shown = [number for number in numbers if asked is None or number == asked]
    if not shown or model is None:
        what = "any versions" if asked is None else f"version {asked}"
        raise not_found(f"Could not find {what} of model {echo(spec.name)}")
    response = pb.GetModelStatusResponse()
    for number in shown:
        version = model.versions[number]
        status = pb.Status(error_code=grpc.StatusCode.UNKNOWN.value[0] if version.error else 0, error_message=version.error)
        response.model_version_status.add(version=number, state=version.state, status=status)
    return response


def _set(names: Iterable[str]) -> str:
    return f"{{{_listed(names)}}}"


def _listed(names: Iterable[str]) -> str:
    return ",".join(echo(name) for name in sorted(names))
