"""All versions of a request asked at the same time, each by its own deadline; what one of them does is no other's business."""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
import numpy as np

from clients import (
    Cancelled,
    Deadline,
    DeadlineExceeded,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServerFault,
    TrunklineError,
    Unauthenticated,
    Unavailable,
)
from clients.wire.catalogue import Manifest
from gateway.bundles import MIN_CALLS, Bundles, Place
from gateway.ports import FloatArray, Predictor, Rows

_log = logging.getLogger(__name__)


class HeadCall(msgspec.Struct, frozen=True):
    """A version and what it reads of each input."""

    manifest: Manifest
    rows: Rows


HeadScores = FloatArray | TrunklineError
"""float32 [inputs, labels], finite; or why there are none, in words for the caller."""


class BundleTelemetry(Protocol):
    """Told of heads that were asked by way of their bundle; must be quick and never raise."""

    def head_ended(self, head: str, version: int, outcome: str, seconds: float) -> None:
        """The call of a bundle that was to answer for a head version took *seconds*; *outcome* is "ok" or an error's code."""
        ...


class FanOut:
    """Asks versions; holds nothing of any request. *head_timeout*: seconds that a version may take.

    Where *bundles* has a current one, heads that read the same are asked together. What does not come of it in half the time is
    asked of the heads themselves in the other half. *telemetry* hears what a bundle's call was for each head that it answered.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        head_timeout: float,
        bundles: Bundles | None = None,
        telemetry: BundleTelemetry | None = None,
    ) -> None:
        self._predictor = predictor
        self._head_timeout = head_timeout
        self._bundles = bundles
        self._telemetry = telemetry

    async def ask(self, calls: Sequence[HeadCall], deadline: Deadline) -> list[HeadScores]:
        """What each of *calls* came to, in order; never raises for one of them."""
        own = min(deadline, Deadline.after(self._head_timeout))
        # A single call needs no task of its own.
        if len(calls) == 1:
            return [await self._one(calls[0], own)]
        alone, together = self._sorted_out(calls)
        if not together:
            return await asyncio.gather(*(self._one(call, own) for call in calls))
        scores: dict[int, HeadScores] = {}
        waits = [self._together(shared, calls, own, scores) for shared in together]
        waits += [self._into(scores, index, calls[index], own) for index in alone]
        if len(waits) == 1:
            await waits[0]
        else:
            await asyncio.gather(*waits)
        return [scores[index] for index in range(len(calls))]

    def _sorted_out(self, calls: Sequence[HeadCall]) -> tuple[list[int], list["_Shared"]]:
        """The calls that are asked each by itself, and those that are asked together."""
        if self._bundles is None:
            return list(range(len(calls))), []
        alone: list[int] = []
        shared: dict[tuple[int, int], _Shared] = {}
        for index, (call, place) in enumerate(zip(calls, self._bundles.places([call.manifest for call in calls]), strict=True)):
            if place is None:
                alone.append(index)
            else:
                # Calls of heads that read the same rows have the same rows.
                key = id(place.bundle), id(call.rows)
                one = shared.get(key)
                if one is None:
                    one = shared[key] = _Shared(place.bundle, call.rows)
                one.places.append((index, place))
        few = [one for one in shared.values() if len(one.places) < MIN_CALLS]
        alone += [index for one in few for index, _ in one.places]
        return alone, [one for one in shared.values() if len(one.places) >= MIN_CALLS]

    async def _together(
        self, shared: "_Shared", calls: Sequence[HeadCall], deadline: Deadline, scores: dict[int, HeadScores]
    ) -> None:
        """Put into *scores*, by the number of the call, what *shared* came to, or else what each of its heads did."""
        assert self._bundles is not None
        asked = [calls[index].manifest for index, _ in shared.places]
        patience = deadline.remaining() / 2
        started = time.perf_counter()
        try:
            found = await self._predictor.predict(shared.bundle, shared.rows, Deadline.after(patience))
            check_shape(found, shared.bundle, len(shared.rows))
        except Overloaded as error:
            # Many calls in the place of one would be no relief.
            self._tell(asked, error.code, started)
            scores |= {index: named(error, calls[index].manifest.name) for index, _ in shared.places}
            return
        except Exception as error:  # whatever it was, the heads answer
            # A caller who had hardly any time left says nothing about the bundle.
            if not isinstance(error, DeadlineExceeded) or patience >= self._head_timeout / 4:
                self._bundles.failed(shared.bundle)
                _log.warning("%s version %d: %s; its heads are asked", shared.bundle.name, shared.bundle.version, error)
            await asyncio.gather(*(self._into(scores, index, calls[index], deadline) for index, _ in shared.places))
            return
        self._bundles.answered(shared.bundle)
        self._tell(asked, "ok", started)
        all_finite = bool(np.isfinite(found).all())
        for index, place in shared.places:
            part = found[:, place.start : place.end]
            if not all_finite and not np.isfinite(part).all():
                scores[index] = named(InvalidResponse(_NOT_FINITE), calls[index].manifest.name)
            else:
                scores[index] = part

    def _tell(self, asked: Iterable[Manifest], outcome: str, started: float) -> None:
        """What a head's call took was what its bundle's took."""
        if self._telemetry is not None:
            seconds = time.perf_counter() - started
            for manifest in asked:
                self._telemetry.head_ended(manifest.name, manifest.version, outcome, seconds)

    async def _into(self, scores: dict[int, HeadScores], index: int, call: HeadCall, deadline: Deadline) -> None:
        scores[index] = await self._one(call, deadline)

    async def _one(self, call: HeadCall, deadline: Deadline) -> HeadScores:
        try:
            scores = await self._predictor.predict(call.manifest, call.rows, deadline)
            return check_scores(scores, call.manifest, len(call.rows))
        except TrunklineError as error:
            return named(error, call.manifest.name)
        except Exception as error:  # whatever it was, the other heads answer
            _log.exception("head %r failed unexpectedly", call.manifest.name)
            return named(ServerFault(type(error).__name__), call.manifest.name)


@dataclass(frozen=True, slots=True)
class _Shared:
    """A call of *bundle* on *rows*; *places* are the calls that it answers, by their number."""

    bundle: Manifest
    rows: Rows
    places: list[tuple[int, Place]] = field(default_factory=list)


_NOT_FINITE: Final = "the scores are not finite float32 numbers, one for each text and label"


def check_shape(scores: FloatArray, manifest: Manifest, num_inputs: int) -> None:
    """Raise InvalidResponse unless *scores* are float32 [inputs, labels]."""
    if scores.shape != (num_inputs, len(manifest.labels)) or scores.dtype != np.float32:
        raise InvalidResponse(_NOT_FINITE)


def check_scores(scores: FloatArray, manifest: Manifest, num_inputs: int) -> FloatArray:
    """*scores*, when they are float32 [inputs, labels] and finite; InvalidResponse otherwise."""
    check_shape(scores, manifest, num_inputs)
    if not np.isfinite(scores).all():
        raise InvalidResponse(_NOT_FINITE)
    return scores


def as_the_callers(error: TrunklineError) -> TrunklineError:
    """A backend's *error* as it is the caller's: what it refused to the gateway, or cancelled, was neither of the caller.

    A 401 would tell callers that their own keys are no good.
    """
    if not isinstance(error, Unauthenticated | PermissionDenied | Cancelled):
        return error
    found = Unavailable(error.message, retry_after=error.retry_after)
    found.__cause__ = error
    return found


def named(error: TrunklineError, head: str) -> TrunklineError:
    """*error* as that of one head, in words that do not tell where it lives."""
    reasons = {
        "deadline_exceeded": "did not answer in time",
        "unavailable": "is not available",
        "overloaded": "is overloaded",
        "not_found": "is not loaded in the head server",
        "invalid_response": "answered something that is not its contract",
    }
    error = as_the_callers(error)
    if isinstance(error, InvalidRequest) and not isinstance(error, NotFound):
        # What the head refuses the gateway made: no fault of the caller's.
        error = InvalidResponse(error.message)
    said = type(error)(f"head {head!r} {reasons.get(error.code, 'failed')}", retry_after=error.retry_after)
    said.__cause__ = error
    return said
