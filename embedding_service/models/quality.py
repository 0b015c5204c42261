"""How near an engine is to float32, on sentences of many lengths, and how near it must be."""

from typing import Final

import numpy as np

from embedding_service.backend import Backend, Batch, FloatArray, View

AGREEMENT_NEEDED: Final = {"fp32": 0.99999, "bf16": 0.999, "int8": 0.985}
"""The mean cosine to float32 below which an engine of that precision is refused."""

TEXTS: Final = (
    "Yes.",
    "The parcel never came.",
    "Thank you, that solved it at once!",
    "Wheat futures closed lower on Friday after a dry week in the plains.",
    "My invoice shows two charges for the same month, and nobody answers the phone.",
    "An hour too long, but the last scene alone is worth the price of the ticket.",
    "The committee will meet again in March to decide whether the bridge can carry heavier trains.",
    "How do I change the address on an order that has already left the warehouse?",
    "She tuned the old piano by ear, note by note, while the rain drummed on the tin roof above her.",
    "Profit before tax rose to 41.2 million from 36.8 million, helped by lower fuel costs and a weaker dollar.",
    "Restart the router, wait until the second lamp turns green, and only then plug the cable back into the wall.",
    "lol no way he said that on live tv",
    "The vaccine was well tolerated; mild fever was seen in four of the two hundred volunteers and passed within a day.",
    "Free entry! Reply WIN to claim your prize before midnight.",
    "Parser error in line 214: expected a closing bracket but found the end of the file, so nothing was imported and the "
    "previous version of the catalogue stays in use until somebody corrects the upload.",
    "After three seasons of drought the lake had shrunk to a grey dish, boats lay on their sides along what used to be the "
    "shore, and the fishermen, who once sold their catch in five towns, now drove water trucks up the hill for the council.",
)
"""Written for this purpose: 3 to about 50 tokens, several registers."""


def mean_cosine(vectors: FloatArray, reference: FloatArray) -> float:
    """Of rows pairwise, both [texts, width]."""
    products = np.einsum("tw,tw->t", vectors, reference)
    return float(np.mean(products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)))


def vectors_of(backend: Backend, token_ids: list[tuple[int, ...]], view: View) -> FloatArray:
    """One pass a text, float32 [texts, width]."""
    return np.stack([backend.embed(Batch((ids,), ((view,),)))[0][0] for ids in token_ids])
