import pytest

from clients import HeadError, HeadResult
from trunkline.cli import _said


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (HeadResult("sport", 0.75, 1), "sport  0.7500"),
        (HeadResult("billing", 0.9, 1, labels=["billing", "urgent"]), "billing, urgent  0.9000"),
        (HeadResult(None, 0.25, 1, labels=[]), "no label  0.2500"),
        (HeadResult(None, None, 1, value=2.5), "2.5000"),
        (HeadError("unavailable", "it is away"), "error: it is away"),
    ],
)
def test_the_answer_of_a_head_is_told_in_a_line(head: HeadResult | HeadError, expected: str) -> None:
    assert expected == _said(head)
