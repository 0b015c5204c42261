"""How these tests wait for what happens elsewhere, and for calls that are to fail."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import pytest


async def until(is_so: Callable[[], object]) -> None:
    """Wait for it, not for ever."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.005)


async def refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error of a call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value
