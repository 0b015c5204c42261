"""How near an engine's vectors are to float32's, and what is near enough. Pure, but for the forward passes."""

from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np

from clients.wire.text import TextEncoder
from embedding_service.backend import Backend, Batch, FloatArray, TrunkSpec
from embedding_service.backend.load import EngineName
from embedding_service.models.errors import PreparationError
from embedding_service.models.quality_texts import QUALITY_TEXTS

_NUM_HEADS: Final = 200
_NUM_LABELS: Final = 8


@dataclass(frozen=True, slots=True)
class Quality:
    """*agreement* is the mean cosine to float32, *least* the smallest, *labels* how many labels of heads stay the same.

    The heads are 200 nearest-prototype ones: eight of the sentences, drawn anew for each, are labels that all others are given
    by the largest cosine. Their decisions are closer calls than those of a trained head, so *labels* is a pessimist.
    """

    agreement: float
    least: float
    labels: float

    def facts(self) -> dict[str, float]:
        """As they are written down."""
        return asdict(self)


SAME: Final = Quality(1.0, 1.0, 1.0)

NEEDED: Final[dict[EngineName, Quality]] = {
    "onnx-fp32": Quality(0.9999, 0.999, 0.995),
    "onnx-int8": Quality(0.985, 0.9, 0.9),
    "openvino-bf16": Quality(0.999, 0.995, 0.985),
    "openvino-fp32": Quality(0.9999, 0.999, 0.995),
    "openvino-int8": Quality(0.985, 0.9, 0.9),
    "torch-fp32": Quality(0.9999, 0.999, 0.995),
    "torch-bf16": Quality(0.999, 0.995, 0.985),
    "torch-fp16": Quality(0.999, 0.995, 0.985),
}
"""What an engine must reach to be used."""


def vectors_of(backend: Backend, spec: TrunkSpec) -> FloatArray:
    """The vectors of our own sentences by the trunk's own view, of length one: float32 [sentences, width]."""
    encoded = TextEncoder(spec.tokenizer_json, max_tokens=spec.max_tokens, prompt=spec.prompt).encode(QUALITY_TEXTS)
    view = replace(spec.default_view, normalize=True)
    vectors = []
    for start in range(0, len(encoded), 8):
        ids = tuple(tuple(item.ids) for item in encoded[start : start + 8])
        vectors += [row[0] for row in backend.embed(Batch(ids, ((view,),) * len(ids)))]
    return np.stack(vectors)


def compare(expected: FloatArray, actual: FloatArray) -> Quality:
    """How near *actual* is to *expected*, both float32 [sentences, width] of length one."""
    cosines = np.einsum("ij,ij->i", expected, actual)
    chance, kept, decided = np.random.default_rng(0), 0, 0
    for _ in range(_NUM_HEADS):
        order = chance.permutation(len(expected))
        prototypes, others = expected[order[:_NUM_LABELS]], order[_NUM_LABELS:]
        same = (expected[others] @ prototypes.T).argmax(axis=1) == (actual[others] @ prototypes.T).argmax(axis=1)
        kept, decided = kept + int(same.sum()), decided + len(others)
    return Quality(float(cosines.mean()), float(cosines.min()), kept / decided)


def check_quality(engine: EngineName, label: str, quality: Quality) -> None:
    """Refuse an engine whose vectors are not near enough; *label* is what it is called.

    Raises:
        PreparationError: with the numbers.
    """
    needed = NEEDED[engine]
    for name, found, least in (
        ("mean cosine", quality.agreement, needed.agreement),
        ("least cosine", quality.least, needed.least),
        ("share of equal labels", quality.labels, needed.labels),
    ):
        if not found >= least:
            raise PreparationError(
                f"{label} is not near enough to float32: its {name} is {found:.4f}, less than {least}; use --engine onnx-fp32"
            )
