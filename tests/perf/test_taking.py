import errno
from dataclasses import replace
from pathlib import Path

import pytest

from perf.asked import Asked
from perf.measuring.budget import QUICK, WHOLE
from perf.results import Missing, Results
from perf.taking import _Saving, plans_of, settings_of
from perf.topologies.plans import PLANS

ASKED = Asked(
    is_quick=True,
    command="python -m perf quick",
    plans=(),
    heads=(),
    workloads=(),
    out=Path("nowhere"),
    price_per_hour=0.1,
    embedding_address=None,
    peers_dir=Path("nowhere"),
    with_peers=True,
    rounds=None,
    seconds=None,
    engine="auto",
    max_waits=None,
)


def test_without_names_all_plans_are_taken() -> None:
    assert list(PLANS) == plans_of(())


def test_the_reference_comes_first_whatever_order_is_asked_for() -> None:
    assert ["plan-one-engine", "plan-four"] == [plan.name for plan in plans_of(("plan-four", "plan-one-engine"))]


def test_a_plan_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"no plan .plan-five.; there are .*plan-four"):
        plans_of(("plan-five",))


def test_what_is_not_said_is_as_the_command_says() -> None:
    assert QUICK == settings_of(ASKED)
    assert WHOLE == settings_of(replace(ASKED, is_quick=False))


def test_what_is_said_counts() -> None:
    asked = replace(ASKED, is_quick=False, heads=(1, 4), workloads=("mix",), with_peers=False, rounds=7, seconds=0.5, max_waits=0)

    assert settings_of(asked) == replace(WHOLE, heads=(1, 4), workloads=("mix",), peers=(), rounds=7, seconds=0.5, max_waits=0)


def test_a_workload_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="no workload 'huge'; there are short, mix, long"):
        settings_of(replace(ASKED, workloads=("huge",)))


def test_what_was_found_so_far_is_written_with_its_circumstances() -> None:
    written: list[Results] = []
    saving = _Saving(PLANS, QUICK, ASKED, written.append, print)
    saving.found.missing.append(Missing(what="a peer", why="it is not there"))

    saving.now()
    saving.now_and_then()

    [results] = written
    assert ("python -m perf quick", 0.1) == (results.command, results.price_per_hour)
    assert (Missing(what="a peer", why="it is not there"),) == results.missing
    assert {plan.name for plan in PLANS} == set(results.titles)
    assert results.machine.num_cores > 0


def test_a_full_disk_is_said_and_ends_no_campaign() -> None:
    said: list[str] = []

    def full(results: Results) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _Saving(PLANS, QUICK, ASKED, full, said.append).now()

    [line] = said
    assert "No space left on device" in line
