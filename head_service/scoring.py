"""What a version says of texts: the gate's scorer; and whether the head server has a version at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

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

MAX_PIECES: Final = 256
"""Embedded and predicted at once; of heads that read tokens, an eighth of it."""

MAX_INPUT_BYTES: Final = 16 * 2**20
"""Of one call of a head that reads tokens, where these are more than one text's: a head server takes 64 MiB."""

Predict = Callable[[Manifest, Inputs], NDArray[Any]]
"""The scores that a version gives for its inputs; `served` and `head_server.LoadedHere` are such."""


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
        found: list[NDArray[Any]] = []
        size = MAX_PIECES // 8 if reads_tokens(manifest) else MAX_PIECES
        for start in range(0, len(pieces.inputs), size):
            some = pieces.inputs[start : start + size]
            answer = self.embedder.embed_all(some, views=views_of(manifest))
            if answer.trunk_fingerprint != manifest.trunk.fingerprint:
                raise TrunkMismatchError(f"{head} is of another trunk than the embedding service's")
            for places in groups_of(manifest, answer, len(some)):
                scores = self.predict(manifest, inputs_of(manifest, answer, places))
                if scores.ndim != 2 or len(scores) != len(places):
                    raise RepositoryError(f"{head} does not answer with rows of scores")
                found.append(scores)
        scores = np.concatenate(found) if found else np.zeros((0, len(manifest.labels)), np.float32)
        return [[float(score) for score in row] for row in scores_of_texts(manifest, scores, pieces.rows)]


def served(heads: HeadClient, manifest: Manifest, inputs: Inputs) -> NDArray[Any]:
    """What a version on the head server says; see `Predict`."""
    output = manifest.output
    return heads.predict(manifest.name, inputs, version=manifest.version, output_filter=(output,)).outputs[output]


def views_of(manifest: Manifest) -> tuple[View, ...]:
    """The views of the trunk that a head reads, as they are asked for."""
    views = catalogue.views_of(manifest)
    return tuple(View(pooling=view.pooling, layer=view.layer, normalize=view.normalize, dims=view.dims) for view in views)


def reads_tokens(manifest: Manifest) -> bool:
    """Whether a head is sent a vector a token."""
    return manifest.view.pooling == "tokens"


def groups_of(manifest: Manifest, answer: Embeddings, count: int) -> list[range]:
    """The places of the *count* texts of *answer*, in order, in runs that a head server takes in one call each."""
    if not reads_tokens(manifest):
        return [range(count)]
    bytes_of_token = answer.views[0].array.shape[1] * len(answer.views) * np.dtype(np.float32).itemsize
    groups: list[range] = []
    longest = 0
    for place, length in enumerate(answer.views[0].row_tokens):
        longest = max(longest, length)
        begun = groups[-1] if groups else range(0)
        if not begun or (len(begun) + 1) * longest * bytes_of_token > MAX_INPUT_BYTES:
            groups.append(range(place, place + 1))
            longest = length
        else:
            groups[-1] = range(begun.start, place + 1)
    return groups


def inputs_of(manifest: Manifest, answer: Embeddings, places: range | None = None) -> Inputs:
    """What the head server is sent for the texts at *places*, all where that is None.

    float32: vectors [texts, width]; or [texts, tokens, width] and a mask [texts, tokens].
    """
    views = [np.asarray(view.array, np.float32) for view in answer.views]
    if not reads_tokens(manifest):
        vectors = np.concatenate(views, axis=1)
        return {manifest.input: vectors if places is None else vectors[places.start : places.stop]}
    lengths = np.asarray(answer.views[0].row_tokens)
    ends = np.cumsum(lengths)
    if places is not None:
        start = ends[places.start] - lengths[places.start]
        views = [view[start : ends[places.stop - 1]] for view in views]
        lengths = lengths[places.start : places.stop]
    vectors = np.concatenate(views, axis=1)
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
