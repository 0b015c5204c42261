"""Calling heads: TensorFlow Serving's own gRPC API, whoever serves it. The twins differ in waiting only."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Self

from clients._channel import (
    ChannelOptions,
    async_method,
    key_metadata,
    open_async_channel,
    open_channel,
    sync_method,
)
from clients._config import HEAD_TIMEOUT, Tls
from clients._heads_wire import (
    Array,
    Prediction,
    VersionStatus,
    build_metadata,
    build_predict,
    build_reload,
    build_status,
    check_reload,
    parse_metadata,
    parse_predict,
    parse_status,
)
from clients._health import watch_health
from clients.wire.metadata import MODEL_SERVICE, PREDICTION_SERVICE
from clients.wire.tfs import serving_pb2

__all__ = ["AsyncHeadClient", "HeadClient", "Prediction", "VersionStatus"]


class AsyncHeadClient:
    """A head server, from asyncio. One per process: calls share a connection, and may run at the same time.

    IMPORTANT: make it where the event loop runs.

    Args:
        address: host:port, or unix:path.
        timeout: seconds a call may take that is given no other.
        options: gRPC channel options; with any, grpc.aio carries the calls, in place of the faster channel of ours.
        api_key: sent with every call, for a service that has keys; None sends none.
        tls: certificates, for a service that takes TLS; None calls in the clear.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = HEAD_TIMEOUT,
        options: ChannelOptions = (),
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._timeout = timeout
        key = key_metadata(api_key)
        self._channel = open_async_channel(address, options, tls)
        self._predict = async_method(self._channel, PREDICTION_SERVICE, "Predict", key)
        self._metadata = async_method(self._channel, PREDICTION_SERVICE, "GetModelMetadata", key)
        self._status = async_method(self._channel, MODEL_SERVICE, "GetModelStatus", key)
        self._reload = async_method(self._channel, MODEL_SERVICE, "HandleReloadConfigRequest", key)

    async def predict(
        self,
        head: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        label: str | None = None,
        signature_name: str = "",
        output_filter: Sequence[str] = (),
        timeout: float | None = None,
        request_id: str = "",
        traceparent: str = "",
    ) -> Prediction:
        """Run one signature of a head.

        Args:
            head: its name.
            inputs: arrays by input name, such as `embedding`, float32 [batch, width].
            version: which version; None, and no *label*: the latest.
            label: which version, by its label.
            signature_name: "" is `serving_default`.
            output_filter: the outputs to answer; none means all.
            timeout: seconds; None is the client's.
            request_id: names the call in the server's logs.
            traceparent: W3C's header of the trace that the call belongs to.

        Raises:
            TrunklineError: see `clients` for the tree.
        """
        request = build_predict(
            head,
            inputs,
            version=version,
            label=label,
            signature_name=signature_name,
            output_filter=output_filter,
        )
        response = await self._predict(request, self._patience(timeout), request_id, traceparent)
        return parse_predict(response, version, output_filter)

    async def status(self, head: str, *, version: int | None = None, timeout: float | None = None) -> tuple[VersionStatus, ...]:
        """The states of a head's versions, or of *version* alone; NotFound where there are none."""
        return parse_status(await self._status(build_status(head, version), self._patience(timeout), ""))

    async def metadata(
        self, head: str, *, version: int | None = None, label: str | None = None, timeout: float | None = None
    ) -> dict[str, bytes]:
        """A head's signatures: serialised tensorflow.SignatureDefs by name."""
        return parse_metadata(await self._metadata(build_metadata(head, version, label), self._patience(timeout), ""))

    async def reload_config(self, config: serving_pb2.ModelServerConfig, *, timeout: float | None = None) -> None:
        """Replace the server's whole configuration: a head that *config* does not name is unloaded."""
        check_reload(await self._reload(build_reload(config), self._patience(timeout), ""))

    def watch_health(self) -> AsyncGenerator[bool, None]:
        """Whether the server takes calls, now and at every change; ends at once where it has no health service.

        Raises:
            TrunklineError: the connection ended, or there is none.
        """
        return watch_health(self._channel)

    def _patience(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    async def close(self) -> None:
        """End the connection; calls under way raise Cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class HeadClient:
    """A head server, from threads: `AsyncHeadClient`'s twin."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float = HEAD_TIMEOUT,
        options: ChannelOptions = (),
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._timeout = timeout
        key = key_metadata(api_key)
        self._channel = open_channel(address, options, tls)
        self._predict = sync_method(self._channel, PREDICTION_SERVICE, "Predict", key)
        self._metadata = sync_method(self._channel, PREDICTION_SERVICE, "GetModelMetadata", key)
        self._status = sync_method(self._channel, MODEL_SERVICE, "GetModelStatus", key)
        self._reload = sync_method(self._channel, MODEL_SERVICE, "HandleReloadConfigRequest", key)

    def predict(
        self,
        head: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        label: str | None = None,
        signature_name: str = "",
        output_filter: Sequence[str] = (),
        timeout: float | None = None,
        request_id: str = "",
        traceparent: str = "",
    ) -> Prediction:
        """See `AsyncHeadClient.predict`."""
        request = build_predict(
            head,
            inputs,
            version=version,
            label=label,
            signature_name=signature_name,
            output_filter=output_filter,
        )
        response = self._predict(request, self._patience(timeout), request_id, traceparent)
        return parse_predict(response, version, output_filter)

    def status(self, head: str, *, version: int | None = None, timeout: float | None = None) -> tuple[VersionStatus, ...]:
        """See `AsyncHeadClient.status`."""
        return parse_status(self._status(build_status(head, version), self._patience(timeout), ""))

    def metadata(
        self, head: str, *, version: int | None = None, label: str | None = None, timeout: float | None = None
    ) -> dict[str, bytes]:
        """See `AsyncHeadClient.metadata`."""
        return parse_metadata(self._metadata(build_metadata(head, version, label), self._patience(timeout), ""))

    def reload_config(self, config: serving_pb2.ModelServerConfig, *, timeout: float | None = None) -> None:
        """See `AsyncHeadClient.reload_config`."""
        check_reload(self._reload(build_reload(config), self._patience(timeout), ""))

    def _patience(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    def close(self) -> None:
        """End the connection; calls under way raise Cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
