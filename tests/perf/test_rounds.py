from collections.abc import Collection, Iterator

from perf.machine import Snapshot
from perf.rounds import MAX_TRIES, Patience, Rounds


def rounds(*shares: float, said: list[str], patience: Patience | None = None) -> Rounds:
    """Whose neighbours use *shares* of the machine during one try after another; nobody waits before them."""

    def snapshots() -> Iterator[Snapshot]:
        for share in shares:
            yield Snapshot(0, 0, 0)
            yield Snapshot(busy=4, ours=4 - 10 * share, available=10)

    taken = snapshots()

    def take(_: Collection[int]) -> Snapshot:
        return next(taken)

    return Rounds((), said.append, max_waits=0, patience=patience or Patience(), take_snapshot=take)


class Measure:
    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        return self.count


async def test_a_quiet_round_is_taken_once() -> None:
    measure, said = Measure(), list[str]()
    taken = rounds(0.01, said=said)

    assert 1 == await taken.take(measure)
    assert 0 == taken.num_disturbed


async def test_a_disturbed_round_is_thrown_out_said_and_repeated() -> None:
    measure, said = Measure(), list[str]()
    taken = rounds(0.3, 0.02, said=said)

    assert 2 == await taken.take(measure)
    assert any("30%" in line for line in said)
    assert 0 == taken.num_disturbed


async def test_when_it_never_becomes_quiet_the_last_round_is_kept_and_counted() -> None:
    measure, said = Measure(), list[str]()
    taken = rounds(*[0.5] * MAX_TRIES, said=said)

    assert MAX_TRIES == await taken.take(measure)
    assert 1 == taken.num_disturbed
    assert "kept all the same" in said[-1]


async def test_out_of_patience_every_round_is_taken_once_as_it_comes() -> None:
    measure, said = Measure(), list[str]()
    taken = rounds(0.3, 0.4, 0.01, said=said, patience=Patience(0))

    assert [1, 2, 3] == [await taken.take(measure) for _ in range(3)]
    assert 2 == taken.num_disturbed


async def test_rounds_that_do_not_count_cost_the_patience_of_all_who_share_it() -> None:
    measure, said, patience = Measure(), list[str](), Patience(1e-9)
    first = rounds(0.3, 0.4, said=said, patience=patience)
    second = rounds(0.3, said=said, patience=patience)

    assert 2 == await first.take(measure)
    assert patience.is_at_its_end
    assert 3 == await second.take(measure)
