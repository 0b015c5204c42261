"""All versions of a request asked at the same time, each by its own deadline; what one of them does is no other's business."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clients import Deadline, InvalidResponse, ServerFault, TrunklineError
from clients.wire.catalogue import Manifest
from gateway.ports import FloatArray, Predictor, Rows

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeadCall:
    """A version and what it reads of each input."""

    manifest: Manifest
    rows: Rows


HeadScores = FloatArray | TrunklineError
"""float32 [inputs, labels], finite; or why there are none, in words for the caller."""


class FanOut:
    """Asks versions; holds nothing of any request. *head_timeout*: seconds that a version may take."""

    def __init__(self, predictor: Predictor, *, head_timeout: float) -> None:
        self._predictor = predictor
        self._head_timeout = head_timeout

    async def ask(self, calls: Sequence[HeadCall], deadline: Deadline) -> list[HeadScores]:
        """What each of *calls* came to, in order; never raises for one of them."""
        own = min(deadline, Deadline.after(self._head_timeout))
        # A single call needs no task of its own.
        if len(calls) == 1:
            return [await self._one(calls[0], own)]
        return await asyncio.gather(*(self._one(call, own) for call in calls))

    async def _one(self, call: HeadCall, deadline: Deadline) -> HeadScores:
        try:
            scores = await self._predictor.predict(call.manifest, call.rows, deadline)
            return check_scores(scores, call.manifest, len(call.rows))
        except TrunklineError as error:
            return named(error, call.manifest.name)
        except Exception as error:  # whatever it was, the other heads answer
            _log.exception("head %r failed unexpectedly", call.manifest.name)
            return named(ServerFault(type(error).__name__), call.manifest.name)


def check_scores(scores: FloatArray, manifest: Manifest, num_inputs: int) -> FloatArray:
    """*scores*, when they are float32 [inputs, labels] and finite; InvalidResponse otherwise."""
    if scores.shape != (num_inputs, len(manifest.labels)) or scores.dtype != np.float32 or not np.isfinite(scores).all():
        raise InvalidResponse("the scores are not finite float32 numbers, one for each text and label")
    return scores


def named(error: TrunklineError, head: str) -> TrunklineError:
    """*error* as that of one head, in words that do not tell where it lives."""
    reasons = {
        "deadline_exceeded": "did not answer in time",
        "unavailable": "is not available",
        "overloaded": "is overloaded",
        "not_found": "is not loaded in the head server",
        "invalid_response": "answered something that is not its contract",
    }
    said = type(error)(f"head {head!r} {reasons.get(error.code, 'failed')}", retry_after=error.retry_after)
    said.__cause__ = error
    return said
