"""A version's metrics on the frozen test part, as manifests keep them: the candidate's own, and the live version's beside it."""

from dataclasses import dataclass

import numpy as np

from clients.wire.catalogue import Manifest, Metrics
from head_service.errors import DataError
from head_service.gate import Scorer
from head_service.training.dataset import Dataset
from head_service.training.metrics import Evaluation, evaluate
from head_service.training.report import LiveVersion


def metrics_of(evaluation: Evaluation, held: Dataset, num_train: int) -> Metrics:
    """What a manifest says of *evaluation* on *held*; see `Metrics` for what stands for accuracy of a regression."""
    accuracy = evaluation.r2 if evaluation.task == "regression" else evaluation.accuracy
    error = evaluation.calibration_error
    return Metrics(
        accuracy=accuracy or 0.0,
        macro_f1=evaluation.macro_f1 or 0.0,
        num_train=num_train,
        num_test=evaluation.num_texts,
        data=held.digest(),
        calibration_error=error,
    )


@dataclass(slots=True)
class LiveOnTestPart:
    """Measures the live version on the texts *held* back; *seen* is what it then scored."""

    held: Dataset
    scorer: Scorer
    seen: LiveVersion | None = None

    def remeasure(self, live: Manifest, candidate: Metrics) -> Metrics | None:
        """See `gate.Remeasure`. None where the live version knows other labels, or cannot read the texts: a person decides."""
        if live.task != self.held.task:
            return None
        try:
            targets = self.held.truth(live.labels)
            scores = np.asarray(self.scorer(live, self.held.texts), np.float32)
        except DataError:
            return None
        found = evaluate(live.task, live.labels, scores, targets, thresholds=live.thresholds)
        self.seen = LiveVersion(live.version, found, same_data=True)
        return metrics_of(found, self.held, candidate.num_train)
