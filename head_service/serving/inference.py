"""Classify, Regress and MultiInference, whatever the transport: the run that their plan says, and its outputs as results.

The reference batches Classify and Regress too; here `--enable_batching` makes batches of Predict alone, and these three run each
by itself, with all else that Predict has: the bound on what waits, deadlines, and no thread for what is quick.
"""

from clients.wire.tfs import inference_pb2 as pb
from clients.wire.tfs import serving_pb2
from head_service.serving.classify import CLASSIFY_METHOD, classification_result, regression_result
from head_service.serving.plans import plan_of
from head_service.serving.predict import Predictor, answered_by


class Inference:
    """Runs examples through a predictor. Deadlines are seconds of `time.monotonic`; errors are ServingErrors."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    async def classify(self, request: pb.ClassificationRequest, deadline: float | None) -> pb.ClassificationResponse:
        """Labels and scores for each example."""
        spec = request.model_spec
        version, plan, outputs = await self._predictor.run_examples(
            spec, lambda servable: plan_of(servable.signatures, request), deadline=deadline
        )
        result = classification_result(plan.tasks[0], outputs, len(plan.examples))
        return pb.ClassificationResponse(model_spec=answered_by(spec, version), result=result)

    async def regress(self, request: pb.RegressionRequest, deadline: float | None) -> pb.RegressionResponse:
        """One number for each example."""
        spec = request.model_spec
        version, plan, outputs = await self._predictor.run_examples(
            spec, lambda servable: plan_of(servable.signatures, request), deadline=deadline
        )
        result = regression_result(plan.tasks[0], outputs, len(plan.examples))
        return pb.RegressionResponse(model_spec=answered_by(spec, version), result=result)

    async def multi(self, request: pb.MultiInferenceRequest, deadline: float | None) -> pb.MultiInferenceResponse:
        """Several signatures of one model over the same examples, in one run of the graph."""
        first = request.tasks[0].model_spec if request.tasks else serving_pb2.ModelSpec()
        version, plan, outputs = await self._predictor.run_examples(
            first, lambda servable: plan_of(servable.signatures, request), deadline=deadline
        )
        response = pb.MultiInferenceResponse()
        for task, wanted in zip(request.tasks, plan.tasks, strict=True):
            result = response.results.add(model_spec=answered_by(task.model_spec, version))
            if task.method_name == CLASSIFY_METHOD:
                result.classification_result.CopyFrom(classification_result(wanted, outputs, len(plan.examples)))
            else:
                result.regression_result.CopyFrom(regression_result(wanted, outputs, len(plan.examples)))
        return response
