"""Which replica a call goes to, and which ones are left alone for now.

Pure: it is told the time and what happened, answers at once, and waits for nothing. `pool.Pool` acts on what it says.

A replica is *suspected* when it has been silent for a while although it owes answers, and is asked for a sign of life; without
one it is *ejected*. So is one whose calls fail or time out one after another, and one that shows life but answers no call while
others do. An ejected replica gets no calls until it has answered a probe. The last one that is left is never ejected.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

Reason = Literal["silent", "failures", "wedged"]
State = Literal["serving", "suspected", "ejected", "draining"]

NONE: Final[frozenset[int]] = frozenset()


class Outcome(Enum):
    """How a call ended, as far as its replica is concerned."""

    ANSWERED = "answered"
    """It worked: with what was asked for, or with a refusal that is no fault of its own."""

    FAILED = "failed"
    """It could not be reached, or is broken."""

    TIMED_OUT = "timed out"
    """The caller's deadline passed."""

    LEFT = "left"
    """The caller left, or the call was moved elsewhere: it says nothing."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a replica is ejected, and for how long.

    Attributes:
        suspect_seconds: silence, while it owes answers, after which it is asked for a sign of life.
        wedged_seconds: silence after which a sign of life is not enough while other replicas answer calls; or *wedged_times*
            the longest of its recent answers, where that is more.
        wedged_times: see *wedged_seconds*.
        max_failures: calls that fail or time out one after another.
        base_ejection_seconds: of the first ejection; the n-th in a row lasts n times that. Then it is probed so often.
        max_ejection_seconds: no ejection is longer.
        forgive_seconds: a replica that lasted so long after an ejection has a clean record.
    """

    suspect_seconds: float = 0.1
    wedged_seconds: float = 2.0
    wedged_times: float = 10.0
    max_failures: int = 3
    base_ejection_seconds: float = 1.0
    max_ejection_seconds: float = 10.0
    forgive_seconds: float = 30.0


@dataclass(slots=True, eq=False)
class Call:
    """*size* texts under way at a replica since *began*."""

    replica: int
    size: int
    began: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask *replica* for a sign of life, and say what came of it by `Replicas.probed`."""

    replica: int


@dataclass(frozen=True, slots=True)
class Ejected:
    """*replica* gets no calls for *seconds*; those under way there are better tried elsewhere."""

    replica: int
    seconds: float
    reason: Reason


@dataclass(frozen=True, slots=True)
class Readmitted:
    """*replica* gets calls again."""

    replica: int


Change = Ejected | Readmitted

_FADE: Final = 0.95
"""Of the longest recent answer, at each answer that is shorter."""


@dataclass(slots=True)
class _Replica:
    calls: dict[Call, None] = field(default_factory=dict)
    """Under way, the oldest first."""
    outstanding: int = 0
    longest: float = 0.0
    worked_at: float = float("-inf")
    alive_at: float = float("-inf")
    num_failures: int = 0
    is_serving: bool = True
    is_suspected: bool = False
    is_probed: bool = False
    ejected_until: float | None = None
    num_ejections: int = 0
    readmitted_at: float = float("-inf")

    @property
    def is_usable(self) -> bool:
        return self.is_serving and self.ejected_until is None

    def silent_since(self, heard_at: float) -> float:
        """Since when it owes an answer and was not heard; *heard_at* is when it was."""
        return max(next(iter(self.calls)).began, heard_at)


class Replicas:
    """The states of *count* replicas, known by number. All methods take the time, in seconds that only grow."""

    def __init__(self, count: int, policy: Policy | None = None) -> None:
        self._replicas = [_Replica() for _ in range(count)]
        self._policy = policy or Policy()
        self._turn = 0

    def __repr__(self) -> str:
        said = (f"{self.state(number)} {replica.outstanding}" for number, replica in enumerate(self._replicas))
        return f"<Replicas [{', '.join(said)}]>"

    @property
    def is_at_rest(self) -> bool:
        """Whether time alone changes nothing."""
        return not any(replica.calls or replica.is_suspected or replica.ejected_until is not None for replica in self._replicas)

    @property
    def outstanding(self) -> Sequence[int]:
        """Texts under way at each replica."""
        return [replica.outstanding for replica in self._replicas]

    def state(self, number: int) -> State:
        """In one word."""
        replica = self._replicas[number]
        if replica.ejected_until is not None:
            return "ejected"
        if not replica.is_serving:
            return "draining"
        return "suspected" if replica.is_suspected else "serving"

    def is_usable(self, number: int) -> bool:
        """Whether calls go there while there is a choice."""
        return self._replicas[number].is_usable

    def calls(self, number: int) -> list[Call]:
        """Under way there, the oldest first."""
        return list(self._replicas[number].calls)

    def choose(self, avoiding: Collection[int] = NONE) -> int:
        """The replica for a call, none of *avoiding*: of those in order the one with the fewest texts outstanding.

        Equals take turns. When none is in order, all are tried.

        Raises:
            ValueError: *avoiding* leaves none.
        """
        numbers = [number for number in range(len(self._replicas)) if number not in avoiding]
        usable = [number for number in numbers if self._replicas[number].is_usable]
        trusted = [number for number in usable if not self._replicas[number].is_suspected]
        self._turn += 1
        return min(trusted or usable or numbers, key=self._burden)

    def another(self, avoiding: Collection[int]) -> int | None:
        """Where a call that failed may be tried again: only one that is in order; None where there is none."""
        usable = [number for number, replica in enumerate(self._replicas) if number not in avoiding and replica.is_usable]
        trusted = [number for number in usable if not self._replicas[number].is_suspected]
        self._turn += 1
        return min(trusted or usable, key=self._burden) if usable else None

    def in_order(self) -> list[int]:
        """All replicas, those in order first."""
        return sorted(range(len(self._replicas)), key=lambda number: not self._replicas[number].is_usable)

    def began(self, number: int, size: int, now: float) -> Call:
        """A call of *size* texts went out to a replica."""
        call = Call(number, size, now)
        replica = self._replicas[number]
        replica.calls[call] = None
        replica.outstanding += size
        return call

    def ended(self, call: Call, outcome: Outcome, now: float) -> Change | None:
        """It ended; with what follows from it."""
        replica = self._replicas[call.replica]
        del replica.calls[call]
        replica.outstanding -= call.size
        if outcome is Outcome.ANSWERED:
            replica.longest = max(now - call.began, replica.longest * _FADE)
            replica.num_failures = 0
            self.worked(call.replica, now)
        elif outcome is Outcome.FAILED or (outcome is Outcome.TIMED_OUT and replica.worked_at <= call.began):
            # A replica that answered others meanwhile is not to blame for one caller's short deadline.
            replica.num_failures += 1
            if replica.num_failures >= self._policy.max_failures and replica.ejected_until is None:
                return self._eject(call.replica, "failures", now)
        return None

    def worked(self, number: int, at: float) -> None:
        """A replica was seen to answer calls, whole or in parts."""
        replica = self._replicas[number]
        replica.worked_at = max(replica.worked_at, at)
        if at > replica.alive_at:
            replica.alive_at = at
            replica.is_suspected = False

    def told(self, number: int, now: float, *, is_serving: bool) -> None:
        """A replica said whether it takes calls, or its connection ended."""
        replica = self._replicas[number]
        if is_serving and not replica.is_serving and replica.ejected_until is not None:
            replica.ejected_until = min(replica.ejected_until, now)
        replica.is_serving = is_serving

    def sweep(self, now: float) -> list[Probe | Ejected]:
        """What is to be done because time has passed."""
        actions: list[Probe | Ejected] = []
        for number, replica in enumerate(self._replicas):
            if replica.ejected_until is None and (change := self._judge_silence(number, replica, now)) is not None:
                actions.append(change)
            due = replica.is_suspected if replica.ejected_until is None else now >= replica.ejected_until
            if due and not replica.is_probed:
                replica.is_probed = True
                actions.append(Probe(number))
        return actions

    def probed(self, number: int, asked_at: float, now: float, *, is_alive: bool) -> Change | None:
        """What came of a probe that was sent at *asked_at*; with what follows from it."""
        replica = self._replicas[number]
        replica.is_probed = False
        if replica.ejected_until is not None:
            if is_alive:
                return self._readmit(number, now)
            replica.ejected_until = now + self._policy.base_ejection_seconds
            return None
        if is_alive:
            replica.alive_at = max(replica.alive_at, now)
        if is_alive or replica.alive_at > asked_at or not replica.calls:
            replica.is_suspected = False
            return None
        return self._eject(number, "silent", now)

    def _burden(self, number: int) -> tuple[int, int]:
        return self._replicas[number].outstanding, (number + self._turn) % len(self._replicas)

    def _judge_silence(self, number: int, replica: _Replica, now: float) -> Ejected | None:
        if not replica.calls:
            replica.is_suspected = False
            return None
        if now - replica.silent_since(replica.alive_at) >= self._policy.suspect_seconds:
            replica.is_suspected = True
        since = replica.silent_since(replica.worked_at)
        patience = max(self._policy.wedged_seconds, self._policy.wedged_times * replica.longest)
        if now - since >= patience and any(other.worked_at > since for other in self._replicas if other is not replica):
            return self._eject(number, "wedged", now)
        return None

    def _eject(self, number: int, reason: Reason, now: float) -> Ejected | None:
        """None where it is the last one left that is not under suspicion itself."""
        if not any(other.is_usable and not other.is_suspected for place, other in enumerate(self._replicas) if place != number):
            return None
        replica, policy = self._replicas[number], self._policy
        is_new = now - replica.readmitted_at > policy.forgive_seconds
        replica.num_ejections = 1 if is_new else replica.num_ejections + 1
        seconds = min(policy.base_ejection_seconds * replica.num_ejections, policy.max_ejection_seconds)
        replica.ejected_until = now + seconds
        replica.is_suspected = False
        return Ejected(number, seconds, reason)

    def _readmit(self, number: int, now: float) -> Readmitted:
        replica = self._replicas[number]
        replica.ejected_until = None
        replica.num_failures = 0
        replica.longest = 0.0
        replica.readmitted_at = replica.alive_at = replica.worked_at = now
        return Readmitted(number)
