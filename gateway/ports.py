"""Everything the pipeline knows of the world outside, in one short file. Adapters and fakes implement these Protocols."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clients import Deadline
from clients.wire.catalogue import Catalogue, Manifest, View
from clients.wire.text import Encoded, TextEncoder

FloatArray = NDArray[np.float32]

PriorityName = Literal["interactive", "bulk"]
"""Bulk lets interactive work go first."""

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

    async def embed(
        self, trunk: LiveTrunk, inputs: Sequence[Encoded], views: tuple[View, ...], deadline: Deadline, priority: PriorityName
    ) -> list[Rows]:
        """For each view, one array an input. Raises TrunklineError."""
        ...


class Predictor(Protocol):
    """Runs a head version."""

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        """Scores, float32 [texts, labels], for what the head reads of each text. Raises TrunklineError."""
        ...


class Outputs(Protocol):
    """What versions said of inputs seen before. Neither method waits, and neither raises."""

    def find(self, manifest: Manifest, inputs: Sequence[Encoded]) -> list[FloatArray | None]:
        """The scores, float32 [labels], of each input, None where they are not known."""
        ...

    def keep(self, manifest: Manifest, inputs: Sequence[Encoded], scores: FloatArray) -> None:
        """Remember *scores*, float32 [inputs, labels], that were checked."""
        ...


class CatalogueSource(Protocol):
    """Knows which heads are live."""

    @property
    def catalogue(self) -> Catalogue:
        """A snapshot; the same object until something has changed. Never waits."""
        ...
