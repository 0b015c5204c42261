"""Running models for callers, and what is asked about models, whatever the transport.

Sources: servables/tensorflow/predict_util.cc, model_servers/get_model_status_impl.cc.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, cast

import grpc
from numpy.typing import NDArray

from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.batching import Batcher
from head_service.serving.checks import check_outputs
from head_service.serving.errors import echo, invalid, not_found, queue_full, too_late
from head_service.serving.plans import Plan
from head_service.serving.servable import Servable
from head_service.serving.signature import DEFAULT_SIGNATURE
from head_service.serving.versions import VersionManager

MAX_WAITING: Final = 1_024
"""Runs that wait for a thread or are on one; one more is refused at once."""

Outputs = dict[str, NDArray[Any]]
Work = Callable[[], Outputs]
Answer = asyncio.Future[Outputs]

DecodeInputs = Callable[[Servable, str], dict[str, NDArray[Any]]]
"""(servable, signature name) to arrays by alias; raises ServingError. Called once the version is known."""

MakePlan = Callable[[Servable], Plan]
"""What to run on a version; raises ServingError. Called once the version is known."""


class Predictor:
    """Runs models: what is quick where it is, what may be batched through *batcher* if there is one, the rest on its threads.

    A version stays in use until its run has ended, also when the caller left before or was told that it is too late.
    """

    def __init__(self, manager: VersionManager, *, threads: int, batcher: Batcher | None = None) -> None:
        self._manager = manager
        self._batcher = batcher
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
    ) -> tuple[pb.ModelSpec, Outputs]:
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
            check_outputs(servable.signatures[signature], output_filter)
            if self._batcher is None:
                is_quick = servable.is_quick(signature, inputs)
                outputs = await self._run(lambda: servable.run(signature, inputs, output_filter), stack, deadline, is_quick)
            else:
                submit = functools.partial(self._batcher.submit, servable, signature, inputs, output_filter, deadline=deadline)
                outputs = await _in_time(_begun(stack, lambda ended: submit(ended=ended)), deadline)
        return answered_by(spec, version), outputs

    async def run_examples(
        self, spec: pb.ModelSpec, make_plan: MakePlan, *, deadline: float | None = None
    ) -> tuple[int, Plan, Outputs]:
        """The version that answered, its plan, and the outputs by the graph's tensor names. Never batched.

        Raises:
            ServingError: as `predict`.
        """
        with contextlib.ExitStack() as stack:
            version, loaded = stack.enter_context(self._manager.use(spec))
            servable = cast("Servable", loaded)
            plan = make_plan(servable)
            outputs = await self._run(lambda: servable.run_plan(plan), stack, deadline, servable.is_quick_plan(plan))
        return version, plan, outputs

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Work, stack: contextlib.ExitStack, deadline: float | None, is_quick: bool) -> Outputs:
        if is_quick and (deadline is None or time.monotonic() < deadline):
            return work()
        return await _in_time(_begun(stack, lambda ended: self._in_thread(work, deadline, ended)), deadline)

    def _in_thread(self, work: Work, deadline: float | None, ended: Callable[[], None]) -> Answer:
        if self._waiting >= MAX_WAITING:
            raise queue_full()

        def in_time() -> Outputs:
            if deadline is not None and time.monotonic() >= deadline:
                raise too_late()
            return work()

        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()

        def settle(done: Future[Outputs]) -> None:
            self._waiting -= 1
            ended()
            if not answer.done():
                _copy(done, answer)

        running = self._pool.submit(in_time)
        self._waiting += 1
        running.add_done_callback(lambda done: _tell(loop, settle, done))
        # A caller that leaves takes along what has not begun; what runs is run to its end.
        answer.add_done_callback(lambda _: running.cancel())
        return answer


def check_name(spec: pb.ModelSpec) -> None:
    """Whether *spec* names a model at all."""
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")


def answered_by(spec: pb.ModelSpec, version: int) -> pb.ModelSpec:
    """What an answer says of itself: the name, the version that answered and the signature used."""
    answered = pb.ModelSpec(name=spec.name, signature_name=spec.signature_name or DEFAULT_SIGNATURE)
    answered.version.value = version
    return answered


def _begun(stack: contextlib.ExitStack, begin: Callable[[Callable[[], None]], Answer]) -> Answer:
    """What *begin* began. What *stack* held is held until the run has ended, of which *begin* is given whom to tell."""
    kept = stack.pop_all()
    try:
        return begin(kept.close)
    except BaseException:
        kept.close()
        raise


async def _in_time(answer: Answer, deadline: float | None) -> Outputs:
    """The outputs; *answer* is cancelled when the caller leaves or the deadline passes."""
    try:
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
            return await answer
    except TimeoutError:
        raise too_late() from None


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[[Future[Outputs]], None], done: Future[Outputs]) -> None:
    # A run may outlive the loop when the process ends; then there is nobody to tell.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(settle, done)


def _copy(done: Future[Outputs], answer: Answer) -> None:
    if done.cancelled():
        answer.cancel()
    elif error := done.exception():
        answer.set_exception(error)
    else:
        answer.set_result(done.result())


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
