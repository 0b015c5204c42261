"""Calling the gateway: raw text in, labels out. The twins differ in waiting only."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import Any, Final, Self, Unpack

import httpx

from clients._channel import bearer, is_loopback
from clients._config import GATEWAY_CONNECTIONS, GATEWAY_TIMEOUT, STREAM_RETRY
from clients._deadline import Deadline
from clients._errors import Cancelled, DeadlineExceeded, Unavailable
from clients._gateway_wire import (
    ClassifyOptions,
    HeadError,
    HeadResult,
    Result,
    StreamOptions,
    TextError,
    Unanswered,
    build_classify,
    error_for_httpx,
    error_for_response,
    parse_classify,
    parse_heads,
    parse_ready,
    patience_of,
    request_headers,
)
from clients.wire.metadata import AUTHORIZATION

__all__ = ["AsyncClient", "Client", "HeadError", "HeadResult", "Result", "TextError"]

DEFAULT_URL: Final = "http://127.0.0.1:8080"


@contextmanager
def _our_errors(http: httpx.Client | httpx.AsyncClient | None = None) -> Iterator[None]:
    if http is not None and http.is_closed:
        raise Cancelled("the client is closed")
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise error_for_httpx(error) from error


class Attempts:
    """How long to go on without success: *patience* seconds, after which the last error is raised."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._count = 0
        self._until = Deadline.after(patience)

    def succeeded(self) -> None:
        """There was an answer."""
        self._count = 0
        self._until = Deadline.after(self._patience)

    def failed(self, error: Unavailable) -> float:
        """Seconds to wait before the next attempt; raises *error* where there is no time for one."""
        delay = STREAM_RETRY.delay(self._count, error.retry_after)
        if delay >= self._until.remaining():
            raise error
        self._count += 1
        return delay


async def _by_and_by(texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[str]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
    else:
        for text in texts:
            yield text


def _trusts_environment(base_url: str) -> bool:
    """Whether proxies named by the environment may carry requests to *base_url*."""
    return not is_loopback(httpx.URL(base_url).host)


class Client:
    """The gateway, from threads. Calls share connections and may run at the same time; beyond a hundred they wait for each other.

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
                limits=GATEWAY_CONNECTIONS,
                trust_env=_trusts_environment(base_url),
            )

    def classify(
        self, text: str | Sequence[str], *, timeout: float | None = None, **options: Unpack[ClassifyOptions]
    ) -> list[Result]:
        """Classify one text or several.

        Args:
            text: one text, or a list.
            timeout: seconds; None is the client's.
            options: which heads to ask, and what of them; see `ClassifyOptions`.

        Returns:
            One result a text, in order; a head that failed has a `HeadError` there, and the others their answers.

        Raises:
            TrunklineError: nothing could be classified; see `clients` for the tree.
        """
        body = build_classify(text, options)
        response = self._send("POST", "/v1/classify", timeout, body, reuse=options.get("reuse"))
        return parse_classify(response, 1 if isinstance(text, str) else len(text))

    def classify_stream(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[StreamOptions]
    ) -> Iterator[Result | TextError]:
        """Classify as many texts as there are, in order; a text that cannot be has an error of its own.

        Texts are taken as answers are; some hundred are under way at a time. Where the connection breaks, or the gateway is full
        or stops, what was not answered is sent again.

        Args:
            texts: taken one by one.
            timeout: seconds without any answer after which to give up; None is the client's.
            options: see `StreamOptions`.

        Raises:
            TrunklineError: there is no getting on; what was answered was given.
        """
        waiting = Unanswered(options)
        for text in texts:
            waiting.add(text)
            if waiting.is_full:
                yield from self._answered(waiting, timeout)
        yield from self._answered(waiting, timeout)

    def _answered(self, waiting: Unanswered, timeout: float | None) -> Iterator[Result | TextError]:
        patience = patience_of(timeout, self._timeout)
        attempts = Attempts(patience)
        while waiting:
            try:
                for results in self._exchange(waiting, patience):
                    yield from results
                    # After that: what the caller does with them takes none of our time.
                    attempts.succeeded()
            except Unavailable as error:
                time.sleep(attempts.failed(error))

    def _exchange(self, waiting: Unanswered, patience: float) -> Iterator[list[Result | TextError]]:
        """Send all that waits, and read what comes back; Unavailable where that is not all."""
        with _our_errors(self._http):
            content, headers = waiting.body(), request_headers(patience)
            with self._http.stream("POST", waiting.path, content=content, headers=headers, timeout=patience) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise error_for_response(response)
                for part in response.iter_bytes():
                    yield from waiting.settle(part)
        if waiting:
            raise Unavailable("the gateway's answer ended early")

    def heads(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """The live heads, as the gateway describes them."""
        return parse_heads(self._send("GET", "/v1/heads", timeout))

    def ready(self, *, timeout: float | None = None) -> bool:
        """Whether the gateway can be reached and says that it can serve."""
        try:
            return parse_ready(self._send("GET", "/readyz", timeout))
        except (Unavailable, DeadlineExceeded):
            return False

    def _send(
        self, method: str, path: str, timeout: float | None, body: bytes | None = None, *, reuse: bool | None = None
    ) -> httpx.Response:
        patience = patience_of(timeout, self._timeout)
        headers = request_headers(patience, reuse=reuse)
        with _our_errors(self._http):
            return self._http.request(method, path, content=body, headers=headers, timeout=patience)

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
                limits=GATEWAY_CONNECTIONS,
                trust_env=_trusts_environment(base_url),
            )

    async def classify(
        self, text: str | Sequence[str], *, timeout: float | None = None, **options: Unpack[ClassifyOptions]
    ) -> list[Result]:
        """See `Client.classify`."""
        body = build_classify(text, options)
        response = await self._send("POST", "/v1/classify", timeout, body, reuse=options.get("reuse"))
        return parse_classify(response, 1 if isinstance(text, str) else len(text))

    async def classify_stream(
        self, texts: Iterable[str] | AsyncIterable[str], *, timeout: float | None = None, **options: Unpack[StreamOptions]
    ) -> AsyncGenerator[Result | TextError, None]:
        """See `Client.classify_stream`; *texts* may come by and by. Who stops early closes it (`contextlib.aclosing`)."""
        waiting = Unanswered(options)
        async for text in _by_and_by(texts):
            waiting.add(text)
            if waiting.is_full:
                async with aclosing(self._answered(waiting, timeout)) as results:
                    async for result in results:
                        yield result
        async with aclosing(self._answered(waiting, timeout)) as results:
            async for result in results:
                yield result

    async def _answered(self, waiting: Unanswered, timeout: float | None) -> AsyncGenerator[Result | TextError, None]:
        patience = patience_of(timeout, self._timeout)
        attempts = Attempts(patience)
        while waiting:
            try:
                async with aclosing(self._exchange(waiting, patience)) as exchange:
                    async for results in exchange:
                        for result in results:
                            yield result
                        attempts.succeeded()
            except Unavailable as error:
                await asyncio.sleep(attempts.failed(error))

    async def _exchange(self, waiting: Unanswered, patience: float) -> AsyncGenerator[list[Result | TextError], None]:
        """See `Client._exchange`."""
        with _our_errors(self._http):
            content, headers = waiting.body(), request_headers(patience)
            async with self._http.stream("POST", waiting.path, content=content, headers=headers, timeout=patience) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise error_for_response(response)
                async for part in response.aiter_bytes():
                    for results in waiting.settle(part):
                        yield results
        if waiting:
            raise Unavailable("the gateway's answer ended early")

    async def heads(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """See `Client.heads`."""
        return parse_heads(await self._send("GET", "/v1/heads", timeout))

    async def ready(self, *, timeout: float | None = None) -> bool:
        """See `Client.ready`."""
        try:
            return parse_ready(await self._send("GET", "/readyz", timeout))
        except (Unavailable, DeadlineExceeded):
            return False

    async def _send(
        self, method: str, path: str, timeout: float | None, body: bytes | None = None, *, reuse: bool | None = None
    ) -> httpx.Response:
        patience = patience_of(timeout, self._timeout)
        headers = request_headers(patience, reuse=reuse)
        try:
            with _our_errors(self._http):
                async with asyncio.timeout(patience):
                    return await self._http.request(method, path, content=body, headers=headers, timeout=patience)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {patience:g} s") from None

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
