"""Which examples are held out as the test part: pure functions over their answers, the same for the same input and seed.

What a head is chosen by is parted from the rest by `targets.part` and `targets.folds`; a change there moves no test part.
"""

import random
from collections.abc import Mapping, Sequence

Places = Sequence[int]
"""Where examples stand in their dataset, counted from 0."""


def held_out_by_group(groups: Mapping[str, Places], share: float, seed: int) -> set[int]:
    """*share* of the places of each group: at least one of each, and never all."""
    held: set[int] = set()
    for name in sorted(groups):
        shuffled = list(groups[name])
        random.Random(f"{seed} {name}").shuffle(shuffled)  # noqa: S311 (a repeatable split, no secret)
        held.update(shuffled[: _num_held(len(shuffled), share)])
    return held


def held_out_by_value(values: Sequence[float], share: float, seed: int, *, max_bins: int = 10) -> set[int]:
    """*share* of each quantile bin of *values*, so that both parts have low and high ones in equal measure."""
    ascending = sorted(range(len(values)), key=lambda place: (values[place], place))
    bins = max(1, min(max_bins, len(ascending) // 2))
    groups: dict[str, list[int]] = {}
    for rank, place in enumerate(ascending):
        groups.setdefault(f"bin {rank * bins // len(ascending)}", []).append(place)
    return held_out_by_group(groups, share, seed)


def held_out_by_labels(label_sets: Sequence[Sequence[str]], share: float, seed: int) -> set[int]:
    """*share* of the places, and as nearly as can be of those of each label; no label has all of its places held out.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas: "On the stratification of multi-label data", ECML PKDD 2011): the
    label with the fewest places left is dealt out first, each of its places to the part that lacks that label most.
    """
    order = list(range(len(label_sets)))
    random.Random(seed).shuffle(order)  # noqa: S311 (a repeatable split, no secret)
    places: dict[str, list[int]] = {}
    for place in order:
        for label in label_sets[place]:
            places.setdefault(label, []).append(place)
    wanted = {label: _num_held(len(having), share) for label, having in places.items()}
    dealt = _Deal(label_sets, {label: (len(having) - wanted[label], wanted[label]) for label, having in places.items()}, share)
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


def _num_held(count: int, share: float) -> int:
    return min(max(1, round(count * share)), count - 1)


def _leaving_some(held: set[int], places: Mapping[str, Places]) -> set[int]:
    """*held* less one place for each label that would have none left to learn from."""
    for having in places.values():
        if held.issuperset(having):
            held.remove(having[0])
    return held


class _Deal:
    """Deals places out to (kept, held); *wanting* says how many places with each label either part still lacks."""

    def __init__(self, label_sets: Sequence[Sequence[str]], wanting: dict[str, tuple[int, int]], share: float) -> None:
        self._label_sets = label_sets
        self._wanting = {label: list(counts) for label, counts in wanting.items()}
        num_held = _num_held(len(label_sets), share) if label_sets else 0
        self._room = [len(label_sets) - num_held, num_held]
        self._dealt: set[int] = set()
        self.held: set[int] = set()

    def deal(self, place: int, label: str | None) -> bool:
        """Give *place* to the part that lacks *label* most, without one to the part with most room; False when it has been."""
        if place in self._dealt:
            return False
        lacking = self._room if label is None else self._wanting[label]
        part = int((lacking[1], self._room[1]) > (lacking[0], self._room[0]))
        self._dealt.add(place)
        self._room[part] -= 1
        for each in self._label_sets[place]:
            self._wanting[each][part] -= 1
        if part:
            self.held.add(place)
        return True
