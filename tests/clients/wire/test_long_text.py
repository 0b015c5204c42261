import numpy as np
import pytest

from clients.wire.catalogue import LongText, Task
from clients.wire.long_text import joined

SCORES = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], np.float32)
PIECES = [(0,), (1, 2, 0)]


@pytest.mark.parametrize(
    ("long_text", "task", "second"),
    [
        ("cut", "single_label", [1.6 / 3, 1.4 / 3]),
        ("mean", "multi_label", [1.6 / 3, 1.4 / 3]),
        ("max", "multi_label", [0.9, 0.8]),
        ("max", "regression", [0.9, 0.8]),
        ("max", "single_label", [0.9 / 1.7, 0.8 / 1.7]),
    ],
)
def test_windows_are_joined_as_the_head_has_it(long_text: LongText, task: Task, second: list[float]) -> None:
    found = joined(SCORES, PIECES, long_text, task)

    np.testing.assert_allclose([[0.9, 0.1], second], found, rtol=1e-6)
    assert np.float32 == found.dtype


def test_a_text_of_one_window_has_its_scores_untouched() -> None:
    np.testing.assert_array_equal(SCORES[[2, 0]], joined(SCORES, [[2], [0]], "max", "single_label"))
