"""What a deployment takes beside time: memory, bytes on the wire, money."""

from collections.abc import Awaitable, Callable
from typing import Final

import psutil

from perf.machine import footprint
from perf.results import Footprint, Run, Wire
from perf.topologies.plan import RunningPlan

LOOPBACK: Final = "lo"
WIRE_REMARK: Final = (
    "Bytes on the wire are those that passed the loopback interface meanwhile, other processes' included; every hop between the "
    "processes measured is TCP."
)


def footprint_of(plan: RunningPlan) -> Footprint:
    """Resident bytes by process, its descendants' included; memory that they share counts in each."""
    held = {name: footprint(pid).rss_bytes for name, pid in plan.pids.items()}
    return Footprint(
        system=plan.name,
        num_heads=plan.num_heads,
        start_seconds=plan.start_seconds,
        rss_bytes={name: size for name, size in held.items() if size},
        notes=plan.notes,
    )


def loopback_bytes() -> int:
    """Sent over the loopback interface since the machine started; whatever is sent there is received there.

    Raises:
        LookupError: there is no such interface to be read.
    """
    return int(psutil.net_io_counters(pernic=True)[LOOPBACK].bytes_sent)


async def wire_of(measure: Callable[[], Awaitable[Run]], count: Callable[[], int] = loopback_bytes) -> Wire:
    """Bytes a good text, by what *count* says before and after the run that *measure* makes.

    Raises:
        ValueError: no text was answered. LookupError: see `loopback_bytes`.
    """
    before = count()
    run = await measure()
    passed = count() - before
    if not run.num_texts:
        raise ValueError("no text was answered")
    return Wire(
        system=run.system,
        num_heads=run.num_heads,
        workload=run.workload,
        bytes_per_text=passed / run.num_texts,
    )
