"""Where the time of one request goes, by what the gateway says in its answers and the embedding service in its own.

Requests go one at a time. The gateway passes the embedding service's durations on to nobody, so after each request the service is
asked itself for the same text, in tokens, as the gateway asks. The middle fifth of the requests, by how long they took, is
averaged: medians of stages would not add up, means over typical requests do.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from clients import AsyncEmbeddingClient
from clients.wire.text import TextEncoder
from perf.http_client import Connection
from perf.load import TIMEOUT_SECONDS
from perf.results import Stage
from perf.topologies.plan import RunningPlan
from perf.workloads import Workload

NUM_REQUESTS: Final = 200
NUM_WARM_UP: Final = 20
MIDDLE: Final = (0.4, 0.6)
REQUEST: Final = "request"
GATEWAY: Final = "gateway"
EMBED: Final = "embedding"
LEAST_MS: Final = -0.05
"""A rest below it is no rest: the stages around it and in it were not those of one request."""


class DoesNotAddUp(Exception):
    """Stages take longer than the one around them; the message is one line."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One text, in milliseconds: what its caller saw, what the gateway said, and what the embedding service said of itself."""

    request: float
    gateway: Mapping[str, float]
    """preprocess_ms, embed_ms, heads_ms and total_ms."""

    service: Mapping[str, float]
    """tokenization, queue, inference and total."""


class _Timings(msgspec.Struct):
    preprocess_ms: float
    embed_ms: float
    heads_ms: float
    total_ms: float


class _Answer(msgspec.Struct):
    timings: _Timings


async def waterfall(plan: RunningPlan, workload: Workload, tokenizer_json: bytes, count: int = NUM_REQUESTS) -> tuple[Stage, ...]:
    """Stages of *plan*, the gateway's, on the first *count* texts.

    Raises:
        DoesNotAddUp: see `stages_of`.
        OSError, ConnectionLostError, TimeoutError, TrunklineError, ValueError: no answer, or one of another kind.
    """
    if plan.target is None or "embedding" not in plan.addresses:
        raise ValueError(f"{plan.name} is no gateway with an embedding service behind it")
    target = plan.target(workload)
    chosen = list(zip(workload.texts, target.bodies, strict=True))
    encoder = TextEncoder(tokenizer_json, max_tokens=512)
    connection = await Connection.open(target.host, target.port)
    samples = []
    try:
        async with AsyncEmbeddingClient(plan.addresses["embedding"], timeout=TIMEOUT_SECONDS) as service:
            for number in range(NUM_WARM_UP + count):
                text, body = chosen[number % len(chosen)]
                began = time.perf_counter()
                status, answer = await connection.request(target.path, body, TIMEOUT_SECONDS)
                request = (time.perf_counter() - began) * 1000
                if status != 200:
                    raise ValueError(f"the gateway answered {status}")
                timings = msgspec.json.decode(answer, type=_Answer).timings
                [encoded] = encoder.encode([text])
                spent = (await service.embed([tuple(encoded.ids)])).durations
                inside = {name: getattr(spent, name) * 1000 for name in ("tokenization", "queue", "inference", "total")}
                samples.append(Sample(request, msgspec.structs.asdict(timings), inside))
    finally:
        connection.close()
    return stages_of(samples[NUM_WARM_UP:])


def stages_of(samples: Sequence[Sample]) -> tuple[Stage, ...]:
    """Means over the middle fifth of *samples*; the stages inside one add up to it.

    Raises:
        DoesNotAddUp: what is inside a stage took longer than it did.
    """
    typical = middle_of(samples)
    request = _mean([one.request for one in typical])
    gateway = {name: _mean([one.gateway[name] for one in typical]) for name in typical[0].gateway}
    service = {name: _mean([one.service[name] for one in typical]) for name in typical[0].service}
    parts = {name: service[name] for name in ("tokenization", "queue", "inference")}
    return (
        Stage(name=REQUEST, ms=request),
        *_inside(REQUEST, request, {GATEWAY: gateway["total_ms"]}, "HTTP and network"),
        *_inside(
            GATEWAY,
            gateway["total_ms"],
            {"preprocess": gateway["preprocess_ms"], EMBED: gateway["embed_ms"], "heads": gateway["heads_ms"]},
            "other",
        ),
        *_inside(
            EMBED,
            gateway["embed_ms"],
            {**parts, "answering": service["total"] - sum(parts.values())},
            "hop to the embedding service",
        ),
    )


def middle_of(samples: Sequence[Sample]) -> list[Sample]:
    """Those whose request took neither long nor short; at least one."""
    ordered = sorted(samples, key=lambda one: one.request)
    first, last = (int(share * len(ordered)) for share in MIDDLE)
    return ordered[first : max(last, first + 1)]


def _inside(around: str, ms: float, parts: Mapping[str, float], rest_name: str) -> list[Stage]:
    rest = ms - sum(parts.values())
    if rest < LEAST_MS:
        raise DoesNotAddUp(f"{', '.join(parts)} took {sum(parts.values()):.2f} ms together, {around!r} around them {ms:.2f} ms")
    return [Stage(name=name, ms=part, inside=around) for name, part in {**parts, rest_name: max(rest, 0.0)}.items()]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
