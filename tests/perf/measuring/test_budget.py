import math
from dataclasses import replace

import msgspec
import pytest

from perf.measuring.budget import QUICK, SECTIONS, WHOLE, Settings, expected_seconds, num_compared

SYSTEMS = 6


@pytest.mark.parametrize(("settings", "minutes"), [(QUICK, 8), (WHOLE, 55)])
def test_the_time_promised_is_kept_with_six_systems(settings: Settings, minutes: float) -> None:
    assert sum(expected_seconds(settings, SYSTEMS).values()) <= minutes * 60


def test_every_section_has_a_time() -> None:
    assert SECTIONS == tuple(expected_seconds(WHOLE, 1))
    assert all(seconds > 0 for seconds in expected_seconds(WHOLE, 1).values())


@pytest.mark.parametrize(
    ("section", "more"),
    [
        ("closed loop", replace(WHOLE, rounds=2 * WHOLE.rounds)),
        ("closed loop", replace(WHOLE, workloads=(*WHOLE.workloads, "mix"))),
        ("open loop", replace(WHOLE, seconds=2 * WHOLE.seconds)),
        ("bound", replace(WHOLE, tries=WHOLE.tries + 1)),
        ("heads", replace(WHOLE, heads=(*WHOLE.heads, 16))),
        ("peers", replace(WHOLE, peers=(*WHOLE.peers, "another"))),
        ("sequential", replace(WHOLE, num_sequential=3_000)),
    ],
)
def test_more_takes_longer_there(section: str, more: Settings) -> None:
    before, after = expected_seconds(WHOLE, SYSTEMS), expected_seconds(more, SYSTEMS)

    assert after[section] > before[section]


def test_each_load_counts_as_often_as_it_is_taken() -> None:
    one = expected_seconds(replace(WHOLE, rounds=1), 1)["closed loop"]

    assert one * SYSTEMS * 3 == pytest.approx(expected_seconds(replace(WHOLE, rounds=3), SYSTEMS)["closed loop"])


def test_without_shares_there_is_no_open_loop() -> None:
    assert expected_seconds(replace(WHOLE, common_share=0.0, own_share=0.0), SYSTEMS)["open loop"] == 0


@pytest.mark.parametrize(("num_heads", "count"), [(1, 1_500), (2, 750), (8, 187), (32, 50)])
def test_many_heads_are_compared_on_fewer_texts(num_heads: int, count: int) -> None:
    assert num_compared(WHOLE, num_heads) == count
    assert num_compared(replace(WHOLE, num_labelled=20), num_heads) == 20 or num_heads == 1


def test_settings_can_be_written_down() -> None:
    told = WHOLE.told()

    assert told["heads"] == "1 2 8 32"
    assert told["workloads"] == "short mix long"
    assert told == msgspec.json.decode(msgspec.json.encode(told))
    assert math.isclose(float(told["seconds"]), WHOLE.seconds)
