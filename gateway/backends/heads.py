"""The port of the heads, by our clients: one or several replicas of the head server, and a breaker for each head version.

Calls of many requests are joined, few are out at once for each head, and a head that is frozen, dead or answers nonsense is
answered for at once, with an error, until one call in the background has shown that it is well again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from clients import (
    AsyncHeadClient,
    Deadline,
    DeadlineExceeded,
    InvalidResponse,
    NotFound,
    Overloaded,
    ServerFault,
    TrunklineError,
    Unavailable,
)
from clients.wire.catalogue import Catalogue, Manifest, servables_of
from gateway.backends.breaker import Breaker, BreakerPolicy
from gateway.backends.budget import Budget
from gateway.backends.facts import BackendFacts, NoFacts
from gateway.backends.pool import Habits, Pool, for_backend
from gateway.backends.replicas import Policy
from gateway.coalesce import CallLimits, Coalescer
from gateway.exchange import ids_passed_on
from gateway.ports import FloatArray, Rows

_log = logging.getLogger(__name__)

MAX_CALL_BYTES: Final = 16 * 1024 * 1024
"""Of token vectors in one call to a head server, whose messages are bounded."""

TICK_SECONDS: Final = 0.05
STALL_SECONDS: Final = 0.25
STALL_TIMES: Final = 8.0
"""A head is frozen when a call takes so many times the longest of its recent ones, and `STALL_SECONDS`, while others answer."""

KNOWN_ANSWERS: Final = 20
"""Until a head has answered so often, its first calls may be slow ones and nothing is concluded."""

MIN_PATIENCE_SECONDS: Final = 0.25
"""A caller with less says nothing about a head whose habits are not known when its time is over."""

TELLING_TIMES: Final = 2.0
"""Who has waited so many times the longest of a head's recent calls, and `MIN_PATIENCE_SECONDS`, was not merely impatient."""

FORGET_SECONDS: Final = 300.0
_FADE: Final = 0.98


@dataclass(slots=True, eq=False)
class _Head:
    """What is known of a head version."""

    manifest: Manifest
    breaker: Breaker
    coalescer: Coalescer[FloatArray, FloatArray]
    asked_at: float = 0.0
    answered_at: float = float("-inf")
    num_answers: int = 0
    longest: float = 0.0
    under_way: dict[object, float] = field(default_factory=dict)
    """When each call that is out began, the oldest first."""

    def took(self, seconds: float, now: float) -> None:
        """A call was answered."""
        self.answered_at = now
        self.num_answers += 1
        self.longest = max(seconds, self.longest * _FADE)

    @property
    def patience(self) -> float:
        """Seconds after which a call is taken for stuck."""
        return max(STALL_SECONDS, STALL_TIMES * self.longest)

    def is_long(self, seconds: float) -> bool:
        """Whether one who waited so long in vain says something about the head, and not about his own impatience."""
        if self.num_answers < KNOWN_ANSWERS:
            return seconds >= MIN_PATIENCE_SECONDS
        return seconds >= min(STALL_TIMES * self.longest, max(MIN_PATIENCE_SECONDS, TELLING_TIMES * self.longest))

    def is_stuck(self, now: float) -> bool:
        """Whether its oldest call takes far longer than usual."""
        if not self.under_way or self.num_answers < KNOWN_ANSWERS:
            return False
        return now - next(iter(self.under_way.values())) > self.patience


class ClientPredictor:
    """Predicts through a coalescer for each head version. All methods belong to one event loop."""

    def __init__(
        self,
        clients: Sequence[AsyncHeadClient],
        limits: CallLimits,
        *,
        policy: Policy | None = None,
        probe_seconds: float = 0.1,
        breakers: BreakerPolicy | None = None,
        hedge_seconds: float = 0.0,
        facts: BackendFacts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clients = clients
        self._limits = limits
        self._breakers = breakers
        self._facts = facts or NoFacts()
        self._clock = clock
        self._heads: dict[tuple[str, int], _Head] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._trials: set[asyncio.Task[None]] = set()
        # A replica may not have loaded yet what another one serves.
        habits = Habits(
            "heads", probe=self._probe, elsewhere=(NotFound,), probe_seconds=probe_seconds, hedge_seconds=hedge_seconds
        )
        self.pool = Pool(clients, habits, policy=policy, budget=Budget(), facts=facts)

    def start(self) -> None:
        """Begin to watch the replicas."""
        self.pool.start()

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        """See `gateway.ports.Predictor`. Unavailable at once while the head's breaker is open."""
        head, now = self._head(manifest), self._clock()
        head.asked_at = now
        verdict = head.breaker.admit(now)
        if verdict != "ask":
            if verdict == "try":
                self._facts.breaker(manifest.name, manifest.version, "half_open")
                self._try(head, [np.array(rows[0])])
            raise left_alone(head.breaker, now)
        try:
            return np.asarray(await head.coalescer.run(rows, for_backend(deadline)))
        except DeadlineExceeded:
            ended = self._clock()
            if head.answered_at < now and head.is_long(ended - now):
                self._failed(head, ended)
            raise

    def follow(self, catalogue: Catalogue) -> None:
        """See `gateway.ports.CatalogueFollower`. Calls still out on versions that are gone end by themselves."""
        live = servables_of(catalogue)
        self._keep(key for key in self._heads if key in live)

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a call, each once for each head."""
        return sum(head.coalescer.num_rows for head in self._heads.values())

    async def close(self) -> None:
        """Cancel what is out."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.pool.close()
        trials = list(self._trials)
        for trial in trials:
            trial.cancel()
        await asyncio.gather(*trials, return_exceptions=True)
        for head in self._heads.values():
            await head.coalescer.close()

    def _head(self, manifest: Manifest) -> _Head:
        """That of the version; calls still out on another version of the head end by themselves."""
        key = (manifest.name, manifest.version)
        head = self._heads.get(key)
        if head is not None and head.manifest is manifest:
            return head
        # The same version read anew from the catalogue keeps its record.
        if head is None or head.manifest != manifest:
            self._forget_unused()
            head = self._heads[key] = self._new_head(manifest)
        head.manifest = manifest
        return head

    def _new_head(self, manifest: Manifest) -> _Head:
        async def send(rows: Sequence[FloatArray], deadline: Deadline) -> Sequence[FloatArray]:
            return await self._send(head, rows, deadline)

        head = _Head(manifest, Breaker(self._breakers), Coalescer(send, self._limits), self._clock())
        return head

    def _forget_unused(self) -> None:
        old = self._clock() - FORGET_SECONDS
        self._keep(key for key, head in self._heads.items() if head.asked_at > old or head.under_way)

    def _keep(self, keys: Iterable[tuple[str, int]]) -> None:
        """Forget the others; whose breaker was open is told to be so no more."""
        kept = {key: self._heads[key] for key in keys}
        for head in self._heads.values():
            if head.breaker.state != "closed" and (head.manifest.name, head.manifest.version) not in kept:
                self._facts.breaker(head.manifest.name, head.manifest.version, "closed")
        self._heads = kept

    async def _send(self, head: _Head, rows: Sequence[FloatArray], deadline: Deadline) -> Sequence[FloatArray]:
        """One coalesced call, over whichever replicas it takes; the breaker is told how it ended."""
        began = self._clock()
        try:
            scores = await self._scores(head, rows, deadline)
        except TrunklineError as error:
            ended = self._clock()
            is_impatience = isinstance(error, DeadlineExceeded) and not head.is_long(ended - began)
            if is_the_heads(error) and not is_impatience:
                self._failed(head, ended)
            raise
        if not np.isfinite(scores).all():
            # Whose rows they are gets the error; the others' are good. A row that is no numbers itself is not the head's fault.
            if all(np.isfinite(row).all() for row in rows):
                self._failed(head, self._clock())
            else:
                head.breaker.left()
        elif head.breaker.succeeded(self._clock()):
            self._facts.breaker(head.manifest.name, head.manifest.version, "closed")
        return scores

    async def _scores(self, head: _Head, rows: Sequence[FloatArray], deadline: Deadline) -> Sequence[FloatArray]:
        manifest = head.manifest
        if not manifest.mask_input:
            return await self._ask(head, {manifest.input: np.asarray(rows)}, deadline)  # type: ignore[return-value]  # an array is its rows
        answers: list[FloatArray] = [_NOTHING] * len(rows)
        for places in groups_by_length([len(row) for row in rows], manifest.width):
            vectors, mask = padded([rows[place] for place in places])
            scores = await self._ask(head, {manifest.input: vectors, manifest.mask_input: mask}, deadline)
            for place, row in zip(places, scores, strict=True):
                answers[place] = row
        return answers

    async def _ask(self, head: _Head, inputs: dict[str, FloatArray], deadline: Deadline) -> FloatArray:
        manifest = head.manifest
        count = len(inputs[manifest.input])

        async def attempt(number: int) -> FloatArray:
            key, began = object(), self._clock()
            head.under_way[key] = began
            if self._timer is None:
                self._arm()
            try:
                ids = ids_passed_on()
                answer = await self._clients[number].predict(
                    manifest.name,
                    inputs,
                    version=manifest.version,
                    output_filter=(manifest.output,),
                    timeout=deadline.remaining(),
                    request_id=ids.request_id,
                    traceparent=ids.traceparent,
                )
            finally:
                del head.under_way[key]
            now = self._clock()
            head.took(now - began, now)
            scores = answer.outputs.get(manifest.output)
            if scores is None or scores.shape != (count, len(manifest.labels)) or scores.dtype != np.float32:
                raise InvalidResponse("the head server did not answer with scores")
            return scores

        return await self.pool.run(attempt, count, deadline)

    def _failed(self, head: _Head, now: float) -> None:
        if head.breaker.failed(now):
            self._opened(head, now)

    def _opened(self, head: _Head, now: float) -> None:
        """Nobody waits for a head that does not answer."""
        self._facts.breaker(head.manifest.name, head.manifest.version, "open")
        head.coalescer.fail(left_alone(head.breaker, now))

    def _try(self, head: _Head, rows: Sequence[FloatArray]) -> None:
        """The call that decides runs on a copy of a caller's row, so that no caller waits for a head that may be dead."""

        async def trial() -> None:
            try:
                await self._send(head, rows, Deadline.after(max(1.0, head.patience)))
            except Exception as error:  # whatever it was, somebody else must be let try
                head.breaker.left()
                if not isinstance(error, TrunklineError):
                    _log.exception("the trial of head %r failed unexpectedly", head.manifest.name)

        task = asyncio.create_task(trial())
        self._trials.add(task)
        task.add_done_callback(self._trials.discard)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        """Open the breakers of the heads that are stuck while others answer."""
        self._timer = None
        now = self._clock()
        busy = [head for head in self._heads.values() if head.under_way]
        for head in busy:
            if head.breaker.state == "closed" and head.is_stuck(now) and self._others_answer(head):
                head.breaker.trip(now)
                self._opened(head, now)
        if busy:
            self._arm()

    def _others_answer(self, head: _Head) -> bool:
        since = next(iter(head.under_way.values()))
        return any(other.answered_at > since for other in self._heads.values() if other is not head)

    async def _probe(self, number: int, timeout: float) -> None:
        # No head has this name: any server answers at once that it does not know it.
        await self._clients[number].status(_NO_HEAD, timeout=timeout)


_NO_HEAD: Final = "-"
_NOTHING: Final[FloatArray] = np.empty(0, np.float32)


def left_alone(breaker: Breaker, now: float) -> Unavailable:
    """What callers are told while *breaker* lets nobody through; the call that decides takes a moment, too."""
    return Unavailable("the head failed again and again", retry_after=max(0.05, breaker.seconds_left(now)))


def is_the_heads(error: TrunklineError) -> bool:
    """Whether *error* says that the head does not work, wherever it is asked."""
    return isinstance(error, Unavailable | DeadlineExceeded | ServerFault | InvalidResponse) and not isinstance(error, Overloaded)


def groups_by_length(lengths: Sequence[int], width: int) -> list[list[int]]:
    """The places of *lengths*, shortest first, in groups that take at most `MAX_CALL_BYTES` when padded; or in one of its own."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Of rising lengths this one is its group's longest so far.
        if not groups or (len(groups[-1]) + 1) * lengths[place] * width * 4 > MAX_CALL_BYTES:
            groups.append([])
        groups[-1].append(place)
    return groups


def padded(rows: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """(vectors float32 [texts, tokens, width], mask float32 [texts, tokens]: 1 where there is a token) of *rows* of tokens."""
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.float32)
    vectors = np.zeros((*mask.shape, rows[0].shape[1]), np.float32)
    for place, row in zip(vectors, rows, strict=True):
        place[: len(row)] = row
    return vectors, mask
