import msgspec
import pytest

from perf.gateway_faults import Callers, MissingHeadError, Tails, WrongAnswerError, is_above_zero
from perf.stub_backends import score_of
from tests.perf.server import Scripted, serving

METRICS = """
# HELP head_breaker_state 0 closed, 1 half open, 2 open
head_breaker_state{head="a",version="1"} 0.0
head_breaker_state{head="b",version="1"} %s
backend_replicas_left_alone{backend="heads"} 1.0
"""


def answer(**heads: object) -> Scripted:
    content = msgspec.json.encode({"results": [{"heads": heads}]})
    return Scripted(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)


def scores(number: int) -> dict[str, object]:
    return {"scores": {"first": score_of(number)}}


@pytest.mark.parametrize(("value", "expected"), [("0.0", False), ("2.0", True)])
def test_one_open_breaker_among_others_is_seen(value: str, expected: bool) -> None:
    assert expected == is_above_zero(METRICS % value, "head_breaker_state{head=")


def test_a_turn_is_judged_by_its_own_quiet_phase_as_a_whole_and_from_when_the_fault_was_noticed() -> None:
    tails = Tails()
    tails.turn([(0.0, 0.010)] * 50, [(10.0, 0.030)] * 25 + [(12.0, 0.010)] * 25, noticed_at=11.0)
    tails.turn([(20.0, 0.040)] * 50, [(31.0, 0.020)] * 50, noticed_at=30.0)

    assert pytest.approx([3.0, 0.5]) == tails.whole
    assert pytest.approx([1.0, 0.5]) == tails.left_alone


def test_a_fault_that_was_never_noticed_has_no_time_after_it() -> None:
    tails = Tails()
    tails.turn([(0.0, 0.010)], [(10.0, 0.030)], noticed_at=float("nan"))

    assert pytest.approx([3.0]) == tails.whole
    assert not tails.left_alone
    assert "once it was left alone: nothing measured" in str(tails)


async def test_the_bad_head_alone_may_fail() -> None:
    async with serving(answer(well=scores(0), bad={"error": {"code": "unavailable"}})) as port:
        forgiving, strict = Callers("127.0.0.1", port, 2, "bad"), Callers("127.0.0.1", port, 2, "well")
        await forgiving(0)
        with pytest.raises(MissingHeadError):
            await strict(0)
        for callers in (forgiving, strict):
            callers.close()

    assert (1, 0) == (len(forgiving.answers), len(strict.answers))


async def test_the_answer_to_another_text_is_none() -> None:
    async with serving(answer(well=scores(1))) as port:
        callers = Callers("127.0.0.1", port, 1)
        with pytest.raises(WrongAnswerError):
            await callers(0)
        callers.close()
