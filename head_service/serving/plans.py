"""What Classify, Regress and MultiInference run: one run of the graph over their examples, read as each task asks.

Sources: servables/tensorflow/{classifier,regressor,multi_inference,multi_inference_helper}.cc.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from clients.wire.tfs import inference_pb2 as pb
from head_service.serving.classify import CLASSIFY_METHOD, REGRESS_METHOD, Wanted, wanted_for
from head_service.serving.errors import echo, invalid
from head_service.serving.examples import serialised_examples
from head_service.serving.signature import DEFAULT_SIGNATURE, Signature

Request = pb.ClassificationRequest | pb.RegressionRequest | pb.MultiInferenceRequest
Signatures = Mapping[str, Signature]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: the *examples*, bytes [examples], go into each task's feed. *api* is what the run is counted as."""

    api: str
    examples: NDArray[Any]
    tasks: tuple[Wanted, ...]

    @property
    def feeds(self) -> tuple[str, ...]:
        """The tensors that take the examples, each once."""
        return tuple(sorted({task.feed for task in self.tasks}))

    @property
    def fetches(self) -> tuple[str, ...]:
        """The tensors to answer with, each once."""
        return tuple(sorted({name for task in self.tasks for name in task.fetches.values()}))


def plan_of(signatures: Signatures, request: Request) -> Plan:
    """What to run of a model's *signatures* for *request*.

    Raises:
        ServingError: INVALID_ARGUMENT: signatures that are not there or not of the kind, or no examples; UNIMPLEMENTED: a task
            of another kind.
    """
    if isinstance(request, pb.MultiInferenceRequest):
        tasks = _tasks(signatures, request)
        return Plan("MultiInference", serialised_examples(request.input), tasks)
    is_classify = isinstance(request, pb.ClassificationRequest)
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in signatures:
        raise invalid(f"No signature was found with the name: {echo(name)}")
    wanted = wanted_for(CLASSIFY_METHOD if is_classify else REGRESS_METHOD, signatures[name])
    return Plan("Classify" if is_classify else "Regress", serialised_examples(request.input), (wanted,))


def _tasks(signatures: Signatures, request: pb.MultiInferenceRequest) -> tuple[Wanted, ...]:
    found, seen = [], set()
    for task in request.tasks:
        spec, name = task.model_spec, task.model_spec.signature_name or DEFAULT_SIGNATURE
        if not spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if name in seen:
            raise invalid(f"Duplicate evaluation of signature: {echo(name)}")
        seen.add(name)
        if name not in signatures:
            raise invalid(f"Requested signature not found in model graph: {echo(name)}")
        found.append(wanted_for(task.method_name, signatures[name]))
    return tuple(found)
