"""What the trunk said of the inputs of one request, and what heads read of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clients.wire.catalogue import Manifest, View, views_of
from gateway.ports import Rows


@dataclass(frozen=True, slots=True)
class Vectors:
    """For each view one array an input; *row_of* says which input, by its place, is where.

    Heads that read the same of the same inputs get the same object: they may be asked together.
    """

    of: dict[View, Rows]
    row_of: dict[int, int]
    _made: dict[tuple[tuple[View, ...], tuple[int, ...]], Rows] = field(default_factory=dict)

    def has(self, manifest: Manifest, places: Sequence[int]) -> bool:
        """Whether all that a head reads of *places* is here."""
        return all(view in self.of for view in views_of(manifest)) and all(place in self.row_of for place in places)

    def rows(self, manifest: Manifest, places: Sequence[int]) -> Rows:
        """What a head reads of each of *places*: its view, or that at several layers, one behind the other."""
        key = views_of(manifest), tuple(places)
        known = self._made.get(key)
        if known is None:
            known = self._made[key] = self._read(*key)
        return known

    def _read(self, views: tuple[View, ...], places: tuple[int, ...]) -> Rows:
        parts = [self.of[view] for view in views]
        if places != tuple(self.row_of):
            parts = [[part[self.row_of[place]] for place in places] for part in parts]
        return parts[0] if len(parts) == 1 else [np.concatenate(rows, axis=-1) for rows in zip(*parts, strict=True)]
