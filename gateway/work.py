"""What each version has to do for one request, what it is spared by what was said before, and how both become one answer."""

from collections.abc import Iterable, Sequence
from itertools import chain

import msgspec
import numpy as np

from clients.wire.catalogue import Manifest
from clients.wire.long_text import scores_of_texts
from gateway.answers import read_scores
from gateway.classification import Classification, HeadAnswer
from gateway.outputs import key_of
from gateway.plan import Plan
from gateway.ports import FloatArray, Known, Outputs, VersionOutputs
from gateway.preprocess import Prepared, Reading, reading_of


class Work(msgspec.Struct, frozen=True):
    """One version's: *pieces* are the inputs of each text, *missing* those of the texts that are not *known*, each once.

    *known* is what was said of texts before, by whichever maker may answer. *keys* are those of all texts, where there are
    *outputs* to keep.
    """

    manifest: Manifest
    pieces: Sequence[tuple[int, ...]]
    known: dict[int, Known]
    missing: Sequence[int]
    outputs: VersionOutputs | None
    keys: list[bytes]

    @property
    def version(self) -> tuple[str, int]:
        """Name and number."""
        return self.manifest.name, self.manifest.version

    @property
    def is_plain(self) -> bool:
        """Whether what is computed are the scores of the texts as they are: one text, of one piece."""
        return len(self.pieces) == 1 == len(self.missing) and len(self.pieces[0]) == 1

    @property
    def asked(self) -> Sequence[int]:
        """The texts that the version is asked for."""
        everything = range(len(self.pieces))
        return [index for index in everything if index not in self.known] if self.known else everything

    @property
    def rows(self) -> list[list[int]]:
        """Where the pieces of each of *asked* are in *missing*."""
        row_of = {place: row for row, place in enumerate(self.missing)}
        return [[row_of[place] for place in self.pieces[index]] for index in self.asked]

    @property
    def told_before(self) -> list[tuple[Manifest, list[int]]]:
        """Who made what is known, and of which texts."""
        if not self.known:
            return []
        by_version: dict[int, tuple[Manifest, list[int]]] = {}
        for index, known in self.known.items():
            by_version.setdefault(known.maker.version, (known.maker, []))[1].append(index)
        return list(by_version.values())

    def finish(self, computed: FloatArray) -> FloatArray:
        """The scores of all texts, float32 [texts, labels]: *computed*, of *missing*, kept from now on, and what was known."""
        fresh = computed
        if self.missing:
            fresh = computed if self.is_plain else scores_of_texts(self.manifest, computed, self.rows)
            if self.outputs is not None:
                self.outputs.keep([self.keys[index] for index in self.asked], fresh)
        if not self.known:
            return fresh
        scores = np.empty((len(self.pieces), len(self.manifest.labels)), np.float32)
        scores[self.asked] = fresh
        for index, known in self.known.items():
            scores[index] = known.scores
        return scores

    def read(self, scores: FloatArray, request: Classification) -> list[HeadAnswer]:
        """What *scores*, of all texts, mean. What another version made is read by its own manifest, and said to be its."""
        answers = read_scores(self.manifest, scores, request)
        for maker, indices in self.told_before:
            if maker.version != self.manifest.version:
                for index, answer in zip(indices, read_scores(maker, scores[indices], request), strict=True):
                    answers[index] = answer
        return answers


def look_up(outputs: Outputs, plan: Plan, prepared: Prepared, *, may_reuse: bool) -> list[Work]:
    """The work of each version whose texts could be prepared; without *may_reuse* nothing said before spares any, or is kept."""
    keys: dict[Reading, list[bytes]] = {}
    everything = {reading: _each_once(pieces) for reading, pieces in prepared.places.items()}
    work = []
    for manifest in plan.versions:
        reading = reading_of(manifest)
        if reading in prepared.failed:
            continue
        pieces = prepared.places[reading]
        is_exact = (manifest.name, manifest.version) in plan.exact
        line = outputs.of(manifest, exact=is_exact) if may_reuse else None
        known: dict[int, Known] = {}
        if line is not None:
            if reading not in keys:
                keys[reading] = [key_of([prepared.inputs[place] for place in places]) for places in pieces]
            known = line.find(keys[reading])
        missing = everything[reading]
        if known:
            missing = _each_once([places for index, places in enumerate(pieces) if index not in known])
        work.append(Work(manifest, pieces, known, missing, line, keys.get(reading, [])))
    return work


def _each_once(pieces: Iterable[tuple[int, ...]]) -> Sequence[int]:
    return tuple(dict.fromkeys(chain.from_iterable(pieces)))
