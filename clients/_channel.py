"""gRPC as the clients use it: bytes in, bytes out, errors of our tree, and the channel options in one place."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, cast

import grpc
import grpc.aio

from clients._config import Tls
from clients._deadline import retry_after_seconds
from clients._errors import GRPC_ERRORS, Cancelled, InvalidRequest, ServerFault, TrunklineError
from clients.wire.metadata import AUTHORIZATION, MAX_MESSAGE_BYTES, REQUEST_ID, RETRY_AFTER_MS, TRACEPARENT
from clients.wire.rpc.channel import AsyncChannel
from clients.wire.rpc.tls import client_context

Metadata = tuple[tuple[str, str], ...]
ChannelOptions = Sequence[tuple[str, str | int]]


class Method(Protocol):
    """One RPC: a serialised request to a serialised response within *timeout* seconds; the ids may be ""."""

    def __call__(self, request: bytes, timeout: float, request_id: str = "", traceparent: str = "") -> bytes: ...


class AsyncMethod(Protocol):
    """`Method`'s twin."""

    def __call__(self, request: bytes, timeout: float, request_id: str = "", traceparent: str = "") -> Awaitable[bytes]: ...


CHANNEL_OPTIONS: Final[ChannelOptions] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A server that vanished without a word (power, network) is noticed within 15 s of an unanswered call.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A killed server that is back is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Retrying is the caller's decision: only it knows what else waits, and how long there is.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
)
LOOPBACK_OPTIONS: Final[ChannelOptions] = (("grpc.enable_http_proxy", 0),)


def is_loopback(address: str) -> bool:
    """Whether *address* (host, host:port or unix:path) is on this machine; no proxy has business there."""
    if address.startswith(("unix:", "[::1]")) or address == "::1":
        return True
    host = address.partition(":")[0]
    return host == "localhost" or host.startswith("127.")


def channel_options(address: str, options: ChannelOptions = ()) -> list[tuple[str, str | int]]:
    """The options for a channel to *address*; *options* win over ours, coming last."""
    loopback = LOOPBACK_OPTIONS if is_loopback(address) else ()
    return [*CHANNEL_OPTIONS, *loopback, *options]


def open_channel(address: str, options: ChannelOptions, tls: Tls | None) -> grpc.Channel:
    """A channel to *address*; by *tls*, or in the clear where there is none."""
    prepared = channel_options(address, [*_name_option(tls), *options])
    if tls is None:
        return grpc.insecure_channel(address, options=prepared)
    return grpc.secure_channel(address, _credentials(tls), options=prepared)


class AsyncRpcChannel(Protocol):
    """What the clients need of a channel: ours, or grpc.aio's."""

    def unary_unary(self, path: str) -> Callable[..., Awaitable[bytes]]:
        """A method of one message each way."""

    def unary_stream(self, path: str) -> Callable[..., Any]:
        """A method that answers many."""

    def stream_stream(self, path: str) -> Callable[..., Any]:
        """A method of many each way."""

    async def close(self) -> None:
        """End it."""


def open_async_channel(address: str, options: ChannelOptions, tls: Tls | None) -> AsyncRpcChannel:
    """`open_channel`'s twin: on the event loop itself, unless there are *options*, which are grpc's own and need its channel.

    Raises:
        InvalidRequest: *address* or *tls* is not one.
    """
    if options:
        return cast("AsyncRpcChannel", _grpc_channel(address, options, tls))
    if tls is not None:
        _check_pair(tls)
    try:
        context = None if tls is None else client_context(tls.root_certificates, tls.certificate, tls.private_key)
        return AsyncChannel(address, tls=context, server_name="" if tls is None else tls.server_name)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _grpc_channel(address: str, options: ChannelOptions, tls: Tls | None) -> Any:
    prepared = channel_options(address, [*_name_option(tls), *options])
    if tls is None:
        return grpc.aio.insecure_channel(address, options=prepared)
    return grpc.aio.secure_channel(address, _credentials(tls), options=prepared)


def _check_pair(tls: Tls) -> None:
    if (tls.certificate is None) != (tls.private_key is None):
        raise InvalidRequest("a client's certificate and its private key go together; give both or neither")


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    _check_pair(tls)
    return grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate)


def _name_option(tls: Tls | None) -> ChannelOptions:
    return (("grpc.ssl_target_name_override", tls.server_name),) if tls is not None and tls.server_name else ()


def error_for_status(
    code: grpc.StatusCode, message: str, *, retry_after: float | None = None, request_id: str = ""
) -> TrunklineError:
    """The error of our tree for a gRPC status."""
    return GRPC_ERRORS.get(code, ServerFault)(
        message or f"the service answered {code.name}", retry_after=retry_after, request_id=request_id
    )


def error_for_rpc(error: grpc.RpcError, request_id: str = "") -> TrunklineError:
    """The error of our tree for what grpc, sync or asyncio, raised: both kinds carry the outcome of the call."""
    if not isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return ServerFault(f"the call failed: {error!r}", request_id=request_id)
    trailing = {key: value for key, value in error.trailing_metadata() or ()}  # noqa: C416 (aio's is not a mapping)
    return error_for_status(
        error.code(),
        error.details() or "",
        retry_after=retry_after_seconds(trailing.get(RETRY_AFTER_MS)),
        request_id=request_id,
    )


def key_metadata(api_key: str | None) -> Metadata:
    """What every call of a client with *api_key* carries.

    Raises:
        InvalidRequest: it cannot travel in a header.
    """
    return () if api_key is None else ((AUTHORIZATION, bearer(api_key)),)


def bearer(api_key: str) -> str:
    """*api_key* as the value of an Authorization header.

    Raises:
        InvalidRequest: it cannot be one; the message does not show it.
    """
    if not (api_key.isascii() and api_key.isprintable() and api_key and " " not in api_key):
        raise InvalidRequest("an api_key is printable ASCII without spaces")
    return f"Bearer {api_key}"


def call_metadata(request_id: str, traceparent: str = "", always: Metadata = ()) -> Metadata | None:
    """What a call carries beside its request: *always*, who asks, and W3C's trace and parent, where they are known.

    Raises:
        InvalidRequest: one of them has characters that cannot travel in a header.
    """
    if not request_id and not traceparent:
        return always or None
    found = tuple((name, value) for name, value in ((REQUEST_ID, request_id), (TRACEPARENT, traceparent)) if value)
    for _, value in found:
        if not (value.isascii() and value.isprintable()):
            raise InvalidRequest("a request id and a traceparent are printable ASCII")
    return (*always, *found)


def async_method(channel: AsyncRpcChannel, service: str, name: str, always: Metadata = ()) -> AsyncMethod:
    """One RPC of *channel*, prepared once: making it anew for each call would cost more than the call's own Python.

    *always*: what each call carries; see `key_metadata`.
    """
    call = channel.unary_unary(f"/{service}/{name}")

    async def invoke(request: bytes, timeout: float, request_id: str = "", traceparent: str = "") -> bytes:
        metadata = call_metadata(request_id, traceparent, always)
        try:
            response = await call(request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_for_rpc(error, request_id) from error
        except asyncio.CancelledError:
            # Closing the channel looks like a cancelled task from here; only a task that was told to end may end so.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Cancelled("the client was closed during the call", request_id=request_id) from None
        return response

    return invoke


def sync_method(channel: grpc.Channel, service: str, name: str, always: Metadata = ()) -> Method:
    """`async_method`'s twin over a blocking channel."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{service}/{name}")

    def invoke(request: bytes, timeout: float, request_id: str = "", traceparent: str = "") -> bytes:
        metadata = call_metadata(request_id, traceparent, always)
        try:
            response: bytes = call(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise error_for_rpc(error, request_id) from error
        except ValueError as error:
            # What grpc makes of a call on a channel that was closed, or that is a parent's, in a forked process.
            raise Cancelled(f"the client is closed: {error}", request_id=request_id) from None
        return response

    return invoke
