from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from clients.wire.catalogue import Catalogue, CatalogueHead, Manifest, Metrics
from clients.wire.text import Encoded
from gateway.outputs import ENTRY_OVERHEAD, OutputCache, OutputRules, key_of
from gateway.ports import FloatArray
from tests.gateway.fakes import manifest

RULES = OutputRules(min_accuracy=0.8, accuracy_gain=0.01)
KEY = b"a text's key ..."


class FakeTelemetry:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def cache_looked_up(self, head: str, *, hits: int, misses: int) -> None:
        self.counts["hits"] += hits
        self.counts["misses"] += misses

    def cache_dropped(self, reason: str, count: int) -> None:
        self.counts[reason] += count


def rated(version: int, accuracy: float | None, **changed: object) -> Manifest:
    metrics = None if accuracy is None else Metrics(accuracy, 0.0, 100, 100, "sha256:data")
    return replace(manifest("topic", version=version), metrics=metrics, **changed)


def catalogue(stable: Manifest, *others: Manifest) -> Catalogue:
    versions = {one.version: one for one in (*others, stable)}
    return Catalogue({"topic": CatalogueHead(stable=stable.version, versions=versions)})


def cache(*live: Manifest, max_bytes: int = 1_000_000) -> OutputCache:
    """One that has seen catalogues with these stable versions, one after the other."""
    made = OutputCache(max_bytes, RULES, FakeTelemetry())
    for one in live:
        made.follow(catalogue(one))
    return made


def keep(outputs: OutputCache, made_by: Manifest, key: bytes = KEY, *, exact: bool = False, score: float = 0.5) -> None:
    line = outputs.of(made_by, exact=exact)
    assert line is not None
    line.keep([key], row(score))


def found(outputs: OutputCache, asked: Manifest, key: bytes = KEY, *, exact: bool = False) -> tuple[int, list[float]] | None:
    """The version that said it, and what."""
    line = outputs.of(asked, exact=exact)
    known = {} if line is None else line.find([key])
    return None if not known else (known[0].maker.version, known[0].scores.tolist())


def row(score: float) -> FloatArray:
    return np.array([[score, 1 - score]], np.float32)


def test_outputs_are_kept_of_heads_that_are_right_often_enough() -> None:
    for accuracy, is_kept in ((None, False), (0.79, False), (0.8, True), (1.0, True)):
        one = rated(1, accuracy)
        assert (cache(one).of(one, exact=False) is not None) is is_kept


def test_what_was_said_of_a_text_is_known_and_of_another_it_is_not() -> None:
    one = rated(1, 0.9)
    outputs = cache(one)
    keep(outputs, one, score=0.25)

    assert (1, [0.25, 0.75]) == found(outputs, one)
    assert found(outputs, one, b"another") is None


def test_the_coming_of_a_version_that_is_hardly_better_ends_nothing_and_the_answer_is_its_makers() -> None:
    old, new = rated(1, 0.9), rated(2, 0.905)
    outputs = cache(old)
    keep(outputs, old)
    outputs.follow(catalogue(new))

    assert (1, [0.5, 0.5]) == found(outputs, new)


def test_gains_add_up_until_they_end_what_was_kept() -> None:
    first, second, third = rated(1, 0.900), rated(2, 0.906), rated(3, 0.910)
    outputs = cache(first)
    keep(outputs, first, b"of the first")
    outputs.follow(catalogue(second))
    keep(outputs, second, b"of the second")
    outputs.follow(catalogue(third))

    assert found(outputs, third, b"of the first") is None
    assert found(outputs, third, b"of the second") == (2, [0.5, 0.5])


def test_what_was_made_of_long_texts_in_another_way_is_not_answered() -> None:
    mean, highest = rated(1, 0.9, long_text="mean"), rated(2, 0.9, long_text="max")
    outputs = cache(mean)
    keep(outputs, mean)
    outputs.follow(catalogue(highest))

    assert found(outputs, highest) is None


def test_what_ended_does_not_come_back_with_a_worse_version() -> None:
    first, better, worse = rated(1, 0.9), rated(2, 0.95), rated(3, 0.9)
    outputs = cache(first)
    keep(outputs, first)
    outputs.follow(catalogue(better))
    outputs.follow(catalogue(worse))

    assert found(outputs, worse) is None


@pytest.mark.parametrize(
    ("changed", "still_holds"),
    [
        ({}, True),
        ({"labels": ("spam", "ham")}, False),
        ({"task": "multi_label"}, False),
        ({"temperature": 1.05}, True),
        ({"temperature": 1.5}, False),
        ({"temperature": 0.5}, False),
        ({"thresholds": (0.5, 0.5)}, False),
        ({"trunk": manifest("topic", trunk="sha256:two").trunk}, False),
    ],
)
def test_outputs_end_when_what_they_mean_has_changed(changed: dict[str, object], still_holds: bool) -> None:
    old, new = rated(1, 0.9), rated(2, 0.9, **changed)
    outputs = cache(old)
    keep(outputs, old)
    outputs.follow(catalogue(new))

    assert (found(outputs, new) is not None) is still_holds


def test_thresholds_that_were_fitted_anew_end_nothing_and_those_somebody_moved_do() -> None:
    old, fitted, moved = (rated(1 + n, 0.9, task="multi_label", thresholds=(0.5, t)) for n, t in enumerate((0.5, 0.55, 0.75)))
    outputs = cache(old)
    keep(outputs, old)
    outputs.follow(catalogue(fitted))
    assert found(outputs, fitted) is not None
    outputs.follow(catalogue(moved))
    assert found(outputs, moved) is None


def test_after_a_roll_back_nothing_of_what_was_rolled_back_answers_any_more() -> None:
    good, bad, next_one = rated(1, 0.9), rated(2, 0.905), rated(3, 0.905)
    outputs = cache(good)
    keep(outputs, good, b"of the good")
    outputs.follow(catalogue(bad))
    keep(outputs, bad, b"of the bad")
    outputs.follow(catalogue(good))

    assert found(outputs, good, b"of the bad") is None
    assert found(outputs, good, b"of the good") == (1, [0.5, 0.5])
    outputs.follow(catalogue(next_one))
    assert found(outputs, next_one, b"of the bad") is None
    assert found(outputs, next_one, b"of the good") == (1, [0.5, 0.5])


def test_a_canary_and_the_stable_version_never_answer_for_each_other() -> None:
    stable, canary = rated(1, 0.9), rated(2, 0.9)
    outputs = cache()
    outputs.follow(catalogue(stable, canary))
    keep(outputs, stable, b"by the stable one")
    keep(outputs, canary, b"by the canary", exact=True)

    assert found(outputs, canary, b"by the stable one", exact=True) is None
    assert found(outputs, stable, b"by the canary") is None
    assert found(outputs, canary, b"by the canary", exact=True) == (2, [0.5, 0.5])


def test_a_version_asked_for_by_itself_answers_itself() -> None:
    old, new = rated(1, 0.9), rated(2, 0.9)
    outputs = cache(old)
    keep(outputs, old)
    outputs.follow(catalogue(new))

    assert found(outputs, new, exact=True) is None


def test_a_head_removed_and_made_again_under_the_same_numbers_knows_nothing() -> None:
    one, another = rated(1, 0.9), rated(1, 0.9, created="later")
    outputs = cache(one)
    keep(outputs, one)
    outputs.follow(catalogue(another))

    assert found(outputs, another) is None


def test_a_version_that_is_no_longer_live_is_neither_asked_for_nor_kept() -> None:
    old, new = rated(1, 0.9), rated(2, 0.9)
    outputs = cache(old, new)

    assert outputs.of(old, exact=False) is None
    assert outputs.of(old, exact=True) is None


def test_what_was_used_last_stays_within_the_bytes() -> None:
    one = rated(1, 0.9)
    outputs = cache(one, max_bytes=3 * (ENTRY_OVERHEAD + 8))
    for key in (b"a", b"b", b"c"):
        keep(outputs, one, key)
    found(outputs, one, b"a")
    keep(outputs, one, b"d")
    keep(outputs, one, b"d")

    assert [True, False, True, True] == [found(outputs, one, key) is not None for key in (b"a", b"b", b"c", b"d")]
    assert "<OutputCache [3 outputs, 1224 bytes]>" == repr(outputs)


def test_a_damaged_entry_is_a_miss() -> None:
    one, telemetry = rated(1, 0.9), FakeTelemetry()
    outputs = OutputCache(1_000, RULES, telemetry)
    outputs.follow(catalogue(one))
    keep(outputs, one)
    entries = outputs._rows.entries
    [(place, (version, content, checksum))] = entries.items()
    entries[place] = (version, bytes(len(content)), checksum)

    assert found(outputs, one) is None
    assert 0 == outputs.num_bytes
    assert {"misses": 1, "corrupt": 1} == {name: count for name, count in telemetry.counts.items() if count}


def test_hits_misses_and_evictions_are_told() -> None:
    one, telemetry = rated(1, 0.9), FakeTelemetry()
    outputs = OutputCache(ENTRY_OVERHEAD + 8, RULES, telemetry)
    outputs.follow(catalogue(one))
    line = outputs.of(one, exact=False)
    assert line is not None
    line.keep([b"a", b"b"], np.concatenate([row(0.5), row(0.25)]))
    line.find([b"a", b"b", b"c"])

    assert {"room": 1, "hits": 1, "misses": 2} == telemetry.counts


def encoded(pieces: Sequence[Sequence[int]]) -> list[Encoded]:
    return [Encoded(list(piece), truncated=False) for piece in pieces]


windows = st.lists(st.lists(st.integers(0, 250_000), min_size=2, max_size=6), min_size=1, max_size=4)


@given(windows, windows)
def test_texts_have_the_same_key_when_they_have_the_same_pieces(one: list[list[int]], other: list[list[int]]) -> None:
    assert (key_of(encoded(one)) == key_of(encoded(other))) is (one == other)
