from dataclasses import replace
from typing import Any

import pytest

from trunkline.demo import _said, address_lines
from trunkline.stack import Addresses

ADDRESSES = Addresses("http://g:1", "http://e:2", "e:3", "http://h:4", "h:5", "http://c:6")


def test_each_address_has_a_line_and_the_gateways_is_the_last() -> None:
    lines = address_lines(ADDRESSES)

    assert ["embedding http://e:2", "embedding-grpc e:3"] == lines[:2]
    assert ["control http://c:6", "gateway http://g:1"] == lines[-2:]


def test_what_runs_elsewhere_or_not_at_all_has_no_line() -> None:
    lines = address_lines(replace(ADDRESSES, embedding="", control=""))

    assert ["embedding-grpc", "heads", "heads-grpc", "gateway"] == [line.split(" ")[0] for line in lines]
    assert all(line.split(" ")[1] for line in lines)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"label": "a", "score": 0.5, "version": 1}, ("a", "0.500")),
        ({"labels": ["a", "b"], "score": 0.75}, ("a, b", "0.750")),
        ({"labels": [], "score": 0.25}, ("no label", "0.250")),
        ({"label": None, "score": 0.25}, ("no label", "0.250")),
        ({"value": -2.5, "version": 3}, ("-2.5000", "")),
        ({"error": {"code": "unavailable", "message": "gone"}}, ("error: gone", "")),
    ],
)
def test_a_head_is_shown_whatever_its_task(head: dict[str, Any], said: tuple[str, str]) -> None:
    assert said == _said(head)
