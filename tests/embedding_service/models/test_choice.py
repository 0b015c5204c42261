import numpy as np
import pytest

from embedding_service.backend.fake import FakeBackend
from embedding_service.models.choice import Candidate, pick, texts_per_second
from embedding_service.models.errors import PreparationError
from embedding_service.models.quality import NEEDED, SAME, Quality, check_quality, compare

BF16, FP32, ONNX = "openvino-bf16", "openvino-fp32", "onnx-fp32"


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([(ONNX, 100, 1.0)], ONNX),
        ([(BF16, 200, 0.99998), (ONNX, 100, 1.0)], BF16),
        ([(BF16, 119, 0.9998), (ONNX, 100, 1.0)], ONNX),
        ([(BF16, 121, 0.9998), (ONNX, 100, 1.0)], BF16),
        ([(FP32, 110, 0.99999999), (ONNX, 100, 1.0)], FP32),
        ([(BF16, 110, 0.9998), (FP32, 105, 1.0), (ONNX, 100, 1.0)], FP32),
    ],
)
def test_the_fastest_is_taken_and_of_two_nearly_as_fast_the_more_exact(candidates, expected):
    assert expected == pick([Candidate(*candidate) for candidate in candidates]).engine


def test_speed_is_of_real_passes_on_all_threads(tokenizer_json):
    backend = FakeBackend(tokenizer_json, concurrency=2, seconds_per_token=1e-5)
    assert texts_per_second(backend, backend.trunk) > 0
    assert {4, 16} == {len(batch.token_ids) for batch in backend.batches}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_equal_vectors_are_of_full_quality_and_noise_lowers_every_figure():
    chance = np.random.default_rng(0)
    rows = unit(chance.normal(size=(40, 32)))
    noisy = unit(rows + chance.normal(0, 0.03, rows.shape))

    same, other = compare(rows, rows), compare(rows, noisy)

    np.testing.assert_allclose([1, 1, 1], [same.agreement, same.least, same.labels], atol=1e-6)
    assert other.least < other.agreement < 0.999
    assert 0.5 < other.labels < 1


@pytest.mark.parametrize("engine", NEEDED)
def test_what_is_needed_is_enough(engine):
    check_quality(engine, engine, NEEDED[engine])
    check_quality(engine, engine, SAME)


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        (Quality(0.9, 0.99, 1.0), "mean cosine is 0.9000, less than 0.999; use --engine onnx-fp32"),
        (Quality(0.9999, 0.5, 1.0), "least cosine is 0.5000, less than 0.995"),
        (Quality(0.9999, 0.999, 0.9), "share of equal labels is 0.9000, less than 0.985"),
        (Quality(float("nan"), 1.0, 1.0), "mean cosine is nan"),
    ],
)
def test_an_engine_that_is_not_near_enough_is_refused_with_the_numbers(quality, message):
    with pytest.raises(PreparationError, match=message):
        check_quality("openvino-bf16", "openvino bf16", quality)
