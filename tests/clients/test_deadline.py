import pytest

from clients import Deadline
from clients._config import Retry
from clients._deadline import retry_after_seconds


def test_a_deadline_to_come_has_time_left():
    deadline = Deadline.after(3600)
    assert not deadline.expired
    assert 3500 < deadline.remaining() <= 3600


def test_a_deadline_that_passed_has_none_left():
    deadline = Deadline.after(-1)
    assert deadline.expired
    assert deadline.remaining() == 0.0


def test_a_shrunk_deadline_is_earlier_by_the_margin():
    deadline = Deadline(100.0)
    assert deadline.shrunk(0.25) == Deadline(99.75)
    assert deadline.shrunk(0.25) < deadline


@pytest.mark.parametrize(
    ("milliseconds", "seconds", "expected"),
    [
        ("1500", None, 1.5),
        (b"1500", None, 1.5),
        ("1500", "9", 1.5),
        (None, "9", 9.0),
        ("x", "9", 9.0),
        (None, None, None),
        (None, "Wed, 21 Oct 2026 07:28:00 GMT", None),
        (b"\xff", "-1", None),
        ("٣", "9" * 13, None),
    ],
)
def test_retry_after_is_a_whole_number_or_nothing(milliseconds, seconds, expected):
    assert retry_after_seconds(milliseconds, seconds) == expected


def test_a_retry_waits_as_long_as_it_is_asked_to():
    assert Retry().delay(5, 0.25) == 0.25


def test_a_retry_that_is_asked_nothing_doubles_up_to_a_bound():
    retry = Retry(backoff=0.1, max_backoff=1.0)
    assert [retry.delay(attempt, None) for attempt in (0, 1, 3, 4, 10_000)] == pytest.approx([0.1, 0.2, 0.8, 1.0, 1.0])
