"""gRPC health as a caller sees it: the service grpc.health.v1.Health, asked about the whole server.

Its messages are a few bytes, written and read by hand: HealthCheckRequest for the whole server is empty, and
HealthCheckResponse has one field, number 1, the status: 1 is SERVING
(https://github.com/grpc/grpc/blob/master/src/proto/grpc/health/v1/health.proto).
"""

from collections.abc import AsyncGenerator
from typing import Final

import grpc
import grpc.aio

from clients._channel import AsyncRpcChannel, error_for_rpc

WATCH: Final = "/grpc.health.v1.Health/Watch"
_SERVING: Final = b"\x08\x01"


async def watch_health(channel: AsyncRpcChannel, metadata: tuple[tuple[str, str], ...] = ()) -> AsyncGenerator[bool, None]:
    """Whether the server takes calls, now and at every change; ends at once where it has no health service.

    *metadata* is what the call carries.

    IMPORTANT: close it (`aclose`) when it is left early.

    Raises:
        TrunklineError: the connection ended, or there is none.
    """
    call = channel.unary_stream(WATCH)(b"", metadata=metadata or None)
    try:
        async for response in call:
            yield response == _SERVING
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise error_for_rpc(error) from error
    finally:
        call.cancel()
