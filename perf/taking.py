"""From the command line to a campaign and back: which plans and texts, with which settings, and what is kept meanwhile."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final, cast, get_args

import msgspec

from embedding_service.models.errors import PreparationError
from perf.asked import Advance, Asked, Save, Say
from perf.campaign import Campaign, Means, Record, results_of
from perf.measuring import environment
from perf.measuring.budget import QUICK, WHOLE, Settings, expected_seconds
from perf.results import Results
from perf.topologies.answers import compared, labels_of
from perf.topologies.heads import prepare_heads
from perf.topologies.plan import Given, Plan
from perf.topologies.plans import PLANS
from perf.trunks import long_trunk
from perf.workloads import Workload, WorkloadName, load_workload
from trunkline import paths
from trunkline.processes import StackError

SAVE_SECONDS: Final = 15.0
"""Between one writing of what was found so far and the next, at least."""


async def take_campaign(asked: Asked, *, say: Say, progress: Advance, save: Save) -> Results:
    """All that was asked for, in turns.

    Raises:
        ValueError: there is no such plan or workload, or the trunk, the heads or the texts cannot be had; in one sentence.
        OSError: a file cannot be read or written.
    """
    plans, settings = plans_of(asked.plans), settings_of(asked)
    try:
        given, workloads = await asyncio.to_thread(_prepared, asked, settings, say)
    except (PreparationError, StackError) as error:
        raise ValueError(str(error)) from error
    minutes = sum(expected_seconds(settings, len(plans)).values()) / 60
    say(f"{len(plans)} deployments; about {minutes:.0f} minutes on a quiet machine of two cores")
    saving = _Saving(plans, settings, asked, save, say)
    campaign = Campaign(
        plans,
        given,
        workloads,
        settings,
        Means(ask=labels_of, compare=compared),
        progress=partial(_told, progress, saving),
    )
    saving.found = campaign.found
    try:
        return await results_of(
            campaign,
            plans,
            settings,
            command=asked.command,
            price_per_hour=asked.price_per_hour,
            more_settings=choices_of(asked),
        )
    except (KeyboardInterrupt, asyncio.CancelledError):
        saving.now()
        raise


def plans_of(names: Sequence[str], plans: Sequence[Plan] = PLANS) -> list[Plan]:
    """Those of *names*, in the order of *plans*; all when there is none.

    Raises:
        ValueError: there is no such plan.
    """
    known = {plan.name for plan in plans}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no plan {unknown[0]!r}; there are {', '.join(plan.name for plan in plans)}")
    return [plan for plan in plans if not names or plan.name in names]


def settings_of(asked: Asked) -> Settings:
    """Of the command, with what the command line says otherwise.

    Raises:
        ValueError: there is no such workload.
    """
    settings = QUICK if asked.is_quick else WHOLE
    names = get_args(WorkloadName)
    unknown = [name for name in asked.workloads if name not in names]
    if unknown:
        raise ValueError(f"there is no workload {unknown[0]!r}; there are {', '.join(names)}")
    return replace(
        settings,
        rounds=asked.rounds or settings.rounds,
        seconds=asked.seconds or settings.seconds,
        heads=asked.heads or settings.heads,
        workloads=cast("tuple[WorkloadName, ...]", asked.workloads) or settings.workloads,
        peers=settings.peers if asked.with_peers else (),
        max_waits=settings.max_waits if asked.max_waits is None else asked.max_waits,
    )


def choices_of(asked: Asked) -> dict[str, str]:
    """What else decides what is measured, for `perf.results.Results.settings`: results of other choices are told apart."""
    return {"engine": asked.engine, "embedding_address": asked.embedding_address or ""}


def _prepared(asked: Asked, settings: Settings, say: Say) -> tuple[Given, list[Workload]]:
    cache_dir = paths.cache_dir()
    trunk = long_trunk(cache_dir)
    heads = prepare_heads(trunk, cache_dir=cache_dir, engine=asked.engine, say=say)
    tokenizer_json = (trunk / "tokenizer.json").read_bytes()
    given = Given(
        trunk=trunk,
        heads=heads,
        num_heads=1,
        cache_dir=cache_dir,
        peers_dir=asked.peers_dir,
        log_dir=asked.out / "logs",
        engine=asked.engine,
        embedding_address=asked.embedding_address,
        say=say,
    )
    given.log_dir.mkdir(parents=True, exist_ok=True)
    return given, [load_workload(name, cache_dir, tokenizer_json) for name in settings.workloads]


def _told(progress: Advance, saving: "_Saving", share: float, title: str) -> None:
    progress(share, title)
    saving.now_and_then()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Saving:
    """Owner of what is written while a campaign runs; *found* is the campaign's own record, read and never changed."""

    def __init__(self, plans: Sequence[Plan], settings: Settings, asked: Asked, save: Save, say: Say) -> None:
        self._save = save
        self._say = say
        self._last = time.monotonic()
        self.found = Record()
        self._empty = Results(
            command=asked.command,
            commit=environment.commit(),
            started=_now(),
            ended="",
            machine=environment.machine(),
            versions=environment.versions(),
            settings={**settings.told(), **choices_of(asked)},
            titles={plan.name: plan.title for plan in plans},
            price_per_hour=asked.price_per_hour,
        )

    def now_and_then(self) -> None:
        """Unless it was done a moment ago."""
        if time.monotonic() - self._last >= SAVE_SECONDS:
            self.now()

    def now(self) -> None:
        """What was found so far."""
        self._last = time.monotonic()
        lists = ("runs", "bounds", "footprints", "wire", "answers", "ratios", "limits", "missing", "remarks")
        found = {name: tuple(getattr(self.found, name)) for name in lists}
        try:
            self._save(msgspec.structs.replace(self._empty, ended=_now(), waterfall=self.found.stages, **found))
        except OSError as error:
            # A full disk may have room again by the end; what is measured meanwhile is not lost.
            self._say(f"what was found so far cannot be written: {error}")
