"""Classify, Regress and MultiInference, whatever the transport: one run over the examples, read as each task asks.

Sources: servables/tensorflow/{classifier,regressor,multi_inference,multi_inference_helper}.cc.
"""

from clients.wire.tfs import inference_pb2 as pb
from clients.wire.tfs import serving_pb2
from head_service.serving.classify import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    Wanted,
    classification_result,
    regression_result,
    wanted_for,
)
from head_service.serving.errors import echo, invalid
from head_service.serving.examples import serialised_examples
from head_service.serving.predict import ExamplesRun, Outputs, Predictor, answered_by
from head_service.serving.servable import DEFAULT_SIGNATURE, Servable


class Inference:
    """Runs examples through a predictor. Deadlines are seconds of `time.monotonic`; errors are ServingErrors."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    async def classify(self, request: pb.ClassificationRequest, deadline: float | None) -> pb.ClassificationResponse:
        """Labels and scores for each example."""
        spec, wanted, outputs, rows = await self._run_one(CLASSIFY_METHOD, request, deadline)
        result = classification_result(wanted, outputs, rows)
        return pb.ClassificationResponse(model_spec=spec, result=result)

    async def regress(self, request: pb.RegressionRequest, deadline: float | None) -> pb.RegressionResponse:
        """One number for each example."""
        spec, wanted, outputs, rows = await self._run_one(REGRESS_METHOD, request, deadline)
        return pb.RegressionResponse(model_spec=spec, result=regression_result(wanted, outputs, rows))

    async def multi(self, request: pb.MultiInferenceRequest, deadline: float | None) -> pb.MultiInferenceResponse:
        """Several signatures of one model over the same examples, in one run of the graph."""
        first = request.tasks[0].model_spec if request.tasks else serving_pb2.ModelSpec()
        plans: list[Wanted] = []

        def plan(servable: Servable) -> ExamplesRun:
            plans.extend(_wanted_by_tasks(servable, request))
            names = [name for wanted in plans for name in wanted.fetches.values()]
            return ExamplesRun(serialised_examples(request.input), [wanted.feed for wanted in plans], names)

        version, run, outputs = await self._predictor.run_examples(first, plan, deadline=deadline)
        response = pb.MultiInferenceResponse()
        for task, wanted in zip(request.tasks, plans, strict=True):
            result = response.results.add(model_spec=answered_by(task.model_spec, version))
            if task.method_name == CLASSIFY_METHOD:
                result.classification_result.CopyFrom(classification_result(wanted, outputs, len(run.examples)))
            else:
                result.regression_result.CopyFrom(regression_result(wanted, outputs, len(run.examples)))
        return response

    async def _run_one(
        self, method: str, request: pb.ClassificationRequest | pb.RegressionRequest, deadline: float | None
    ) -> tuple[serving_pb2.ModelSpec, Wanted, Outputs, int]:
        plans: list[Wanted] = []

        def plan(servable: Servable) -> ExamplesRun:
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            if name not in servable.signatures:
                raise invalid(f"No signature was found with the name: {echo(name)}")
            plans.append(wanted_for(method, servable.signatures[name]))
            examples = serialised_examples(request.input)
            return ExamplesRun(examples, [plans[0].feed], plans[0].fetches.values())

        version, run, outputs = await self._predictor.run_examples(request.model_spec, plan, deadline=deadline)
        return answered_by(request.model_spec, version), plans[0], outputs, len(run.examples)


def _wanted_by_tasks(servable: Servable, request: pb.MultiInferenceRequest) -> list[Wanted]:
    plans, seen = [], set()
    for task in request.tasks:
        spec, signature = task.model_spec, task.model_spec.signature_name or DEFAULT_SIGNATURE
        if not spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if signature in seen:
            raise invalid(f"Duplicate evaluation of signature: {echo(signature)}")
        seen.add(signature)
        if signature not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {echo(signature)}")
        plans.append(wanted_for(task.method_name, servable.signatures[signature]))
    return plans
