"""The shared trunk for callers who want vectors: texts or token ids in, one vector each out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from clients import Deadline, FailedPrecondition, InvalidRequest
from clients.wire.catalogue import View
from clients.wire.text import Encoded
from gateway.ports import Embedder, FloatArray, LiveTrunk, PriorityName, Trunks
from gateway.preprocess import Reading, prepare

VIEW: Final = View()
"""The mean of the last layer, normalised. Who wants fewer dimensions gets it cut, not a view of its own at the trunk."""


@dataclass(frozen=True, slots=True)
class TextVectors:
    """*rows*: float32 [inputs, width]; *num_tokens* went through the trunk."""

    trunk: LiveTrunk
    rows: FloatArray
    num_tokens: int


class TextEmbedder:
    """Embeds; holds nothing of any request."""

    def __init__(self, trunks: Trunks, embedder: Embedder) -> None:
        self._trunks = trunks
        self._embedder = embedder

    async def embed(
        self, inputs: Sequence[str | list[int]], deadline: Deadline, priority: PriorityName = "interactive"
    ) -> TextVectors:
        """A vector of length one for each of *inputs*: texts, or token ids with the special tokens in place.

        Raises:
            TrunklineError: none can be answered.
        """
        trunk = await self._trunks.trunk(deadline)
        try:
            return await self._embed(trunk, inputs, deadline, priority)
        except FailedPrecondition:
            # The embedding service has another trunk now than the token ids were made for.
            self._trunks.forget(trunk)
            return await self._embed(await self._trunks.trunk(deadline), inputs, deadline, priority)

    async def trunk(self, deadline: Deadline) -> LiveTrunk:
        """What embeds."""
        return await self._trunks.trunk(deadline)

    async def _embed(
        self, trunk: LiveTrunk, inputs: Sequence[str | list[int]], deadline: Deadline, priority: PriorityName
    ) -> TextVectors:
        texts = [one for one in inputs if isinstance(one, str)]
        if texts:
            prepared = await prepare(trunk.encoder, texts, [Reading()], deadline=deadline)
            distinct = prepared.inputs
            places = [pieces[0] for pieces in prepared.places[Reading()]]
        else:
            distinct = [_given(index, one, trunk) for index, one in enumerate(inputs)]
            places = list(range(len(distinct)))
        [rows] = await self._embedder.embed(trunk, distinct, (VIEW,), deadline, priority)
        return TextVectors(trunk, np.stack([rows[place] for place in places]), sum(len(distinct[place].ids) for place in places))


def _given(index: int, ids: str | list[int], trunk: LiveTrunk) -> Encoded:
    if isinstance(ids, str) or not 0 < len(ids) <= trunk.encoder.max_tokens:
        raise InvalidRequest(f"input {index} has no token ids, or more than the {trunk.encoder.max_tokens} that the trunk reads")
    return Encoded(ids, truncated=False)


def cut(rows: FloatArray, dimensions: int) -> FloatArray:
    """The first *dimensions* of each of *rows*, of length one again.

    Raises:
        InvalidRequest: there are not so many.
    """
    if dimensions > rows.shape[1]:
        raise InvalidRequest(f"dimensions is above the {rows.shape[1]} of this trunk")
    kept = rows[:, :dimensions]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    return np.asarray(kept / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)
