"""Which examples are held out as the test part: pure functions over their texts and answers.

Each text has a number of its own (`draws`), by itself and the seed and whatever stands beside it; those with the lowest ones are
held out. So data that have grown, or come in another order, hold out nearly the same texts as before, and a version that learnt
from the older data is not measured on what it learnt from.

What a head is chosen by is parted from the rest by `targets.part` and `targets.folds`; a change there moves no test part.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

Places = Sequence[int]
"""Where examples stand in their dataset, counted from 0."""

Draws = Sequence[int]
"""The number of each example, by its place."""


def draws(texts: Iterable[str], seed: int) -> list[int]:
    """The numbers of *texts*, 64 bits each."""
    salted = (f"{seed}\0{text}".encode("utf-8", "surrogatepass") for text in texts)
    return [int.from_bytes(blake2b(each, digest_size=8).digest(), "little") for each in salted]


def held_out_by_group(groups: Mapping[str, Places], drawn: Draws, share: float) -> set[int]:
    """*share* of the places of each group: at least one of each, and never all."""
    held: set[int] = set()
    for places in groups.values():
        held.update(_in_order(places, drawn)[: _num_held(len(places), share)])
    return held


def held_out_by_value(values: Sequence[float], drawn: Draws, share: float, *, max_bins: int = 10) -> set[int]:
    """*share* of each quantile bin of *values*, so that both parts have low and high ones in equal measure."""
    ascending = sorted(range(len(values)), key=lambda place: (values[place], drawn[place]))
    bins = max(1, min(max_bins, len(ascending) // 2))
    groups: dict[str, list[int]] = {}
    for rank, place in enumerate(ascending):
        groups.setdefault(f"bin {rank * bins // len(ascending)}", []).append(place)
    return held_out_by_group(groups, drawn, share)


def held_out_by_labels(label_sets: Sequence[Sequence[str]], drawn: Draws, share: float) -> set[int]:
    """*share* of the places, and as nearly as can be of those of each label; no label has all of its places held out.

    After iterative stratification (Sechidis, Tsoumakas, Vlahavas: "On the stratification of multi-label data", ECML PKDD 2011):
    the label with the fewest places left is dealt out first. Its places go to the held part until that has enough of the label,
    those with the lowest numbers first.
    """
    order = _in_order(range(len(label_sets)), drawn)
    places: dict[str, list[int]] = {}
    for place in order:
        for label in label_sets[place]:
            places.setdefault(label, []).append(place)
    dealt = _Deal(label_sets, {label: _num_held(len(having), share) for label, having in places.items()}, share)
    left = {label: len(having) for label, having in places.items()}
    while left:
        # By name as well: labels of one count are dealt out in the same order every time.
        rarest = min(left, key=lambda label: (left[label], label))
        del left[rarest]
        for place in places[rarest]:
            if dealt.deal(place, rarest):
                for other in label_sets[place]:
                    if other in left:
                        left[other] -= 1
    for place in order:
        dealt.deal(place, None)
    return _leaving_some(dealt.held, places)


def _in_order(places: Iterable[int], drawn: Draws) -> list[int]:
    return sorted(places, key=lambda place: (drawn[place], place))


def _num_held(count: int, share: float) -> int:
    return min(max(1, round(count * share)), count - 1)


def _leaving_some(held: set[int], places: Mapping[str, Places]) -> set[int]:
    """*held* less one place for each label that would have none left to learn from."""
    for having in places.values():
        if held.issuperset(having):
            held.remove(having[-1])
    return held


class _Deal:
    """Deals places out; *wanted* says how many places with each label the held part is to have."""

    def __init__(self, label_sets: Sequence[Sequence[str]], wanted: dict[str, int], share: float) -> None:
        self._label_sets = label_sets
        self._wanted = wanted
        self._room = _num_held(len(label_sets), share) if label_sets else 0
        self._dealt: set[int] = set()
        self.held: set[int] = set()

    def deal(self, place: int, label: str | None) -> bool:
        """Hold *place* out where the held part lacks *label*, without one where it has room; False when it has been dealt."""
        if place in self._dealt:
            return False
        self._dealt.add(place)
        if (self._room if label is None else self._wanted[label]) > 0:
            self.held.add(place)
            self._room -= 1
            for each in self._label_sets[place]:
                self._wanted[each] -= 1
        return True
