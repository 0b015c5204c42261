"""The front door: the `trunkline` command, and `from trunkline import Client` or any other of the clients."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clients import AsyncClient, AsyncEmbeddingClient, AsyncHeadClient, Client, EmbeddingClient, HeadClient

__all__ = ["AsyncClient", "AsyncEmbeddingClient", "AsyncHeadClient", "Client", "EmbeddingClient", "HeadClient"]


def __getattr__(name: str) -> Any:
    """A client, imported when it is asked for: the command comes by here before it can mind Ctrl-C."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import clients  # noqa: PLC0415

    return getattr(clients, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
