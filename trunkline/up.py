"""`trunkline up`: the local stack in the foreground."""

import asyncio
from collections.abc import Callable

from trunkline import paths
from trunkline.bundles import cancelled, keeper_of
from trunkline.demo import address_lines, ensure_heads
from trunkline.demo_data import prepare_demo_data
from trunkline.stack import Stack, forget, record, refuse_second
from trunkline.training import LiveStack


async def run_up(stack: Stack, *, demo_heads: bool, say: Callable[[str], None]) -> None:
    """Start, say where everything is, and serve until cancelled; then drain and stop.

    Raises:
        StackError: a part could not start, or a stack runs already; that one is left as it is.
    """
    where = paths.home() / "stack.json"
    refuse_second(where)
    demo = prepare_demo_data(stack.settings.cache_dir, say) if demo_heads else []
    bundling: asyncio.Task[None] | None = None
    try:
        addresses = await stack.start()
        if demo:
            live = LiveStack.of(addresses, stack.settings.location, stack.settings.cache_dir)
            await asyncio.to_thread(ensure_heads, demo, live, say)
        record(where, addresses)
        log = stack.settings.log_dir / "bundling.log"
        bundling = asyncio.create_task(keeper_of(stack.settings.location, addresses.heads_grpc, log, say).run())
        for line in address_lines(addresses)[:-1]:
            say(line)
        body = '{"text": "Oil prices rose as the central bank cut interest rates"}'
        say("ask it, from another terminal:")
        say(f"curl -s {addresses.gateway}/v1/classify -H 'content-type: application/json' -d '{body}'")
        say(f"ready {addresses.gateway}")
        await asyncio.Event().wait()
    finally:
        if bundling is not None:
            await cancelled(bundling)
        forget(where)
        say("stopping the services")
        await asyncio.shield(stack.stop())
