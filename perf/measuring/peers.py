"""Our embedding service beside other servers of vectors, and beside the bare engine loop, as records. They have no heads."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from embedding_service.backend.load import load_backend
from embedding_service.models.prepare import prepare
from perf.bare_loop import BareResult, bare_loop, best_of
from perf.embedding_vs_bare import ways_of
from perf.embedding_vs_peers import LEAST_COSINE_OF_OURS, Asked, Comparison, Turns, check_answers, compared_texts, cpu_ms
from perf.load import LoadResult
from perf.machine import paused
from perf.measuring.loads import run_of
from perf.report import ratios, tail_ratios
from perf.results import Load, Ratio, Run
from perf.rounds import Patience, Rounds
from perf.systems import OPENAI, PEERS, our_service, peer_service, reference_vectors, token_ids_of
from perf.topologies.plan import Given
from perf.workloads import Workload

OURS: Final = "embedding-service"
BARE: Final = "bare-loop"
NO_HEADS: Final = 0
SHARE: Final = 0.7
"""Of the peer's best load, for the latencies."""

_STREAM: Final = "gRPC stream, one text, 64 in flight"
_STREAM_LOAD: Final = Load(kind="closed", in_flight=64)
_PROBE_SECONDS: Final = 1.0


@dataclass(slots=True)
class Beside:
    """What one comparison gave."""

    runs: list[Run] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """*seconds* a round."""

    rounds: int
    seconds: float
    in_flight: int
    max_waits: int
    patience: Patience = field(default_factory=Patience)


async def beside_peer(name: str, given: Given, workload: Workload, settings: PeerSettings) -> Beside:
    """Our service and the peer of that name, in turns: texts/s, CPU time a text, p99 at a share of the peer's best load.

    Raises:
        CannotInstall, StackError: it cannot be had, does not start, or answers other vectors.
    """
    peer = PEERS[name]
    service = our_service(given.trunk, engine=given.engine, say=given.say)
    server = peer_service(peer, given.trunk, cache_dir=given.cache_dir, peers_dir=given.peers_dir, say=given.say)
    rounds, seconds, in_flight, waits = settings.rounds, settings.seconds, settings.in_flight, settings.max_waits
    asked = Asked([peer], given.engine, rounds, seconds, in_flight, SHARE, waits, given.peers_dir)
    async with server as theirs, service as running:
        # The other of our ways in has its own command.
        ours = replace(running, name=OURS, routes=(OPENAI,))
        texts = compared_texts(workload)
        expected = await asyncio.to_thread(reference_vectors, given.trunk, texts)
        await check_answers(ours, texts, expected, LEAST_COSINE_OF_OURS, given.say)
        await check_answers(theirs, texts, expected, peer.least_cosine, given.say)
        comparison = Comparison(ours, theirs, workload, asked, given.say)
        comparison.rounds.patience = settings.patience
        await comparison.warm_up()
        speed = await comparison.throughput()
        rate = SHARE * max(speed.best_of_theirs, 1.0)
        tail = await comparison.latency(rate)
    found = beside_of(name, workload, speed, tail, Load(kind="closed", in_flight=settings.in_flight), rate)
    if comparison.rounds.num_disturbed:
        found.remarks.append(f"{comparison.rounds.num_disturbed} rounds of {OURS} and {name} were beside others' work.")
    return found


def beside_of(name: str, workload: Workload, speed: Turns, tail: Turns, closed: Load, rate: float) -> Beside:
    """Records of the turns of our service and the peer *name*; the latencies were at *rate* texts a second."""
    (fast,), (late,) = speed.ours.values(), tail.ours.values()
    poisson = Load(kind="poisson", rate=rate, share="common")
    found = Beside()
    for load, mine, theirs in ((closed, fast, speed.theirs), (poisson, late, tail.theirs)):
        # Ours is measured anew beside each peer, and stands under a name of its own: rounds pair only within one comparison.
        found.runs += _runs(f"{OURS} beside {name}", workload, load, mine)
        found.runs += _runs(name, workload, load, theirs)
    parts = (
        ("texts a second", ratios([one.throughput for one in fast], [one.throughput for one in speed.theirs])),
        ("CPU time a text", ratios(cpu_ms(fast, OURS), cpu_ms(speed.theirs, name))),
        (f"p99 at {SHARE:.0%} of its best load", tail_ratios(late, tail.theirs, 99)),
    )
    title = f"our embedding service beside {name}, {workload.name}"
    found.ratios += [
        Ratio(title=title, over=OURS, under=name, what=what, values=tuple(values)) for what, values in parts if values
    ]
    return found


async def beside_bare_loop(given: Given, workload: Workload, settings: PeerSettings) -> Beside:
    """Our service over gRPC, single texts, and the engine in a loop here on tokens made before: the practical limit."""
    backend = await asyncio.to_thread(
        lambda: load_backend(prepare(str(given.trunk), cache_dir=given.cache_dir, engine=given.engine))
    )
    ours: list[LoadResult] = []
    bare: list[BareResult] = []
    with contextlib.closing(backend):
        token_ids = token_ids_of(backend, workload.texts)
        size = (await asyncio.to_thread(best_of, backend, token_ids, _PROBE_SECONDS)).batch_size
        async with our_service(given.trunk, engine=given.engine, say=given.say) as service:
            rounds = Rounds([service.pid], given.say, settings.max_waits, settings.patience)
            async with ways_of(service, workload) as ways:
                await ways[_STREAM](_PROBE_SECONDS)
                for _ in range(settings.rounds):
                    with paused([service.pid]):
                        loop = partial(asyncio.to_thread, bare_loop, backend, token_ids, size, settings.seconds)
                        bare.append(await rounds.take(loop))
                    ours.append(await rounds.take(partial(ways[_STREAM], settings.seconds)))
    return beside_bare_of(workload, ours, bare, settings.seconds)


def beside_bare_of(workload: Workload, ours: Sequence[LoadResult], bare: Sequence[BareResult], seconds: float) -> Beside:
    """Records of both, round by round."""
    found = Beside(runs=_runs(f"{OURS} beside {BARE}", workload, _STREAM_LOAD, ours))
    found.runs += [
        Run(
            system=BARE,
            num_heads=NO_HEADS,
            workload=workload.name,
            load=Load(kind="closed", texts_a_request=one.batch_size),
            round=number,
            seconds=seconds,
            throughput=one.throughput,
            num_texts=round(one.throughput * seconds),
            cpu_ms_per_text={"engine": one.cpu_ms_per_text},
        )
        for number, one in enumerate(bare)
    ]
    values = tuple(ratios([one.throughput for one in ours], [one.throughput for one in bare]))
    title = f"our embedding service beside the bare engine loop, {workload.name}"
    if values:
        found.ratios.append(Ratio(title=title, over=OURS, under=BARE, what="texts a second", values=values))
    return found


def _runs(system: str, workload: Workload, load: Load, results: Sequence[LoadResult]) -> list[Run]:
    return [run_of(system, NO_HEADS, workload, load, number, result) for number, result in enumerate(results)]
