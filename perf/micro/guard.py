"""`python -m perf.micro.guard`: what asking for a key costs the gateway, in microseconds a request.

An application that does nothing is called with and without the guard, by a good key that was seen before, by one that was not,
and by a bad one. Headers are those of an ordinary client.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from clients.wire.guard import Guard, Refusal
from clients.wire.guarded_http import GuardedHttp, RouteTable
from clients.wire.keys import KeysFile, add_key

ROUNDS: Final = 20_000
REPEATS: Final = 5
Call = Callable[[], Awaitable[None]]


async def _nothing(*_: Any) -> None:
    pass


def _told(refusal: Refusal, _: Any) -> tuple[bytes, dict[str, str]]:
    return refusal.message.encode(), {}


def _call(app: Callable[..., Awaitable[None]], key: str) -> Call:
    headers = [(f"x-header-{number}".encode(), b"value") for number in range(7)]
    headers += [(b"content-type", b"application/json")]

    async def call() -> None:
        # A server makes the value anew for each request.
        authorization = (b"authorization", f"Bearer {key}".encode())
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/classify",
            "headers": [*headers, authorization],
            "client": ("::1", 1),
        }
        await app(scope, _nothing, _nothing)

    return call


async def _microseconds(call: Call) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for _ in range(ROUNDS):
            await call()
        best = min(best, time.perf_counter() - begin)
    return best / ROUNDS * 1e6


def guarded_calls(folder: Path) -> dict[str, Call]:
    """One request each: without a guard, and with one by the key its name tells of. The file of keys is made in *folder*."""
    path = folder / "keys.json"
    key = add_key(path, "ann", ("classify",))
    keys = KeysFile(path)
    app = GuardedHttp(_nothing, Guard(keys), RouteTable({"/v1/classify": {"POST": "classify"}}).needed, _told)

    async def unseen(*given: Any) -> None:
        keys._known.clear()  # noqa: SLF001 (as after a change of the file)
        await app(*given)

    called = {"none": _call(_nothing, key), "seen before": _call(app, key)}
    return called | {"not seen": _call(unseen, key), "bad": _call(app, key[:-1])}


async def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        calls = guarded_calls(Path(folder))
        bare = await _microseconds(calls.pop("none"))
        for name, call in calls.items():
            print(f"{name:<12} {await _microseconds(call) - bare:6.2f} µs")


if __name__ == "__main__":
    asyncio.run(main())
