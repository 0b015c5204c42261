"""What a run of the harness found, as it is written to JSON, read again, compared and drawn.

Times are in the unit their name says; a share is from 0 to 1. What could not be measured is no number here: it is a `Missing`.
"""

from pathlib import Path
from typing import Final, Literal

import msgspec

FORMAT: Final = 1
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
CALLER: Final = "load"
"""The process of a run that asks."""

NUM_QUANTILES: Final = 201
"""Of a run's latencies, evenly from the least to the most: enough to draw how they are distributed."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all."""


class Machine(Record, frozen=True, kw_only=True):
    """What was measured on."""

    cpu: str
    num_cores: int
    memory_bytes: int
    features: tuple[str, ...] = ()
    """Of the processor, those that matter here: avx2, avx512_vnni, avx512_bf16, amx_bf16, …"""

    kernel: str = ""
    python: str = ""


class Load(Record, frozen=True, kw_only=True):
    """How requests came: one after another, *in_flight* at a time, or at *rate* requests a second whatever the service did.

    *share* says where the rate of an open loop is from: "common" is one rate for all systems, "own" a share of the system's
    own best, "" says nothing.
    """

    kind: Literal["sequential", "closed", "poisson", "bursts"]
    in_flight: int = 1
    rate: float = 0.0
    texts_a_request: int = 1
    share: Literal["", "common", "own"] = ""

    def __str__(self) -> str:
        how = {
            "sequential": "one at a time",
            "closed": f"{self.in_flight} in flight",
            "poisson": f"{self.rate:.0f}/s, Poisson",
            "bursts": f"{self.rate:.0f}/s in bursts",
        }[self.kind]
        return how if self.texts_a_request == 1 else f"{how}, {self.texts_a_request} texts a request"


class Run(Record, frozen=True, kw_only=True):
    """One round of one load on one system. *throughput* is good texts a second.

    *latency_ms* has the keys mean and p50, and p90, p99 and p99.9 as far as ten answers lie beyond them, of good requests;
    readers must do without the others, and without any of a run that answered nothing. *quantiles_ms* are `NUM_QUANTILES` of
    the same requests.
    *cpu_ms_per_text* is by process, "load" the caller's own. *void* says why the latencies mean nothing, "" when they do;
    *is_disturbed*: other processes used the machine meanwhile.
    """

    system: str
    num_heads: int
    workload: str
    load: Load
    round: int
    seconds: float
    throughput: float
    num_texts: int
    num_errors: int = 0
    latency_ms: dict[str, float] = {}
    quantiles_ms: tuple[float, ...] = ()
    cpu_ms_per_text: dict[str, float] = {}
    lag_p99_ms: float | None = None
    void: str = ""
    is_disturbed: bool = False

    @property
    def cpu_ms(self) -> float | None:
        """CPU milliseconds a text of all processes but the caller's; its own where it is all there is. None: not counted."""
        servers = [ms for name, ms in self.cpu_ms_per_text.items() if name != CALLER]
        return sum(servers) if servers else self.cpu_ms_per_text.get(CALLER)


class Bound(Record, frozen=True, kw_only=True):
    """The most texts a second, Poisson, at which p99 stays within *bound_ms*; found by bisection, *tried* rate by rate.

    The answer lies between *throughput*, 0 when no rate was within, and *least_too_much*, None when no rate tried was too much.
    """

    system: str
    num_heads: int
    workload: str
    bound_ms: float
    throughput: float
    least_too_much: float | None
    tried: tuple[tuple[float, float], ...]
    """(rate, p99 in milliseconds)"""


class Footprint(Record, frozen=True, kw_only=True):
    """What a system takes before anybody asks: from its start to the first answer, and by process after some load."""

    system: str
    num_heads: int
    start_seconds: float
    rss_bytes: dict[str, int]
    notes: tuple[str, ...] = ()


class Wire(Record, frozen=True, kw_only=True):
    """Bytes over the loopback interface a text, headers of all layers and acknowledgements included."""

    system: str
    num_heads: int
    workload: str
    bytes_per_text: float


class Difference(Record, frozen=True, kw_only=True):
    """One text, by its place in the set, that a head labels otherwise than the reference does."""

    place: int
    head: str
    label: str
    reference: str


class Answers(Record, frozen=True, kw_only=True):
    """Labels of all heads on the labelled set, beside those of *reference*; *accuracy* is the first head's.

    A system below *least_agreement* is marked and not ranked.
    """

    system: str
    reference: str
    num_heads: int
    num_texts: int
    num_labels: int
    num_differences: int
    least_agreement: float
    accuracy: float
    differences: tuple[Difference, ...] = ()
    """The first of them."""

    @property
    def agreement(self) -> float:
        """Share of labels that are the reference's."""
        return 1 - self.num_differences / self.num_labels if self.num_labels else 0.0

    @property
    def is_ranked(self) -> bool:
        """Whether its numbers may stand beside the others'."""
        return self.agreement >= self.least_agreement


class Stage(Record, frozen=True, kw_only=True):
    """Of the waterfall: the median part of one request's time that passed here; *inside* names the stage around it."""

    name: str
    ms: float
    inside: str = ""


class Ratio(Record, frozen=True, kw_only=True):
    """*what* of one system over that of another, round by round; *goal* says what was hoped for."""

    title: str
    over: str
    under: str
    what: str
    values: tuple[float, ...]
    goal: str = ""
    is_met: bool | None = None


class Limit(Record, frozen=True, kw_only=True):
    """What this machine could do at most: measured rate of the matrix products of *precision*, over operations a text."""

    precision: str
    gflops: float
    workload: str
    texts_per_second: float


class Micro(Record, frozen=True, kw_only=True):
    """One micro-benchmark: median time, and CPU time, of one call over rounds."""

    name: str
    microseconds: tuple[float, ...]
    cpu_microseconds: tuple[float, ...] = ()
    note: str = ""


class Missing(Record, frozen=True, kw_only=True):
    """What was not measured, and why, in one line."""

    what: str
    why: str


class Results(Record, frozen=True, kw_only=True):
    """One run of the harness. *started* and *ended* are ISO 8601 times in UTC; *settings* are the command's."""

    command: str
    commit: str
    started: str
    ended: str
    machine: Machine
    versions: dict[str, str]
    settings: dict[str, str | int | float] = {}
    titles: dict[str, str] = {}
    """Of systems, by name."""

    price_per_hour: float = 0.0
    """Of the machine, in dollars, for what a million texts cost."""

    format: int = FORMAT
    runs: tuple[Run, ...] = ()
    bounds: tuple[Bound, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    wire: tuple[Wire, ...] = ()
    answers: tuple[Answers, ...] = ()
    waterfall: tuple[Stage, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    limits: tuple[Limit, ...] = ()
    micro: tuple[Micro, ...] = ()
    missing: tuple[Missing, ...] = ()
    remarks: tuple[str, ...] = ()


def write(results: Results, path: Path) -> None:
    """As JSON, indented, so that two files can be read side by side."""
    path.write_bytes(encoded(results))


def encoded(results: Results) -> bytes:
    """JSON, indented."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"


def read(path: Path) -> Results:
    """What `write` wrote.

    Raises:
        ValueError: it is no such file, or one of another format; in one sentence.
        OSError: it cannot be read.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path.name} holds no results of this harness: {error}") from error
    if found.format != FORMAT:
        raise ValueError(f"{path.name} is of format {found.format}; this harness reads {FORMAT}")
    return found
