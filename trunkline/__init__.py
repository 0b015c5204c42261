"""The front door: the `trunkline` command, and `from trunkline import Client` or any other of the clients."""

from clients import AsyncClient, AsyncEmbeddingClient, AsyncHeadClient, Client, EmbeddingClient, HeadClient

__all__ = ["AsyncClient", "AsyncEmbeddingClient", "AsyncHeadClient", "Client", "EmbeddingClient", "HeadClient"]
