import os
from collections.abc import Sequence

import httpx
import pytest

from clients import NotFound
from perf.topologies.plan import CannotStart, Labels
from perf.topologies.starting import NO_CACHES, told_in_one_line, until_answered, without_caches
from trunkline.processes import StackError


def test_services_start_without_caches_and_the_environment_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = NO_CACHES
    monkeypatch.setenv(first, "7")
    monkeypatch.delenv(second, raising=False)
    with without_caches():
        assert {first: "0", second: "0"} == {name: os.environ[name] for name in NO_CACHES}

    assert "7" == os.environ[first]
    assert second not in os.environ


async def test_a_deployment_is_asked_until_it_answers() -> None:
    failures = [NotFound("not loaded yet"), httpx.ConnectError("nobody there")]

    async def classify(_: Sequence[str]) -> list[Labels]:
        if failures:
            raise failures.pop()
        return [{}]

    await until_answered(classify)
    assert not failures


async def test_a_deployment_that_never_answers_cannot_start() -> None:
    async def classify(_: Sequence[str]) -> list[Labels]:
        raise NotFound("there is no head 'a'")

    with pytest.raises(CannotStart, match="there is no head 'a'"):
        await until_answered(classify, patience=0)


def test_what_keeps_a_service_from_starting_is_told() -> None:
    with pytest.raises(CannotStart, match="port 1 is taken"), told_in_one_line():
        raise StackError("port 1 is taken")
