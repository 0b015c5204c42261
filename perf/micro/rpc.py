"""`python -m perf.micro.rpc`: a call that does nothing, between two processes, over grpc.aio and over `clients.wire.rpc`.

An echo of as many bytes as a vector has, by each pair of a calling and an answering end, in turns: one call at a time; one at a
time with a pause before it, as where traffic is thin; and many at once.
"""

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import uvloop

from clients.wire.rpc.channel import AsyncChannel
from clients.wire.rpc.server import AsyncServer
from perf.machine import cpu_seconds
from perf.report import spread
from perf.settings import wide_console
from trunkline.processes import Child

NUM_BYTES: Final = 1_536
SERVICE: Final = "perf.Echo"
TIMEOUT_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.01
READY: Final = re.compile(r"listening on (\d+)")

ENDS: Final = ("grpc.aio", "event loop")

Call = Callable[..., Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Load:
    """*in_flight* callers, each waiting *pause* seconds before a call."""

    title: str
    in_flight: int
    pause: float
    num_calls: int


LOADS: Final = (
    Load("one at a time", 1, 0.0, 1_000),
    Load("one at a time, 10 ms apart", 1, PAUSE_SECONDS, 200),
    Load("64 at once", 64, 0.0, 6_400),
)


@dataclass(frozen=True, slots=True)
class Taken:
    """Of one round: microseconds of the median call, and of CPU time a call at each end."""

    p50: float
    caller_cpu: float
    server_cpu: float


async def _echo(request: bytes, _: Any) -> bytes:
    return request


async def serve(end: str) -> None:
    """Answer with what is sent until the process ends; says its port."""
    await answer_calls(grpc.aio.server() if end == ENDS[0] else AsyncServer(), SERVICE, "Echo", _echo)


async def answer_calls(server: Any, service: str, method: str, handle: Callable[[bytes, Any], Awaitable[bytes]]) -> None:
    """Have *server* answer calls of one *method* by *handle* until the process ends; says the port it listens on."""
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(handle)}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on {port}", flush=True)
    await server.wait_for_termination()


@contextlib.asynccontextmanager
async def served(end: str, log_dir: Path) -> AsyncIterator[tuple[str, int]]:
    """An echo in a process of its own: its address and process."""
    command = [sys.executable, "-m", "perf.micro.rpc", "--serve", end]
    child = Child("echo", command, ready=READY, log=log_dir / f"{end}.log", env=dict(os.environ))
    try:
        match = await child.start(60.0)
        yield f"127.0.0.1:{match[1]}", child.pid
    finally:
        await child.stop(5.0)


async def timed(call: Call, load: Load, pid: int) -> Taken:
    """One round of *load*."""
    body, latencies = os.urandom(NUM_BYTES), list[float]()
    before, own = cpu_seconds(pid), time.process_time()

    async def caller() -> None:
        for _ in range(load.num_calls // load.in_flight):
            if load.pause:
                await asyncio.sleep(load.pause)
            began = time.perf_counter()
            await call(body, timeout=TIMEOUT_SECONDS)
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(load.in_flight)))
    count = len(latencies)
    return Taken(
        statistics.median(latencies) * 1e6,
        (time.process_time() - own) / count * 1e6,
        (cpu_seconds(pid) - before) / count * 1e6,
    )


async def measure(rounds: int, loads: tuple[Load, ...] = LOADS) -> dict[tuple[str, str, str], list[Taken]]:
    """Rounds by load, calling end and answering end."""
    found: dict[tuple[str, str, str], list[Taken]] = {}
    async with contextlib.AsyncExitStack() as stack:
        log_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        calls: dict[tuple[str, str], tuple[Call, int]] = {}
        for answering in ENDS:
            address, pid = await stack.enter_async_context(served(answering, log_dir))
            for calling in ENDS:
                channel: Any = grpc.aio.insecure_channel(address) if calling == ENDS[0] else AsyncChannel(address)
                stack.push_async_callback(channel.close)
                calls[calling, answering] = channel.unary_unary(f"/{SERVICE}/Echo"), pid
        for _ in range(rounds):
            for load in loads:
                for (calling, answering), (call, pid) in calls.items():
                    await timed(call, Load(load.title, load.in_flight, 0.0, 2 * load.in_flight), pid)
                    found.setdefault((load.title, calling, answering), []).append(await timed(call, load, pid))
    return found


def lines_of(found: Mapping[tuple[str, str, str], list[Taken]]) -> list[str]:
    """As they are printed: medians with their spreads."""
    return [
        f"{title}; {calling} calls {answering}: p50 {spread([one.p50 for one in taken], '{:.0f} µs')}; "
        f"CPU a call {statistics.median(one.caller_cpu for one in taken):.0f} + "
        f"{statistics.median(one.server_cpu for one in taken):.0f} µs"
        for (title, calling, answering), taken in found.items()
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.rpc", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=ENDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(serve(given.serve))
        return
    console = wide_console()
    console.print(f"an echo of {NUM_BYTES} bytes between two processes, {os.cpu_count()} cores; CPU of caller + server")
    for line in lines_of(uvloop.run(measure(given.rounds))):
        console.print(line)


if __name__ == "__main__":
    main()
