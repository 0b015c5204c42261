"""`python -m perf.micro.hops`: what the layout alone costs one who waits for a single text, with nothing in the services.

The same forward pass of one short text in three layouts, in turns: in the web process that answers (plan one); in a service of
its own, with a second one called after it, by the caller (plan three); and behind a web process that calls both (plan four).
Nothing is read, checked, tokenised, queued, cached or computed beside the pass; uvicorn and our gRPC carry constant bytes. What
then is between the layouts, no gateway made of these can be rid of. With `--no-pass` there is not even the pass, and nobody
pauses for long (`perf.micro.pauses`).
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from clients.wire.http_server import AnnouncingServer
from clients.wire.rpc.channel import AsyncChannel
from clients.wire.rpc.server import AsyncServer
from clients.wire.rpc.sockets import tcp_socket
from embedding_service.backend import Backend, Batch
from embedding_service.backend.load import load_backend
from embedding_service.models.prepare import prepare
from perf.load import TIMEOUT_SECONDS, LoadResult, closed_loop, repeated, target_of
from perf.micro.rpc import READY, answer_calls
from perf.report import spread
from perf.settings import wide_console
from trunkline import paths
from trunkline.processes import Child

NUM_TOKENS: Final = 24
VECTOR: Final = bytes(1_536)
"""384 float32."""

SCORES: Final = bytes(64)
LABELS: Final = json.dumps({"results": [{"heads": {"head": {"label": "one of three", "score": 0.5}}}]}).encode()
BODY: Final = json.dumps({"text": "a text of some twenty words, which is what people write who have little time " * 2}).encode()
SERVICE: Final = "perf.Hop"
START_SECONDS: Final = 60.0

WHOLE, DIRECT, FRONT = "one process", "two services, called by the caller", "two services behind a front"

Pass = Callable[[], Awaitable[None]]
"""What a service does before it answers."""

Way = Callable[[float], Awaitable[LoadResult]]
"""Loads a layout for so many seconds."""


class OnePass:
    """A forward pass of one text, alone, on a thread of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._pool = ThreadPoolExecutor(1)
        ids = tuple(range(1_000, 1_000 + NUM_TOKENS))
        self._batch = Batch((ids,), ((backend.trunk.default_view,),), is_alone=True)

    async def __call__(self) -> None:
        """Run it."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._backend.embed, self._batch)


async def no_pass() -> None:
    """What a service that is not the trunk does."""


def of_default_trunk() -> Pass:
    """The engine that `auto` takes on this machine; prepared at the first call."""
    return OnePass(load_backend(prepare(None, cache_dir=paths.cache_dir(), engine="auto", progress=lambda _: None)))


async def serve_rpc(run: Pass, answer: bytes) -> None:
    """Answer each call with *answer* after *run*, until the process ends; says its port."""

    async def hop(request: bytes, _: Any) -> bytes:
        del request
        await run()
        return answer

    await answer_calls(AsyncServer(), SERVICE, "Hop", hop)


def web_app(run: Pass) -> ASGIApp:
    """An application that reads a request, runs *run*, and answers."""
    head = {"type": "http.response.start", "status": 200}
    head["headers"] = [(b"content-type", b"application/json"), (b"content-length", str(len(LABELS)).encode())]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        while (await receive()).get("more_body"):
            pass
        await run()
        await send(head)
        await send({"type": "http.response.body", "body": LABELS})

    return app


async def serve_web(run: Pass) -> None:
    """`web_app` on a port, which is said, until the process ends."""
    config = uvicorn.Config(web_app(run), log_config=None, access_log=False, lifespan="off")
    listener = tcp_socket("127.0.0.1", 0)
    await AnnouncingServer(config, f"listening on {listener.getsockname()[1]}").serve([listener])


class Hops:
    """Calls of both services, one after the other."""

    def __init__(self, trunk_port: int, head_port: int) -> None:
        self._channels = [AsyncChannel(f"127.0.0.1:{port}") for port in (trunk_port, head_port)]
        self._calls = [channel.unary_unary(f"/{SERVICE}/Hop") for channel in self._channels]

    async def __call__(self) -> None:
        """One of each."""
        for call, message in zip(self._calls, (BODY, VECTOR), strict=True):
            await call(message, timeout=TIMEOUT_SECONDS)

    async def close(self) -> None:
        """Both channels."""
        for channel in self._channels:
            await channel.close()


async def serve(role: str, ports: list[int], *, has_pass: bool) -> None:
    """Be one of the processes."""
    if role == "front":
        await serve_web(Hops(*ports))
    elif role == "head":
        await serve_rpc(no_pass, SCORES)
    else:
        run = of_default_trunk() if has_pass else no_pass
        await (serve_web(run) if role == "whole" else serve_rpc(run, VECTOR))


@dataclass(frozen=True, slots=True)
class Layout:
    """How to load it, and the processes it is made of."""

    way: Way
    pids: dict[str, int]


@contextlib.asynccontextmanager
async def layouts(in_flight: int, *, has_pass: bool) -> AsyncIterator[dict[str, Layout]]:
    """All three, running; the trunk's service and the head's are those of both that have them."""
    options = [] if has_pass else ["--no-pass"]
    async with contextlib.AsyncExitStack() as stack:
        log_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        async def started(role: str, *ports: int) -> tuple[int, int]:
            command = [sys.executable, "-m", "perf.micro.hops", *options, "--serve", role, *map(str, ports)]
            child = Child(role, command, ready=READY, log=log_dir / f"{role}.log", env=dict(os.environ))
            match = await child.start(START_SECONDS)
            stack.push_async_callback(child.stop, 5.0)
            return int(match[1]), child.pid

        trunk_port, trunk_pid = await started("trunk")
        head_port, head_pid = await started("head")
        front_port, front_pid = await started("front", trunk_port, head_port)
        whole_port, whole_pid = await started("whole")
        services = {"trunk": trunk_pid, "head": head_pid}
        hops = Hops(trunk_port, head_port)
        stack.push_async_callback(hops.close)

        async def directly(_: int) -> None:
            await hops()

        def over_http(port: int, pids: dict[str, int]) -> Layout:
            target = target_of(f"http://127.0.0.1:{port}", [BODY], "/")
            return Layout(lambda seconds: closed_loop(target, in_flight=in_flight, seconds=seconds, pids=pids), pids)

        yield {
            WHOLE: over_http(whole_port, {"whole": whole_pid}),
            DIRECT: Layout(
                lambda seconds: repeated(directly, texts=1, in_flight=in_flight, seconds=seconds, pids=services), services
            ),
            FRONT: over_http(front_port, {"front": front_pid, **services}),
        }


async def measure(rounds: int, seconds: float, *, in_flight: int = 1, has_pass: bool = True) -> dict[str, list[LoadResult]]:
    """Each layout's rounds."""
    found: dict[str, list[LoadResult]] = {WHOLE: [], DIRECT: [], FRONT: []}
    async with layouts(in_flight, has_pass=has_pass) as running:
        for layout in running.values():
            await layout.way(min(1.0, seconds))
        for _ in range(rounds):
            for name, layout in running.items():
                found[name].append(await layout.way(seconds))
    return found


def lines_of(found: dict[str, list[LoadResult]]) -> list[str]:
    """As they are printed: what each took, and what one takes over another, round by round.

    Raises:
        RuntimeError: calls failed.
    """
    lines = []
    for name, results in found.items():
        if num_errors := sum(result.num_errors for result in results):
            raise RuntimeError(f"{name}: {num_errors} calls failed, so the rest says nothing")
        cpu = [sum(result.cpu_ms_per_text.values()) for result in results]
        lines.append(
            f"{name}: p50 {spread([result.percentile_ms(50) for result in results], '{:.2f} ms')}; "
            f"CPU of all, the caller's too, {spread(cpu, '{:.2f} ms')}"
        )
    for more, less in ((DIRECT, WHOLE), (FRONT, WHOLE), (FRONT, DIRECT)):
        pairs = list(zip(found[more], found[less], strict=True))
        waits = [one.percentile_ms(50) - other.percentile_ms(50) for one, other in pairs]
        cpu = [sum(one.cpu_ms_per_text.values()) - sum(other.cpu_ms_per_text.values()) for one, other in pairs]
        lines.append(f"{more} over {less}: p50 {spread(waits, '{:+.2f} ms')}, CPU {spread(cpu, '{:+.2f} ms')}")
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.hops", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--no-pass", action="store_true", help="the hops alone")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        role, *ports = given.serve
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(serve(role, list(map(int, ports)), has_pass=not given.no_pass))
        return
    console = wide_console()
    what = "no pass" if given.no_pass else f"a pass of {NUM_TOKENS} tokens"
    console.print(f"{what}, {given.in_flight} in flight, {os.cpu_count()} cores")
    found = uvloop.run(measure(given.rounds, given.seconds, in_flight=given.in_flight, has_pass=not given.no_pass))
    for line in lines_of(found):
        console.print(line)


if __name__ == "__main__":
    main()
