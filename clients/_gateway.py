"""Calling the gateway: raw text in, labels out. The twins differ in waiting only."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import httpx

from clients._channel import bearer, is_loopback
from clients._config import GATEWAY_TIMEOUT
from clients._errors import DeadlineExceeded, Unavailable
from clients._gateway_wire import (
    HeadError,
    HeadResult,
    Result,
    build_classify,
    error_for_httpx,
    parse_classify,
    parse_heads,
    parse_ready,
    request_headers,
)
from clients.wire.metadata import AUTHORIZATION

__all__ = ["AsyncClient", "Client", "HeadError", "HeadResult", "Result"]

DEFAULT_URL: Final = "http://127.0.0.1:8080"


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise error_for_httpx(error) from error


def _trusts_environment(base_url: str) -> bool:
    """Whether proxies named by the environment may carry requests to *base_url*."""
    return not is_loopback(httpx.URL(base_url).host)


class Client:
    """The gateway, from threads. Calls share connections and may run at the same time.

    Usage:
        with Client() as client:
            [result] = client.classify("a text")
            result.heads["topic"].label

    Args:
        base_url: where the gateway is.
        timeout: seconds for a call that is given no other. The gateway is told, and ends in time; should it not,
            each step of the exchange (connect, write, read) ends after as long.
        api_key: sent with every request, for a gateway that has keys; None sends none.
        transport: another way to send requests than over the network, for tests.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float = GATEWAY_TIMEOUT,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._timeout = timeout
        with _our_errors():
            self._http = httpx.Client(
                base_url=base_url,
                timeout=timeout,
                headers={} if api_key is None else {AUTHORIZATION: bearer(api_key)},
                transport=transport,
                trust_env=_trusts_environment(base_url),
            )

    def classify(
        self, text: str | Sequence[str], *, heads: Sequence[str] | None = None, timeout: float | None = None
    ) -> list[Result]:
        """Classify one text or several.

        Args:
            text: one text, or a list.
            heads: which heads to ask; None is the gateway's default set.
            timeout: seconds; None is the client's.

        Returns:
            One result a text, in order; a head that failed has a `HeadError` there, and the others their answers.

        Raises:
            TrunklineError: nothing could be classified; see `clients` for the tree.
        """
        body = build_classify(text, heads)
        response = self._send("POST", "/v1/classify", timeout, body)
        return parse_classify(response, 1 if isinstance(text, str) else len(text))

    def heads(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """The live heads, as the gateway describes them."""
        return parse_heads(self._send("GET", "/v1/heads", timeout))

    def ready(self, *, timeout: float | None = None) -> bool:
        """Whether the gateway can be reached and says that it can serve."""
        try:
            return parse_ready(self._send("GET", "/readyz", timeout))
        except (Unavailable, DeadlineExceeded):
            return False

    def _send(self, method: str, path: str, timeout: float | None, body: bytes | None = None) -> httpx.Response:
        patience = self._timeout if timeout is None else timeout
        with _our_errors():
            return self._http.request(method, path, content=body, headers=request_headers(patience), timeout=patience)

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """The gateway, from asyncio: `Client`'s twin. A call ends after its timeout, whatever the gateway does."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float = GATEWAY_TIMEOUT,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout = timeout
        with _our_errors():
            self._http = httpx.AsyncClient(
                base_url=base_url,
                timeout=timeout,
                headers={} if api_key is None else {AUTHORIZATION: bearer(api_key)},
                transport=transport,
                trust_env=_trusts_environment(base_url),
            )

    async def classify(
        self, text: str | Sequence[str], *, heads: Sequence[str] | None = None, timeout: float | None = None
    ) -> list[Result]:
        """See `Client.classify`."""
        body = build_classify(text, heads)
        response = await self._send("POST", "/v1/classify", timeout, body)
        return parse_classify(response, 1 if isinstance(text, str) else len(text))

    async def heads(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """See `Client.heads`."""
        return parse_heads(await self._send("GET", "/v1/heads", timeout))

    async def ready(self, *, timeout: float | None = None) -> bool:
        """See `Client.ready`."""
        try:
            return parse_ready(await self._send("GET", "/readyz", timeout))
        except (Unavailable, DeadlineExceeded):
            return False

    async def _send(self, method: str, path: str, timeout: float | None, body: bytes | None = None) -> httpx.Response:
        patience = self._timeout if timeout is None else timeout
        try:
            with _our_errors():
                async with asyncio.timeout(patience):
                    return await self._http.request(
                        method, path, content=body, headers=request_headers(patience), timeout=patience
                    )
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {patience:g} s") from None

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
