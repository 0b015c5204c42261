"""What the trunk said of the inputs of one request, and what heads read of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clients.wire.catalogue import Manifest, View, views_of
from gateway.ports import Rows


@dataclass(frozen=True, slots=True)
class Vectors:
    """For each view one array an input; *row_of* says which input, by its place, is where."""

    of: dict[View, Rows]
    row_of: dict[int, int]

    def has(self, manifest: Manifest, places: Sequence[int]) -> bool:
        """Whether all that a head reads of *places* is here."""
        return all(view in self.of for view in views_of(manifest)) and all(place in self.row_of for place in places)

    def rows(self, manifest: Manifest, places: Sequence[int]) -> Rows:
        """What a head reads of each of *places*: its view, or that at several layers, one behind the other."""
        parts = [self.of[view] for view in views_of(manifest)]
        if list(places) != list(self.row_of):
            parts = [[part[self.row_of[place]] for place in places] for part in parts]
        return parts[0] if len(parts) == 1 else [np.concatenate(rows, axis=-1) for rows in zip(*parts, strict=True)]
