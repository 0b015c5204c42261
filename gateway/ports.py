"""Everything the pipeline knows of the world outside, in one short file. Adapters and fakes implement these Protocols."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clients import Deadline
from clients.wire.catalogue import Manifest, View
from clients.wire.text import Encoded, TextEncoder

FloatArray = NDArray[np.float32]

Rows = Sequence[FloatArray]
"""One array a text: float32 [width], or [tokens, width] where the view is of tokens. An array [texts, width] is one, too."""


@dataclass(frozen=True, slots=True)
class LiveTrunk:
    """The trunk as the embedding service described it, with what turns texts into its token ids."""

    name: str
    fingerprint: str
    encoder: TextEncoder
    max_request_inputs: int
    layers: frozenset[int] = frozenset({-1})
    """Those that a view may ask for, by both their names: counted from 0, and back from -1."""


@dataclass(frozen=True, slots=True)
class LiveHead:
    """A head of the catalogue; *refused* says why it cannot answer on this trunk, "" when it can."""

    manifest: Manifest
    is_default: bool
    refused: str = ""


class Trunks(Protocol):
    """Knows the live trunk."""

    async def trunk(self, deadline: Deadline) -> LiveTrunk:
        """The live trunk; cheap once known. Raises TrunklineError while the embedding service cannot tell."""
        ...

    def forget(self) -> None:
        """What is known is out of date; the next `trunk` asks again."""
        ...


class Embedder(Protocol):
    """Runs token ids through the trunk."""

    async def embed(self, trunk: LiveTrunk, inputs: Sequence[Encoded], views: tuple[View, ...], deadline: Deadline) -> list[Rows]:
        """For each view, one array an input. Raises TrunklineError."""
        ...


class Predictor(Protocol):
    """Runs a head version."""

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        """Scores, float32 [texts, labels], for what the head reads of each text. Raises TrunklineError."""
        ...


class CatalogueSource(Protocol):
    """Knows which heads are live."""

    def heads(self, fingerprint: str) -> dict[str, LiveHead]:
        """A snapshot, by name, judged against the trunk of *fingerprint*. Never waits."""
        ...
