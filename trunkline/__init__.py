"""The front door: the `trunkline` command, and `from trunkline import Client`."""

from clients import Client

__all__ = ["Client"]
