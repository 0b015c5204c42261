import json
from collections.abc import Iterator

import pytest

from clients import Overloaded, TrunklineError
from gateway.errors import STATUS, response_of


def tree(root: type[TrunklineError]) -> Iterator[type[TrunklineError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


OURS = [kind for kind in tree(TrunklineError) if kind.__module__ == "clients._errors"]


def test_the_table_names_every_error_of_the_clients() -> None:
    assert set(OURS) == set(STATUS)


@pytest.mark.parametrize("kind", OURS)
def test_an_answer_is_short_however_long_the_message(kind: type[TrunklineError]) -> None:
    response = response_of(kind("x" * 100_000), "r1")
    assert response.status_code == STATUS[kind]
    assert len(response.body) < 2_048
    assert json.loads(bytes(response.body))["error"]["request_id"] == "r1"


def test_overload_says_when_to_come_back() -> None:
    headers = response_of(Overloaded("full", retry_after=2.25), "r1").headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "2250")


def test_a_message_of_wide_characters_is_short_too() -> None:
    assert len(response_of(TrunklineError("\U0001f600" * 5_000), "r1").body) < 2_048
