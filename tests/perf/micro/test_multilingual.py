import numpy as np

from perf.micro.multilingual import SENTENCES, nearness


def test_each_foreign_sentence_is_compared_with_its_translation_and_the_nearest_other():
    rows = np.eye(len(SENTENCES), dtype=np.float32)
    vectors = {(name, "en"): row for name, row in zip(SENTENCES, rows, strict=True)}
    vectors["parcel", "de"] = 0.8 * vectors["parcel", "en"] + 0.6 * vectors["recipe", "en"]

    (one,) = nearness(vectors)

    assert ("parcel", "de") == (one.sentence, one.language)
    np.testing.assert_allclose((0.8, 0.6), (one.translation, one.unrelated), rtol=1e-6)


def test_every_sentence_is_in_every_language():
    assert len({frozenset(versions) for versions in SENTENCES.values()}) == 1
