import numpy as np
import pytest

from embedding_service.models.bert import BertConfig
from perf.measuring.limit import Make, bf16_product, float32_product, flops_of, gflops, int8_product, limit_of, peaks
from tests.perf.measuring.fakes import WORKLOAD

MINILM = BertConfig(30_522, 384, 6, 12, 1536, 512, 1e-12)


@pytest.mark.parametrize(("tokens", "gflop"), [(16, 0.342), (32, 0.689), (128, 2.87), (512, 13.3)])
def test_a_text_takes_the_operations_that_the_formula_says(tokens: int, gflop: float) -> None:
    assert flops_of(tokens, MINILM) / 1e9 == pytest.approx(gflop, rel=0.005)
    assert flops_of(tokens, MINILM) == 6 * 24 * 384**2 * tokens + 4 * 6 * 384 * tokens**2


def test_the_limit_is_the_rate_over_the_mean_text() -> None:
    found = limit_of("bf16", 100.0, WORKLOAD, [16, 32], MINILM)

    assert found.texts_per_second == pytest.approx(100e9 * 2 / (flops_of(16, MINILM) + flops_of(32, MINILM)))
    assert ("bf16", 100.0, "short") == (found.precision, found.gflops, found.workload)


def test_the_rate_is_that_of_the_fastest_product() -> None:
    now = 0.0
    durations = iter([9.0, 0.5, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5])

    def product() -> None:
        nonlocal now
        now += next(durations)

    make: Make = lambda _: product  # noqa: E731 (it is a maker of products)

    assert gflops(make, 1000, lambda: now) == pytest.approx(2 * 1000**3 / 0.25 / 1e9)


@pytest.mark.parametrize("make", [float32_product, int8_product])
def test_a_product_is_one_of_matrices(make: Make) -> None:
    [found] = make(32)()

    assert np.asarray(found).shape == (32, 32)


def test_a_bf16_product_is_one_of_matrices() -> None:
    [found] = bf16_product(32)().values()

    assert found.shape == (32, 32)


def test_a_precision_that_the_processor_lacks_is_said_and_not_measured() -> None:
    found, missing = peaks(["avx2"], sizes=(16,))

    assert {"float32", "int8"} == set(found)
    assert ["limit, bf16"] == [one.what for one in missing]
    assert {"float32", "int8", "bf16"} == set(peaks(["avx512_bf16"], sizes=(16,))[0])
