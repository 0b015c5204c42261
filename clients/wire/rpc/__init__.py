"""gRPC over asyncio: HTTP/2 on the event loop's own sockets, with the faces of `grpc.aio.Channel` and `grpc.aio.Server`.

grpc.aio does its input and output in threads of its own, and on a machine that is not busy each message wakes several of them one
after another: a call that does nothing takes 1.5 ms there and 0.25 here. See docs/decisions/0021-grpc-on-the-event-loop.md.

- frames      bytes to frames and back (RFC 9113, 4 and 6)
- headers     header blocks (RFC 7541), and what gRPC says in them
- messages    the bytes of a stream to messages and back
- connection  flow control, streams, settings: what both ends share
- turns       what is written in one turn of the loop leaves together
- sockets     addresses, and where a server listens; tls: its contexts
- channel     the calling end, over client_connection and client_call; stream_call is a stream as its caller holds it
- server      the answering end, over server_connection and server_call; server_context is a call as its handler sees it
"""
