import asyncio
import socket

import pytest

from perf.measuring.costs import footprint_of, loopback_bytes, wire_of
from perf.measuring.loads import measure_load
from perf.results import Load, Run
from tests.perf.measuring.fakes import WORKLOAD, running_of


async def test_memory_is_told_by_process_and_without_those_that_ended() -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60")
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    try:
        found = footprint_of(running_of(num_heads=8, pids={"server": child.pid, "gone": gone.pid}))
    finally:
        child.kill()
        await child.wait()

    assert {"server"} == set(found.rss_bytes)
    assert found.rss_bytes["server"] > 0
    assert ("fake", 8, 0.5, ("a note",)) == (found.system, found.num_heads, found.start_seconds, found.notes)


async def test_bytes_on_the_wire_are_those_between_the_counts() -> None:
    runs: list[Run] = []

    async def measure() -> Run:
        runs.append(await measure_load(running_of(), WORKLOAD, Load(kind="closed"), seconds=0.05, round_number=0))
        return runs[0]

    counts = iter([1_000, 61_000])
    wire = await wire_of(measure, lambda: next(counts))

    assert wire.bytes_per_text == pytest.approx(60_000 / runs[0].num_texts)


def test_what_is_sent_over_the_loopback_is_counted() -> None:
    before = loopback_bytes()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sender:
        receiver, _ = listener.accept()
        with receiver:
            sender.sendall(b"x" * 10_000)
            assert receiver.recv(20_000)

    assert loopback_bytes() - before >= 10_000
