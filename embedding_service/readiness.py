"""Whether work may be sent here, and gRPC health telling the same."""

import asyncio
import functools
from collections.abc import Sequence
from typing import Final

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from clients.wire.metadata import EMBEDDING_SERVICE
from embedding_service.infer import HostedTrunk


class Readiness:
    """Of the service, and of each trunk by "trunk/NAME"; *tables* are names that are always as ready as the service.

    A trunk whose last forward pass failed is NOT_SERVING until one goes well.
    """

    def __init__(self, health: health_aio.HealthServicer, trunks: Sequence[HostedTrunk], tables: Sequence[str]) -> None:
        self.is_ready = False
        self._always = (EMBEDDING_SERVICE, "", *(f"trunk/{name}" for name in tables))
        self._health = health
        self._trunks = trunks
        self._telling: set[asyncio.Task[None]] = set()
        for trunk in trunks:
            trunk.batcher.on_health = functools.partial(self._trunk_changed, trunk)

    async def turn(self, *, on: bool) -> None:
        """Work may be sent here from now on, or no longer."""
        self.is_ready = on
        for name in self._always:
            await self._health.set(name, _STATUS[on])
        for trunk in self._trunks:
            await self._tell(trunk)

    def may_send(self) -> bool:
        """Whether all trunks can serve."""
        return self.is_ready and all(trunk.batcher.is_healthy for trunk in self._trunks)

    def _trunk_changed(self, trunk: HostedTrunk) -> None:
        telling = asyncio.ensure_future(self._tell(trunk))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell(self, trunk: HostedTrunk) -> None:
        await self._health.set(f"trunk/{trunk.spec.name}", _STATUS[self.is_ready and trunk.batcher.is_healthy])


_STATUS: Final = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}
