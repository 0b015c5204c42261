"""All deployments, all loads: started, asked in turns, and written down. Whatever fails is said, and the rest goes on.

Deployments that fit into memory together run together, one at a time: the others are stopped meanwhile, and each is warmed up
again before its turn. Rounds go A B C D A B C D, so that what changes on the machine meets all alike.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec
import psutil

from embedding_service.models.bert import read_config
from perf.machine import paused
from perf.measuring import environment
from perf.measuring.bisection import most_within
from perf.measuring.budget import Settings, expected_seconds, num_compared
from perf.measuring.costs import WIRE_REMARK, footprint_of, wire_of
from perf.measuring.goals import Roles, goals_of
from perf.measuring.limit import lengths_of, limit_of, peaks
from perf.measuring.loads import SHARED_LOOP_REMARK, PlanDied, measure_load
from perf.measuring.peers import BARE, Beside, PeerSettings, beside_bare_loop, beside_peer
from perf.measuring.waterfall import waterfall
from perf.results import Answers, Bound, Footprint, Limit, Load, Missing, Ratio, Results, Run, Stage, Wire
from perf.rounds import Patience, Rounds
from perf.topologies.plan import CannotStart, Given, HeadSet, Labels, Plan, RunningPlan
from perf.workloads import Workload

LEAST_FREE_BYTES: Final = 1_500_000_000
BYTES_A_MODEL: Final = 180_000_000
"""With less than the first, and the second for each head, the next deployment is not started beside the others."""

LEAST_CORES: Final = 2
STILL_SECONDS: Final = 15.0
ELSEWHERE_REMARK: Final = (
    "The embedding service of plans three and four runs elsewhere: its CPU time, its memory and the bytes to it are not counted, "
    "so what these two cost cannot be held against the others. If it keeps vectors, its engine did not see texts that came again."
)
IMPATIENT_REMARK: Final = (
    "Other processes used the machine for so long that {:.0f} minutes were lost to them: what was measured after that was taken "
    "as it came, and is marked where they were at work."
)

WARM_UP: Final = Load(kind="closed", in_flight=8)
MOST_WARM_UPS: Final = 20
WIRE: Final = Load(kind="closed", in_flight=8)
MOST_TOKENS: Final = 512
LEAST_AGREEMENT_OF_MANY: Final = 0.995
_MOST_WHY: Final = 300

Found = TypeVar("Found")
Progress = Callable[[float, str], None]
"""Told the share of the expected time that has passed, from 0 to 1, and what is measured now."""


class AskLabels(Protocol):
    """Labels of texts by a running deployment; raises what its client does. See `perf.topologies.answers`."""

    def __call__(self, running: RunningPlan, texts: Sequence[str], /) -> Awaitable[list[Labels]]:
        """In order."""
        ...


class CompareLabels(Protocol):
    """Labels of the labelled set beside another's. See `perf.topologies.answers`."""

    def __call__(
        self,
        labels: Sequence[Labels],
        reference: Sequence[Labels],
        heads: HeadSet,
        /,
        *,
        system: str,
        reference_name: str,
        num_heads: int,
        least_agreement: float,
    ) -> Answers:
        """As a record."""
        ...


PeerCompare = Callable[[str, Given, Workload, PeerSettings], Awaitable[Beside]]
MeasurePeaks = Callable[[Sequence[str]], tuple[dict[str, float], list[Missing]]]


@dataclass(frozen=True, slots=True)
class Means:
    """What a campaign measures with: other than these only where a test says so."""

    ask: AskLabels
    compare: CompareLabels
    beside_peer: PeerCompare = beside_peer
    beside_bare: Callable[[Given, Workload, PeerSettings], Awaitable[Beside]] = beside_bare_loop
    peaks: MeasurePeaks = peaks
    rounds: Callable[[Sequence[int], Callable[[str], None], int, Patience], Rounds] = Rounds
    free_bytes: Callable[[], int] = lambda: int(psutil.virtual_memory().available)


@dataclass(slots=True)
class Record:
    """What has been found so far."""

    runs: list[Run] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    wire: list[Wire] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    stages: tuple[Stage, ...] = ()
    ratios: list[Ratio] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def remark(self, sentence: str) -> None:
        """Say it once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)


@dataclass(frozen=True, slots=True)
class System:
    """A deployment that runs."""

    plan: Plan
    running: RunningPlan


class Campaign:
    """Single owner of what is found and of what still runs. The first of *plans* that starts is what labels are compared with.

    *workloads* are those of the settings, in their order.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        given: Given,
        workloads: Sequence[Workload],
        settings: Settings,
        means: Means,
        *,
        roles: Roles | None = None,
        progress: Progress = lambda _share, _title: None,
    ) -> None:
        self._plans = plans
        self._given = given
        self._workloads = {workload.name: workload for workload in workloads}
        self._main = workloads[0]
        self._settings = settings
        self._means = means
        self._roles = roles or Roles()
        self._patience = Patience(settings.max_lost_seconds)
        self._progress = _Progress(expected_seconds(settings, len(plans)), progress)
        self._references: dict[int, tuple[Plan, list[Labels]]] = {}
        self._live: dict[str, System] = {}
        self._lost: set[str] = set()
        self.found = Record()

    async def run(self) -> Record:
        """All sections."""
        if (num_cores := environment.machine().num_cores) < LEAST_CORES:
            self.found.remark(f"{num_cores} core: the generator and what it measures take turns, and all latencies are too long.")
        if self._given.embedding_address:
            self.found.remark(ELSEWHERE_REMARK)
        left = list(self._plans)
        self._progress.section("start", len(self._plans))
        while left:
            async with self._together(left, 1) as after:
                await self._interleaved()
            left = after
        await self._heads()
        await self._limit()
        await self._peers()
        if self._patience.is_at_its_end:
            self.found.remark(IMPATIENT_REMARK.format(self._settings.max_lost_seconds / 60))
        self._goals()
        self._progress.end()
        return self.found

    # Starting

    @contextlib.asynccontextmanager
    async def _together(self, plans: Sequence[Plan], num_heads: int) -> AsyncIterator[list[Plan]]:
        """As many of *plans* as fit into memory, at least one, run until the context ends; those that did not fit are given."""
        self._live = {}
        left = list(plans)
        given = replace(self._given, num_heads=num_heads)
        enough = LEAST_FREE_BYTES + num_heads * BYTES_A_MODEL
        async with AsyncExitStack() as stack:
            while left and (not self._live or self._means.free_bytes() >= enough):
                plan = left.pop(0)
                self._progress.step(f"starting with {_heads(num_heads)}: {plan.title}")
                running = await self._started(stack, plan, given)
                if running is not None:
                    self._live[plan.name] = System(plan, running)
            if left:
                names = ", ".join(plan.name for plan in left)
                self.found.remark(
                    f"Memory was too small for all at once with {_heads(num_heads)}: "
                    f"{names} came after the others, not in turns with them."
                )
            yield left
        self._live = {}

    async def _started(self, stack: AsyncExitStack, plan: Plan, given: Given) -> RunningPlan | None:
        """None when it does not start, which is written down; its end, when *stack* ends, fails nobody."""
        context = plan.start(given)
        with paused(self._pids()):
            try:
                running = await context.__aenter__()
            except Exception as error:  # whatever it was, the others go on
                why = str(error) if isinstance(error, CannotStart) else _why(error)
                self._missing(f"{plan.name}, {_heads(given.num_heads)}", why)
                self._lost.add(plan.name)
                return None

        async def end() -> None:
            try:
                await context.__aexit__(None, None, None)
            except Exception as error:  # a deployment that died cannot be stopped in order
                given.say(f"{plan.name} did not stop in order: {_why(error)}")

        stack.push_async_callback(end)
        return running

    # A turn

    async def _turn(self, system: System, title: str, measure: Callable[[], Awaitable[Found]]) -> Found | None:
        """What *measure* gives while nobody else runs; None when it fails, and then *system* is lost for the rest."""
        name = system.plan.name
        if name in self._lost:
            return None
        self._progress.step(f"{title}: {system.plan.title}")
        others = [other.running for other in self._live.values() if other.plan.name != name]
        pids, waits = list(system.running.pids.values()), self._settings.max_waits
        rounds = self._means.rounds(pids, self._given.say, waits, self._patience)
        try:
            with paused(pid for other in others for pid in other.pids.values()):
                found = await rounds.take(partial(self._warmed_up, system.running, measure))
        except Exception as error:  # whatever it was, the others go on
            await self._failed(system, title, error)
            return None
        if rounds.num_disturbed and isinstance(found, Run):
            return msgspec.structs.replace(found, is_disturbed=True)
        return found

    async def _failed(self, system: System, title: str, error: Exception) -> None:
        """Who still answers lacks this one measurement; who does not is lost for the rest."""
        where = f"{system.plan.name}, {_heads(system.running.num_heads)}: {title}"
        if not isinstance(error, PlanDied) and await _still_answers(system.running):
            self._missing(where, _why(error))
            return
        self._lost.add(system.plan.name)
        self._missing(f"{where} and all after it", _why(error))

    async def _warmed_up(self, running: RunningPlan, measure: Callable[[], Awaitable[Found]]) -> Found:
        """Who was stopped for long may take the time for a failure of what is behind it, and refuse for a while."""
        for _ in range(MOST_WARM_UPS):
            if not await warm_up(running, self._main, self._settings.warm_up_seconds):
                break
        return await measure()

    async def _load(
        self, system: System, title: str, workload: Workload, load: Load, number: int, seconds: float | None = None
    ) -> Run | None:
        run = await self._turn(system, title, partial(self._measured, system.running, workload, load, number, seconds))
        if run is not None:
            self.found.runs.append(run)
        return run

    async def _measured(
        self, running: RunningPlan, workload: Workload, load: Load, number: int, seconds: float | None = None
    ) -> Run:
        if running.target is None and load.kind in {"poisson", "bursts"}:
            self.found.remark(SHARED_LOOP_REMARK)
        return await measure_load(
            running,
            workload,
            load,
            seconds=seconds or self._settings.seconds,
            round_number=number,
            num_texts=self._settings.num_sequential,
        )

    # Sections of what runs together

    async def _interleaved(self) -> None:
        for section in (
            self._answers,
            self._footprints,
            self._sequential,
            self._closed,
            self._open,
            self._bounds,
            self._bulk,
            self._wire,
            self._waterfall,
        ):
            if self._systems():
                await section()

    async def _answers(self) -> None:
        self._progress.section("answers", len(self._systems()))
        for system in self._systems():
            await self._answers_of(system)

    async def _answers_of(self, system: System) -> None:
        """With many heads fewer texts: whole models take a pass a head."""
        count = system.running.num_heads
        heads = _first_texts(self._given.heads, num_compared(self._settings, count))
        labels = await self._turn(system, f"answers, {_heads(count)}", partial(self._means.ask, system.running, heads.texts))
        if labels is None:
            return
        first, reference = self._references.setdefault(count, (system.plan, labels))
        answers = self._means.compare(
            labels,
            reference,
            heads,
            system=system.plan.name,
            reference_name=first.name,
            num_heads=count,
            least_agreement=min(least_agreement_of(plan, count) for plan in (system.plan, first)),
        )
        self.found.answers.append(answers)
        if not answers.is_ranked:
            self._given.say(
                f"{system.plan.name} labels {answers.num_differences} otherwise: it is measured, marked and not ranked"
            )

    async def _footprints(self) -> None:
        """After the answers: some load."""
        self.found.footprints += [footprint_of(system.running) for system in self._systems()]

    async def _sequential(self) -> None:
        self._progress.section("sequential", len(self._systems()))
        for system in self._systems():
            await self._load(system, "one at a time", self._main, Load(kind="sequential"), 0)

    async def _closed(self) -> None:
        settings = self._settings
        pairs = [(self._main, in_flight) for in_flight in settings.in_flight]
        pairs += [(workload, settings.main_in_flight) for workload in self._workloads.values() if workload is not self._main]
        self._progress.section("closed loop", settings.rounds * len(pairs) * len(self._systems()))
        for number in range(settings.rounds):
            for workload, in_flight in pairs:
                title = f"{workload.name}, {in_flight} in flight, round {number + 1}"
                for system in self._systems():
                    await self._load(system, title, workload, Load(kind="closed", in_flight=in_flight), number)

    async def _open(self) -> None:
        settings = self._settings
        peaks_of = {name: peak_of(self.found.runs, name, self._main.name) for name in self._live}
        peaks_of = {name: peak for name, peak in peaks_of.items() if peak > 0}
        loads = {name: open_loads(peak, min(peaks_of.values()), settings) for name, peak in peaks_of.items()}
        self._progress.section("open loop", settings.rounds * sum(map(len, loads.values())))
        for number in range(settings.rounds):
            for place in range(max(map(len, loads.values()), default=0)):
                for system in self._systems():
                    for load in loads.get(system.plan.name, ())[place : place + 1]:
                        await self._load(system, f"{load}, round {number + 1}", self._main, load, number)

    async def _bounds(self) -> None:
        settings = self._settings
        self._progress.section("bound", settings.tries * len(self._systems()))
        for system in self._systems():
            peak = peak_of(self.found.runs, system.plan.name, self._main.name)
            if peak > 0:
                await self._bound(system, peak)

    async def _bound(self, system: System, peak: float) -> None:
        settings = self._settings

        async def measure(rate: float) -> Run:
            title = f"p99 within {settings.bound_ms:g} ms at {rate:.0f}/s?"
            load = Load(kind="poisson", rate=rate)
            run = await self._turn(system, title, partial(self._measured, system.running, self._main, load, 0))
            if run is None:
                raise _Lost
            return run

        with contextlib.suppress(_Lost):
            found = await most_within(settings.bound_ms, measure, peak, settings.tries)
            if found is None:
                what = f"{system.plan.name}: most texts a second with p99 within {settings.bound_ms:g} ms"
                self._missing(what, "in every run the generator was late or other processes used the machine")
                return
            self.found.bounds.append(
                Bound(
                    system=system.plan.name,
                    num_heads=system.running.num_heads,
                    workload=self._main.name,
                    bound_ms=settings.bound_ms,
                    throughput=found.rate,
                    least_too_much=found.least_too_much,
                    tried=found.tried,
                )
            )

    async def _bulk(self) -> None:
        settings = self._settings
        load = Load(kind="closed", in_flight=settings.bulk_in_flight, texts_a_request=settings.texts_a_request)
        self._progress.section("bulk", settings.bulk_rounds * len(self._systems()))
        for number in range(settings.bulk_rounds):
            for system in self._systems():
                await self._load(system, f"{load}, round {number + 1}", self._main, load, number)

    async def _wire(self) -> None:
        self._progress.section("wire", len(self._systems()))
        for system in self._systems():
            measure = partial(self._measured, system.running, self._main, WIRE, 0, self._settings.wire_seconds)
            wire = await self._turn(system, "bytes on the wire", partial(wire_of, measure))
            if wire is not None:
                self.found.wire.append(wire)
                self.found.remark(WIRE_REMARK)

    async def _waterfall(self) -> None:
        system = self._live.get(self._roles.gateway)
        if system is None:
            return
        self._progress.section("waterfall", 1)
        measure = partial(_waterfall_or_why, system.running, self._main, self._given.trunk, self._settings.num_waterfall)
        found = await self._turn(system, "where the time of a request goes", measure)
        if isinstance(found, Missing):
            self.found.missing.append(found)
        elif found is not None:
            self.found.stages = found

    # Sections that start what they need

    async def _heads(self) -> None:
        settings = self._settings
        counts = [count for count in settings.heads if count > 1]
        plans = [plan for plan in self._plans if plan.name not in self._lost]
        self._progress.section("heads", len(counts) * len(plans) * (2 + settings.heads_rounds))
        for count in counts:
            # Who died with fewer heads may do with more.
            self._lost = set()
            left = list(plans)
            while left:
                async with self._together(left, count) as after:
                    await self._with_heads(count)
                left = after

    async def _with_heads(self, count: int) -> None:
        settings = self._settings
        load = Load(kind="closed", in_flight=settings.heads_in_flight)
        for system in self._systems():
            await self._answers_of(system)
        for number in range(settings.heads_rounds):
            for system in self._systems():
                await self._load(system, f"{_heads(count)}, round {number + 1}", self._main, load, number)
        self.found.footprints += [footprint_of(system.running) for system in self._systems()]

    async def _limit(self) -> None:
        self._progress.section("limit", 1)
        self._progress.step("what the machine could do at most")
        try:
            found, missing = await asyncio.to_thread(self._means.peaks, environment.machine().features)
            config = read_config(self._given.trunk)
            tokenizer_json = (self._given.trunk / "tokenizer.json").read_bytes()
        except Exception as error:  # whatever it was, the rest goes on
            self._missing("the physical limit", _why(error))
            return
        self.found.missing += missing
        for workload in self._workloads.values():
            lengths = lengths_of(workload, tokenizer_json, MOST_TOKENS)
            self.found.limits += [limit_of(name, gflops, workload, lengths, config) for name, gflops in found.items()]

    async def _peers(self) -> None:
        settings = self._settings
        peer_rounds, in_flight, waits = settings.peer_rounds, settings.main_in_flight, settings.max_waits
        asked = PeerSettings(peer_rounds, settings.seconds, in_flight, waits, self._patience)
        compares: list[tuple[str, Callable[[], Awaitable[Beside]]]] = [
            (name, partial(self._means.beside_peer, name, self._given, self._main, asked)) for name in settings.peers
        ]
        if settings.is_bare_loop_measured:
            compares.append((BARE, partial(self._means.beside_bare, self._given, self._main, asked)))
        self._progress.section("peers", len(compares))
        for name, compare in compares:
            self._progress.step(f"beside {name}")
            try:
                beside = await compare()
            except (Exception, SystemExit) as error:  # whatever it was, the others go on
                self._missing(name, _why(error))
                continue
            self.found.runs += beside.runs
            self.found.ratios += beside.ratios
            self.found.remarks += beside.remarks

    def _goals(self) -> None:
        settings = self._settings
        unranked = {answers.system for answers in self.found.answers if not answers.is_ranked}
        ratios, missing = goals_of(
            self.found.runs,
            self._roles,
            # Who computes elsewhere costs nothing here.
            {} if self._given.embedding_address else dict.fromkeys(settings.heads, settings.heads_in_flight),
            self._main.name,
            settings.main_in_flight,
            unranked,
        )
        self.found.ratios[:0] = ratios
        self.found.missing += missing

    def _systems(self) -> list[System]:
        return [system for name, system in self._live.items() if name not in self._lost]

    def _pids(self) -> list[int]:
        return [pid for system in self._live.values() for pid in system.running.pids.values()]

    def _missing(self, what: str, why: str) -> None:
        self._given.say(f"{what}: not measured: {why}")
        self.found.missing.append(Missing(what=what, why=why))


class _Lost(Exception):
    """The deployment that is measured is gone; that has been written down."""


class _Progress:
    """How far a campaign is, by the seconds its sections are expected to take."""

    def __init__(self, expected: Mapping[str, float], tell: Progress) -> None:
        self._expected = expected
        self._tell = tell
        self._total = sum(expected.values())
        self._section = ""
        self._steps = self._step = 0
        self._most = 0.0

    def section(self, name: str, steps: int) -> None:
        """*steps* of it follow. One that comes again, for another group, goes on where the bar is."""
        if name != self._section:
            self._section, self._steps, self._step = name, max(steps, 1), 0

    def step(self, title: str) -> None:
        """The next begins."""
        names = list(self._expected)
        before = sum(self._expected[name] for name in names[: names.index(self._section)])
        share = min(self._step / self._steps, 1.0)
        self._step += 1
        # Another group begins with the first section again; a bar does not go back.
        self._most = max(self._most, (before + share * self._expected[self._section]) / self._total)
        self._tell(self._most, title)

    def end(self) -> None:
        """All is measured."""
        self._tell(1.0, "done")


def least_agreement_of(plan: Plan, num_heads: int) -> float:
    """What is asked of the labels of *plan*.

    Of the labels of many heads some are ties within a rounding of bfloat16, and how a vector is rounded depends on which texts
    share its pass. With a float32 engine there are no such differences.
    """
    return plan.least_agreement if num_heads == 1 else min(plan.least_agreement, LEAST_AGREEMENT_OF_MANY)


def peak_of(runs: Iterable[Run], system: str, workload: str) -> float:
    """The most texts a second that a system with one head had in a closed loop of single texts; 0 when there is none."""
    closed = (
        run.throughput
        for run in runs
        if (run.system, run.workload, run.num_heads, run.load.kind, run.load.texts_a_request)
        == (system, workload, 1, "closed", 1)
    )
    return max(closed, default=0.0)


def open_loads(peak: float, least_peak: float, settings: Settings) -> list[Load]:
    """What is offered to a deployment that takes *peak* texts a second beside one that takes *least_peak*, the slowest."""
    common, own = settings.common_share * least_peak, settings.own_share * peak
    loads = [Load(kind="poisson", rate=common, share="common"), Load(kind="poisson", rate=own, share="own")]
    if settings.are_bursts_measured:
        loads.append(Load(kind="bursts", rate=own, share="own"))
    return [load for load in loads if load.rate > 0]


async def warm_up(running: RunningPlan, workload: Workload, seconds: float) -> int:
    """Ask for a moment; the number of requests that were not answered well, 1 at least where none was answered."""
    try:
        run = await measure_load(running, workload, WARM_UP, seconds=seconds, round_number=0)
    except PlanDied:
        return 1
    return run.num_errors


async def _still_answers(running: RunningPlan) -> bool:
    try:
        async with asyncio.timeout(STILL_SECONDS):
            await running.classify(["Are you there?"])
    except Exception:  # whatever it was, it is no answer
        return False
    return True


async def _waterfall_or_why(running: RunningPlan, workload: Workload, trunk: Path, count: int) -> tuple[Stage, ...] | Missing:
    """A waterfall that cannot be had does not make the deployment a lost one."""
    try:
        return await waterfall(running, workload, (trunk / "tokenizer.json").read_bytes(), count)
    except Exception as error:  # whatever it was, it is said
        return Missing(what="waterfall", why=_why(error))


async def results_of(
    campaign: Campaign,
    plans: Sequence[Plan],
    settings: Settings,
    *,
    command: str,
    price_per_hour: float = 0.0,
    more_settings: Mapping[str, Any] | None = None,
) -> Results:
    """Run *campaign* and write down what it found, with the machine, the versions and the commit."""
    started = _now()
    found = await campaign.run()
    return Results(
        command=command,
        commit=environment.commit(),
        started=started,
        ended=_now(),
        machine=environment.machine(),
        versions=environment.versions(),
        settings={**settings.told(), **(more_settings or {})},
        titles={plan.name: plan.title for plan in plans},
        price_per_hour=price_per_hour,
        runs=tuple(found.runs),
        bounds=tuple(found.bounds),
        footprints=tuple(found.footprints),
        wire=tuple(found.wire),
        answers=tuple(found.answers),
        waterfall=found.stages,
        ratios=tuple(found.ratios),
        limits=tuple(found.limits),
        missing=tuple(found.missing),
        remarks=tuple(found.remarks),
    )


def _first_texts(heads: HeadSet, count: int) -> HeadSet:
    return replace(heads, texts=heads.texts[:count], truth=heads.truth[:count])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _heads(count: int) -> str:
    return "1 head" if count == 1 else f"{count} heads"


def _why(error: BaseException) -> str:
    """One line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said = " ".join(str(error).split())[:_MOST_WHY]
    return said or type(error).__name__
