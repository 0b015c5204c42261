"""A guard in front of a grpc.aio server: an interceptor for calls and streams."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from clients.wire.guard import Guard, Refusal
from clients.wire.keys import Caller, Scope
from clients.wire.metadata import AUTHORIZATION, RETRY_AFTER_MS

HEALTH_PREFIX: Final = "/grpc.health.v1.Health/"
"""Health stays open: whoever balances load asks for it without a key, and it tells no more than that."""

STATUS: Final = {
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
}

NOT_LISTED: Final = Refusal("permission_denied", "this RPC is open to nobody here")

_NOTHING: Final[tuple[bytes, ...]] = ()

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
NumTexts = Callable[[Any], int]
"""How many texts a request message counts for."""


class GuardedRpc(grpc.aio.ServerInterceptor):
    """Asks each call for a key.

    A stream is asked with each of its messages: a key that is revoked or runs out ends it, once what came before is answered.
    Where a quota is used up a call is refused, and a stream is read no further until there is room again.

    Args:
        guard: who may.
        needs: the scope by full method name, `/package.Service/Method`; one that is not here is refused.
        num_texts: what a message counts for in its caller's quota; None: there are no quotas here.
    """

    def __init__(self, guard: Guard, needs: Mapping[str, Scope], num_texts: NumTexts | None = None) -> None:
        self._guard = guard
        self._needs = needs
        self._num_texts = num_texts

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler where its caller may, and one that refuses otherwise."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(HEALTH_PREFIX):
            return handler
        credentials = _credentials_of(handler_call_details.invocation_metadata)
        needed = self._needs.get(method)
        found = self._guard.caller_of(credentials, needed)
        if isinstance(found, Caller) and needed is None:
            found = NOT_LISTED
        if isinstance(found, Refusal):
            return self._refusing(handler, found)
        if handler.request_streaming and handler.response_streaming:
            return self._watched(handler, credentials, needed)
        if found.rate is not None and self._num_texts is not None and not handler.request_streaming:
            return self._charged(handler, found, self._num_texts)
        return handler

    def _refusing(self, handler: Handler, refusal: Refusal) -> Handler:
        async def refuse(_: Any, context: Any) -> bytes:
            _tell(self._guard.failed(refusal, _host_of(context.peer())), context)
            return b""

        async def refuse_stream(_: Any, context: Any) -> AsyncIterator[bytes]:
            _tell(self._guard.failed(refusal, _host_of(context.peer())), context)
            for nothing in _NOTHING:
                yield nothing

        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
            return make(refuse_stream)
        single = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        return single(refuse)

    def _charged(self, handler: Handler, caller: Caller, num_texts: NumTexts) -> Handler:
        function: Any = handler.unary_unary

        async def call(request: Any, context: Any) -> Any:
            refusal = self._guard.charge(caller, num_texts(request))
            if refusal is None:
                return await function(request, context)
            _tell(refusal, context)
            return None

        def serialize(answer: Any) -> bytes:
            assert handler.response_serializer is not None
            # What is refused has a status and no answer.
            return b"" if answer is None else handler.response_serializer(answer)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, serialize)

    def _watched(self, handler: Handler, credentials: bytes, needed: Scope | None) -> Handler:
        function: Any = handler.stream_stream

        async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            allowed = self._allowed(requests, context, credentials, needed)
            async with contextlib.aclosing(function(allowed, context)) as answers:
                async for answer in answers:
                    yield answer

        return grpc.stream_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)

    async def _allowed(
        self, requests: AsyncIterator[Any], context: Any, credentials: bytes, needed: Scope | None
    ) -> AsyncIterator[Any]:
        """The messages of a stream for as long as its key is good for them."""
        async for request in requests:
            caller = self._guard.caller_of(credentials, needed)
            if isinstance(caller, Refusal):
                _tell(caller, context)
                return
            if self._num_texts is not None:
                # Another call of the same key may have been quicker.
                while (refusal := self._guard.charge(caller, self._num_texts(request))) is not None:  # noqa: ASYNC110
                    await asyncio.sleep(refusal.retry_after or 0.0)
            yield request


def _tell(refusal: Refusal, context: Any) -> None:
    """Not `abort`: what it raises stays, with all frames it went through, until the collector finds it."""
    if refusal.retry_after is not None:
        context.set_trailing_metadata(((RETRY_AFTER_MS, str(max(1, round(refusal.retry_after * 1000)))),))
    context.set_code(STATUS[refusal.code])
    context.set_details(refusal.message)


def _credentials_of(metadata: Any) -> bytes:
    """The Authorization of a call; b"" where there is none, or more than one."""
    found = [value for key, value in metadata or () if key == AUTHORIZATION]
    if len(found) != 1:
        return b""
    return found[0] if isinstance(found[0], bytes) else found[0].encode("latin-1", "replace")


def _host_of(peer: str) -> str:
    """The address in `ipv4:1.2.3.4:5678`, as gRPC writes it, without its port."""
    return peer.rpartition(":")[0]
