"""What a version says of texts: the gate's scorer; and whether the head server has a version at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clients import Embeddings, HeadClient, NotFound, TrunklineError, View
from clients.wire import catalogue
from clients.wire.catalogue import Manifest
from clients.wire.long_text import scores_of_texts
from head_service.errors import RepositoryError, TrunkMismatchError
from head_service.pieces import DescribesTrunk, Piece, pieces_of

FloatArray = NDArray[np.float32]


class Embeds(DescribesTrunk, Protocol):
    """What scoring needs of the embedding service; `clients.EmbeddingClient` is one."""

    def embed_all(self, texts: Sequence[Piece], *, views: Sequence[View] = ()) -> Embeddings:
        """Embed any number of texts or token ids."""
        ...


Inputs = dict[str, NDArray[Any]]
"""What a head is sent, by the names of its inputs; see `inputs_of`."""

Predict = Callable[[Manifest, Inputs], NDArray[Any]]
"""The scores that a version gives for its inputs; `served` and `head_server.loaded` are such."""


@dataclass(frozen=True, slots=True)
class TextScorer:
    """Embeds texts as a head wants them and has it predict, as the gateway would; see `head_service.gate.Scorer`."""

    embedder: Embeds
    predict: Predict

    def __call__(self, manifest: Manifest, texts: Sequence[str]) -> list[list[float]]:
        """The scores, a row a text.

        Raises:
            TrunkMismatchError: the embedding service has another trunk.
            RepositoryError: the head cannot be asked, or its answer is not scores.
            DataError: the head's steps are not known here, or leave nothing of a text.
            TrunklineError: a service cannot be reached.
        """
        head = f"head {manifest.name!r} version {manifest.version}"
        pieces = pieces_of(texts, manifest.preprocess, manifest.long_text, self.embedder)
        answer = self.embedder.embed_all(pieces.inputs, views=views_of(manifest))
        if answer.trunk_fingerprint != manifest.trunk.fingerprint:
            raise TrunkMismatchError(f"{head} is of another trunk than the embedding service's")
        scores = self.predict(manifest, inputs_of(manifest, answer))
        if scores.ndim != 2 or len(scores) != len(pieces.inputs):
            raise RepositoryError(f"{head} does not answer with rows of scores")
        return [[float(score) for score in row] for row in scores_of_texts(manifest, scores, pieces.rows)]


def served(heads: HeadClient, manifest: Manifest, inputs: Inputs) -> NDArray[Any]:
    """What a version on the head server says; see `Predict`."""
    output = manifest.output
    return heads.predict(manifest.name, inputs, version=manifest.version, output_filter=(output,)).outputs[output]


def views_of(manifest: Manifest) -> tuple[View, ...]:
    """The views of the trunk that a head reads, as they are asked for."""
    views = catalogue.views_of(manifest)
    return tuple(View(pooling=view.pooling, layer=view.layer, normalize=view.normalize, dims=view.dims) for view in views)


def inputs_of(manifest: Manifest, answer: Embeddings) -> Inputs:
    """What the head server is sent, all float32: vectors [texts, width]; or [texts, tokens, width] and a mask [texts, tokens]."""
    vectors = np.concatenate([np.asarray(view.array, np.float32) for view in answer.views], axis=1)
    if manifest.view.pooling != "tokens":
        return {manifest.input: vectors}
    lengths = np.asarray(answer.views[0].row_tokens)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.float32)
    padded = np.zeros((*mask.shape, vectors.shape[1]), np.float32)
    padded[mask.astype(bool)] = vectors
    return {manifest.input: padded, manifest.mask_input: mask}


def is_available(heads: HeadClient, name: str, version: int) -> bool | None:
    """Whether the head server answers by a version; None when it cannot be asked."""
    try:
        states = heads.status(name, version=version, timeout=1.0)
    except NotFound:
        return False
    except TrunklineError:
        return None
    return any(one.version == version and one.state == "AVAILABLE" for one in states)
