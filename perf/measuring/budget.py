"""What a whole comparison consists of, and how long it takes: told before it starts."""

from dataclasses import asdict, dataclass
from typing import Final

from perf.workloads import WorkloadName

WARM_UP_SECONDS: Final = 0.5
QUIET_SECONDS: Final = 1.3
"""Before each turn: a quiet second, waking and pausing processes."""

START_SECONDS: Final = 7.0
START_SECONDS_PER_HEAD: Final = 1.0
"""Between the trunk with one more head, which is nothing, and one more whole model behind a model server."""

SECONDS_A_TEXT: Final = 0.009
"""One at a time, and of the labelled set, on two cores: between the fastest deployment and the slowest."""

PEER_START_SECONDS: Final = 30.0
SECONDS_A_LIMIT: Final = 10.0
REQUEST_SECONDS: Final = 0.02
LEAST_COMPARED: Final = 50


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. Every round of a load lasts *seconds*.

    The first of *workloads* takes all loads, the others the closed loop with *main_in_flight* only. With more
    heads there are *heads_in_flight*, so few that many whole models answer in time. Open loops: at
    *common_share* of what the slowest takes in the closed loop, offered to all, and at *own_share* of what each takes itself, as
    Poisson arrivals and in bursts; a share of 0 leaves it out. *heads* are the numbers of heads, from 1.
    Before each turn a quiet second is waited for, at most *max_waits* of them; to neighbours no more than *max_lost_seconds* are
    lost in all, and then everything is measured as it comes.
    """

    rounds: int = 3
    seconds: float = 4.0
    num_labelled: int = 1_500
    workloads: tuple[WorkloadName, ...] = ("short", "mix", "long")
    num_sequential: int = 1_500
    in_flight: tuple[int, ...] = (1, 8, 32, 64)
    main_in_flight: int = 32
    common_share: float = 0.7
    own_share: float = 0.6
    are_bursts_measured: bool = True
    bound_ms: float = 50.0
    tries: int = 6
    bulk_rounds: int = 2
    texts_a_request: int = 32
    bulk_in_flight: int = 4
    heads: tuple[int, ...] = (1, 2, 8, 32)
    heads_rounds: int = 2
    heads_in_flight: int = 8
    wire_seconds: float = 2.0
    num_waterfall: int = 200
    peers: tuple[str, ...] = ("infinity", "sentence-transformers", "litserve")
    peer_rounds: int = 5
    is_bare_loop_measured: bool = True
    max_waits: int = 20
    max_lost_seconds: float = 900.0
    warm_up_seconds: float = WARM_UP_SECONDS

    def told(self) -> dict[str, str | int | float]:
        """For `perf.results.Results.settings`, which knows no other values."""
        return {name: _told(value) for name, value in asdict(self).items()}


WHOLE: Final = Settings()
QUICK: Final = Settings(
    rounds=2,
    seconds=1.5,
    workloads=("short",),
    num_labelled=200,
    num_sequential=150,
    in_flight=(1, 32),
    own_share=0.0,
    are_bursts_measured=False,
    tries=4,
    bulk_rounds=1,
    heads=(1, 8),
    heads_rounds=1,
    heads_in_flight=32,
    wire_seconds=1.0,
    peers=(),
    is_bare_loop_measured=False,
    max_waits=5,
    max_lost_seconds=120.0,
)

SECTIONS: Final = (
    "start",
    "answers",
    "sequential",
    "closed loop",
    "open loop",
    "bound",
    "bulk",
    "wire",
    "waterfall",
    "heads",
    "limit",
    "peers",
)


def num_compared(settings: Settings, num_heads: int) -> int:
    """Labelled texts that deployments with so many heads are compared on."""
    return min(settings.num_labelled, max(LEAST_COMPARED, settings.num_labelled // num_heads))


def expected_seconds(settings: Settings, num_systems: int) -> dict[str, float]:
    """By section, on a machine of two cores that is quiet; the first start, which prepares the trunk, takes more."""
    before = QUIET_SECONDS + settings.warm_up_seconds
    turn = settings.seconds + before
    closed = len(settings.in_flight) + len(settings.workloads) - 1
    open_loops = (settings.common_share > 0) + (settings.own_share > 0) * (1 + settings.are_bursts_measured)
    more_heads = [count for count in settings.heads if count > 1]
    starts = sum(START_SECONDS + START_SECONDS_PER_HEAD * count for count in more_heads)
    labels = sum(before + num_compared(settings, count) * count * SECONDS_A_TEXT for count in more_heads)
    # Both servers, two loads, and of each a moment to warm up; the answers are compared before.
    a_peer = PEER_START_SECONDS + 2 * 3.0 + settings.peer_rounds * 2 * 2 * (settings.seconds + 1.0)
    bare = PEER_START_SECONDS / 2 + 10.0 + settings.peer_rounds * 2 * (settings.seconds + 1.0)
    sections = {
        "start": num_systems * (START_SECONDS + START_SECONDS_PER_HEAD),
        "answers": num_systems * (1.5 + settings.num_labelled * SECONDS_A_TEXT),
        "sequential": num_systems * (before + settings.num_sequential * SECONDS_A_TEXT),
        "closed loop": num_systems * settings.rounds * closed * turn,
        "open loop": num_systems * settings.rounds * open_loops * turn,
        "bound": num_systems * settings.tries * turn,
        "bulk": num_systems * settings.bulk_rounds * turn,
        "wire": num_systems * (settings.wire_seconds + before),
        "waterfall": before + settings.num_waterfall * REQUEST_SECONDS,
        "heads": num_systems * (starts + labels + len(more_heads) * settings.heads_rounds * turn),
        "limit": SECONDS_A_LIMIT,
        "peers": len(settings.peers) * a_peer + settings.is_bare_loop_measured * bare,
    }
    return {name: sections[name] for name in SECTIONS}


def _told(value: object) -> str | int | float:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, str | int | float) else str(value)
