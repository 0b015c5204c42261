from clients.wire.text import Encoded
from perf.micro.tokens import in_turns, seconds_a_text


class Counting:
    """Takes note of what it is asked to encode."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: list[str]) -> list[Encoded]:
        self.calls.append(texts)
        return []


def test_every_text_is_encoded_once_by_as_many_a_call_as_asked_for() -> None:
    encoder = Counting()
    assert seconds_a_text(encoder.encode, ["a", "b", "c"], 2) > 0
    assert [["a", "b"], ["c"]] == encoder.calls


def test_ways_take_turns_and_the_first_round_is_left_out() -> None:
    order = []

    def way(name: str, seconds: list[float]) -> float:
        order.append(name)
        return seconds.pop(0)

    slow, quick = [0.9, 0.002, 0.004], [0.9, 0.001, 0.003]
    found = in_turns({"slow": lambda: way("slow", slow), "quick": lambda: way("quick", quick)}, 2)

    assert {"slow": [2_000, 4_000], "quick": [1_000, 3_000]} == found
    assert ["slow", "quick"] * 3 == order
