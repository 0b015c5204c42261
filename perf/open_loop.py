"""Requests at their times, whatever the service does: the open loop over HTTP.

As cheap as can be in Python, because it shares the machine with what it measures: no task a request, no transport a connection,
one sweep for all time-outs.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from clients.wire.http_server import allow_many_connections
from perf.http_client import LOST, Connection
from perf.load import MAX_UNDER_WAY, TIMEOUT_SECONDS, LoadResult, Target, cpu_measured, gaps_of
from perf.machine import punctual
from perf.sockets import Address, Sockets, resolved

SWEEP_SECONDS = 0.1


async def open_loop(
    target: Target,
    *,
    rate: float,
    seconds: float,
    pids: dict[str, int] | None = None,
    seed: int = 0,
    is_poisson: bool = True,
    max_under_way: int = MAX_UNDER_WAY,
    timeout: float = TIMEOUT_SECONDS,
    gaps: Iterator[float] | None = None,
) -> LoadResult:
    """Send *rate* requests a second for *seconds*, with exponential gaps (Poisson arrivals) or constant ones.

    Where *gaps* (seconds from one request to the next) are given they make the rate instead.

    With *max_under_way* of them unanswered when the next is due the run ends, and is void. An answer is waited for *timeout*
    seconds.
    """
    # As many sockets as requests are under way.
    allow_many_connections()
    address = await resolved(target.host, target.port)
    with closing(Sockets()) as sockets:
        loop = _OpenLoop(target, address, sockets, max_under_way, timeout)
        with punctual(), cpu_measured(pids or {}, loop.result):
            await loop.run(gaps or gaps_of(rate, seed if is_poisson else None), seconds)
        return loop.result


@dataclass(slots=True, eq=False)
class _Asked:
    """A request under way; times are of `time.perf_counter`."""

    kind: str
    intended: float
    sent: float
    connection: Connection
    is_late: bool = False


@dataclass(slots=True)
class _OpenLoop:
    """Single owner of the connections and of what is under way."""

    target: Target
    address: Address
    sockets: Sockets
    max_under_way: int
    timeout: float
    result: LoadResult = field(default_factory=LoadResult)
    _idle: list[Connection] = field(default_factory=list)
    _under_way: dict[_Asked, None] = field(default_factory=dict)

    async def run(self, gaps: Iterator[float], seconds: float) -> None:
        """Send until *seconds* have passed, then wait for what is under way."""
        turn = self.target.endless()
        started = intended = swept = self.result.begin(seconds)
        while intended < started + seconds and not self.result.is_overrun:
            await asyncio.sleep(max(0.0, intended - time.perf_counter()))
            while intended <= (now := time.perf_counter()) and intended < started + seconds:
                if len(self._under_way) >= self.max_under_way:
                    self.result.is_overrun = True
                    break
                self.result.lags.append(now - intended)
                self._send(*next(turn), intended)
                intended += next(gaps)
            if now > swept + SWEEP_SECONDS:
                swept = now
                self._give_up(now)
        while self._under_way:
            await asyncio.sleep(SWEEP_SECONDS / 10)
            self._give_up(time.perf_counter())
        self.result.end()

    def _send(self, body: bytes, kind: str, intended: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                self._ask(connection, body, kind, intended)
                return
        connection = Connection(f"{self.target.host}:{self.target.port}")
        self.sockets.connect(self.address, connection)
        self._ask(connection, body, kind, intended)

    def _ask(self, connection: Connection, body: bytes, kind: str, intended: float) -> None:
        asked = _Asked(kind, intended, time.perf_counter(), connection)
        self._under_way[asked] = None
        connection.ask(self.target.path, body, partial(self._answered, asked))

    def _answered(self, asked: _Asked, status: int, _: bytes) -> None:
        del self._under_way[asked]
        if status == LOST:
            self.result.failed(TimeoutError.__name__ if asked.is_late else asked.connection.failure, asked.intended)
            return
        self.result.answered(status, asked.sent, asked.intended, asked.kind)
        self._idle.append(asked.connection)

    def _give_up(self, now: float) -> None:
        """On those that were sent too long ago; the first under way was sent first."""
        for asked in list(self._under_way):
            if asked.sent + self.timeout > now:
                return
            asked.is_late = True
            asked.connection.close()
