"""Everything the pipeline knows of the world outside, in one short file. Adapters and fakes implement these Protocols."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

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

    def forget(self, trunk: LiveTrunk) -> None:
        """*trunk* is out of date; where it is what is known still, the next `trunk` asks again."""
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


class Known(NamedTuple):
    """What *maker*'s version said of a text before: *scores* are float32 [labels], for reading only."""

    maker: Manifest
    scores: FloatArray


class VersionOutputs(Protocol):
    """What may answer for one version, by the keys of texts (`gateway.outputs.key_of`). Neither waits nor raises."""

    def find(self, keys: Sequence[bytes]) -> dict[int, Known]:
        """What is known, by the place of its key. *maker* has the same labels, and may be an older version than the one asked."""
        ...

    def keep(self, keys: Sequence[bytes], scores: FloatArray) -> None:
        """Remember *scores*, float32 [texts, labels], that were checked and that the version itself made."""
        ...


class Outputs(Protocol):
    """What versions said of texts seen before."""

    def of(self, manifest: Manifest, *, exact: bool) -> VersionOutputs | None:
        """What may answer for *manifest*'s version, with *exact* nothing that another one made; None: nothing ever may."""
        ...


class AnswerWatcher(Protocol):
    """Told of every live answer, on its way: must be quick and never raise."""

    def answered(self, manifest: Manifest, scores: FloatArray) -> None:
        """*manifest*'s version said *scores*, float32 [texts, labels], now or, where that still holds, before."""
        ...


class CatalogueFollower(Protocol):
    """Told of each new catalogue before any request is answered by it; must be quick and never raise."""

    def follow(self, catalogue: Catalogue) -> None:
        """*catalogue* is the live one from now on."""
        ...


class CatalogueSource(Protocol):
    """Knows which heads are live."""

    @property
    def catalogue(self) -> Catalogue:
        """A snapshot; the same object until something has changed. Never waits."""
        ...
