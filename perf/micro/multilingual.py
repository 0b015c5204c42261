"""`python -m perf.micro.multilingual`: does the multilingual trunk put translations nearer than what is unrelated?

Prepares the trunk as the service does, by its name, so it needs a package index or a trunk that is in the cache already.
"""

import sys
from dataclasses import dataclass
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from clients.wire.text import TextEncoder
from embedding_service.backend import Backend, Batch, FloatArray
from embedding_service.backend.load import load_backend
from embedding_service.models.fetch import MULTILINGUAL_MODEL
from embedding_service.models.prepare import prepare
from trunkline import paths

SENTENCES: Final = {
    "parcel": {
        "en": "My parcel arrived two days late and the box was damaged.",
        "de": "Mein Paket kam zwei Tage zu spät an und der Karton war beschädigt.",
        "fr": "Mon colis est arrivé avec deux jours de retard et le carton était abîmé.",
        "zh": "我的包裹晚到了两天，盒子也坏了。",
        "ja": "荷物が二日遅れて届き、箱が壊れていました。",
        "ru": "Моя посылка пришла на два дня позже, и коробка была повреждена.",
    },
    "weather": {
        "en": "Tomorrow it will rain all day along the coast.",
        "de": "Morgen wird es an der Küste den ganzen Tag regnen.",
        "fr": "Demain, il pleuvra toute la journée sur la côte.",
        "zh": "明天沿海地区全天有雨。",
        "ja": "明日、沿岸部では一日中雨が降ります。",
        "ru": "Завтра на побережье весь день будет идти дождь.",
    },
    "recipe": {
        "en": "Stir the onions in butter until they are golden.",
        "de": "Die Zwiebeln in Butter rühren, bis sie goldgelb sind.",
        "fr": "Faites revenir les oignons dans le beurre jusqu'à ce qu'ils soient dorés.",
        "zh": "用黄油翻炒洋葱，直到呈金黄色。",
        "ja": "玉ねぎをバターで黄金色になるまで炒めます。",
        "ru": "Обжарьте лук в масле до золотистого цвета.",
    },
    "football": {
        "en": "The home team scored twice in the last ten minutes.",
        "de": "Die Heimmannschaft traf in den letzten zehn Minuten zweimal.",
        "fr": "L'équipe locale a marqué deux fois dans les dix dernières minutes.",
        "zh": "主队在最后十分钟内进了两个球。",
        "ja": "ホームチームは最後の十分間に二点を決めた。",
        "ru": "Хозяева забили дважды за последние десять минут.",
    },
}
"""Each sentence, our own, in each language."""


@dataclass(frozen=True, slots=True)
class Nearness:
    """Cosines of one foreign sentence: to its English translation, and to the nearest of the other English sentences."""

    sentence: str
    language: str
    translation: float
    unrelated: float


def nearness(vectors: dict[tuple[str, str], FloatArray]) -> list[Nearness]:
    """Compare every sentence that is not English with all that are; *vectors* are unit long, by sentence and language."""
    return [
        Nearness(
            sentence,
            language,
            float(vector @ vectors[sentence, "en"]),
            max(float(vector @ vectors[other, "en"]) for other in SENTENCES if other != sentence),
        )
        for (sentence, language), vector in vectors.items()
        if language != "en"
    ]


def embed(backend: Backend, texts: list[str]) -> FloatArray:
    """The default view of each text: float32 [texts, width]."""
    spec = backend.trunk
    encoded = TextEncoder(spec.tokenizer_json, max_tokens=spec.max_tokens, prompt=spec.prompt).encode(texts)
    batch = Batch(tuple(tuple(one.ids) for one in encoded), ((spec.default_view,),) * len(texts))
    return np.stack([row[0] for row in backend.embed(batch)])


def main() -> int:
    """Exit status 0 when every translation is the nearest."""
    console = Console()
    prepared = prepare(MULTILINGUAL_MODEL, cache_dir=paths.cache_dir(), engine="onnx-fp32", progress=console.print)
    backend = load_backend(prepared)
    keys = [(sentence, language) for sentence, versions in SENTENCES.items() for language in versions]
    try:
        vectors = embed(backend, [SENTENCES[sentence][language] for sentence, language in keys])
    finally:
        backend.close()
    found = nearness(dict(zip(keys, vectors, strict=True)))
    table = Table("sentence", "language", "to its translation", "to the nearest other", title=prepared.spec.fingerprint)
    for one in found:
        table.add_row(one.sentence, one.language, f"{one.translation:.3f}", f"{one.unrelated:.3f}")
    console.print(table)
    nearest = sum(one.translation > one.unrelated for one in found)
    console.print(f"{nearest} of {len(found)} sentences are nearest to their translation")
    return 0 if nearest == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
