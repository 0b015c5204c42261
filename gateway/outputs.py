"""What versions said of texts seen before, for as long as the live version would hardly do better.

The rule of 80 and 20: outputs are worth keeping where a head is right often enough, and a kept one ends when the head has become
better by a set gain, not by a clock and not by the mere coming of a new version. What was made by an older version is answered as
that version's. docs/decisions/0019-outputs-end-when-the-head-got-better.md has the reasons.
"""

import itertools
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol

import numpy as np

from clients.wire.catalogue import Catalogue, Manifest
from clients.wire.text import Encoded
from gateway.ports import FloatArray, Known, VersionOutputs

KEY_BYTES: Final = 16

ENTRY_OVERHEAD: Final = 400
"""Bytes an entry costs beside its scores: its key and the objects around it, as measured by tracemalloc."""

CALIBRATION_TOLERANCE: Final = 0.1
"""Temperature and thresholds are fitted anew at each training, so they differ a little by chance. Farther apart than this, one
by its ratio, the others by their differences, somebody meant it."""

_ROUNDING: Final = 1e-9
_BETWEEN_WINDOWS: Final = -1
"""No token id."""


class OutputTelemetry(Protocol):
    """Told of the cache of outputs; must be quick and never raise."""

    def cache_looked_up(self, head: str, *, hits: int, misses: int) -> None:
        """Texts of a request were looked up for one head."""
        ...

    def cache_dropped(self, reason: str, count: int) -> None:
        """Entries left: "room", "corrupt"."""
        ...


@dataclass(frozen=True, slots=True)
class OutputRules:
    """Outputs are kept of versions whose recorded accuracy (R² of a regression) is at least *min_accuracy*, both 0 to 1.

    They end when the live version's is *accuracy_gain* above that of the one that made them.
    """

    min_accuracy: float = 0.8
    accuracy_gain: float = 0.01

    def keeps(self, manifest: Manifest) -> bool:
        """Whether *manifest*'s version is right often enough."""
        return manifest.metrics is not None and manifest.metrics.accuracy >= self.min_accuracy

    def holds(self, maker: Manifest, live: Manifest) -> bool:
        """Whether what *maker* said may still answer where *live* is asked: it is no later version, and *live* hardly better."""
        if maker.version == live.version:
            return True
        if maker.version > live.version or maker.metrics is None or live.metrics is None:
            return False
        has_grown = live.metrics.accuracy - maker.metrics.accuracy >= self.accuracy_gain - _ROUNDING
        return not has_grown and _means_the_same(maker, live)


def _means_the_same(one: Manifest, other: Manifest) -> bool:
    """Whether both read texts alike and answer with the same labels at much the same confidence."""
    apart = [abs(a - b) for a, b in zip(one.thresholds, other.thresholds, strict=False)]
    return (
        (one.task, one.labels, one.trunk.fingerprint) == (other.task, other.labels, other.trunk.fingerprint)
        and (one.preprocess, one.long_text) == (other.preprocess, other.long_text)
        and max(one.temperature, other.temperature) <= (1.0 + CALIBRATION_TOLERANCE) * min(one.temperature, other.temperature)
        and len(one.thresholds) == len(other.thresholds)
        and max(apart, default=0.0) <= CALIBRATION_TOLERANCE
    )


def key_of(pieces: Sequence[Encoded]) -> bytes:
    """The key of a text by the token ids of its pieces, in `KEY_BYTES`: one, or one a window."""
    ids = array("q", pieces[0].ids)
    for piece in pieces[1:]:
        ids.append(_BETWEEN_WINDOWS)
        ids.extend(piece.ids)
    return blake2b(ids, digest_size=KEY_BYTES).digest()


class NoOutputs:
    """Remembers nothing."""

    def of(self, manifest: Manifest, *, exact: bool) -> None:
        """See `gateway.ports.Outputs`."""


class OutputCache:
    """Owner of the last used outputs, at most *max_bytes* of them. All methods belong to the event loop's thread.

    What may answer for which version follows from the catalogues in the order in which they came. Entries that no longer may are
    not looked for: they are found missing, are overwritten, or are the least used when room is needed.
    """

    def __init__(self, max_bytes: int, rules: OutputRules, telemetry: OutputTelemetry) -> None:
        self._rules = rules
        self._telemetry = telemetry
        self._rows = _Rows(max_bytes, telemetry)
        self._stable: dict[str, _Line] = {}
        self._own: dict[tuple[str, int], _Line] = {}
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<OutputCache [{self.num_entries} outputs, {self.num_bytes} bytes]>"

    @property
    def num_entries(self) -> int:
        """How many outputs are held."""
        return len(self._rows.entries)

    @property
    def num_bytes(self) -> int:
        """What they take."""
        return self._rows.num_bytes

    def of(self, manifest: Manifest, *, exact: bool) -> VersionOutputs | None:
        """See `gateway.ports.Outputs`. None, too, for versions that are not live any more while a request still asks them."""
        if exact:
            return self._own.get((manifest.name, manifest.version))
        line = self._stable.get(manifest.name)
        return line if line is not None and line.live.version == manifest.version else None

    def follow(self, catalogue: Catalogue) -> None:
        """See `gateway.ports.CatalogueFollower`."""
        heads, keeps = catalogue.heads.values(), self._rules.keeps
        stable = [live for head in heads if keeps(live := head.versions[head.stable])]
        own = [manifest for head in heads for manifest in head.versions.values() if keeps(manifest)]
        self._stable = {live.name: self._line(live, self._stable.get(live.name)) for live in stable}
        self._own = {key: self._line(one, self._own.get(key)) for one in own if (key := (one.name, one.version))}

    def _line(self, live: Manifest, before: "_Line | None") -> "_Line":
        """The line of *live*, with those of the makers *before* it whose outputs still hold."""
        # Another manifest under the same number is another version: the head was removed and made again.
        if before is None or before.makers.get(live.version, live) != live:
            return _Line(next(self._numbers), live, {live.version: live}, self._rows, self._telemetry)
        makers = {version: maker for version, maker in before.makers.items() if self._rules.holds(maker, live)}
        return _Line(before.number, live, makers | {live.version: live}, self._rows, self._telemetry)


_Entry = tuple[int, bytes, int]
"""Version, scores and their checksum. A plain tuple: the collector need not look at it."""


class _Rows:
    """Outputs by the number of their line and the key of their text, those used last at the end."""

    def __init__(self, max_bytes: int, telemetry: OutputTelemetry) -> None:
        self.entries: OrderedDict[tuple[int, bytes], _Entry] = OrderedDict()
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._telemetry = telemetry

    def put(self, key: tuple[int, bytes], entry: _Entry) -> None:
        known = self.entries.pop(key, None)
        self.num_bytes += _size(entry) - (0 if known is None else _size(known))
        self.entries[key] = entry
        num_dropped = 0
        while self.num_bytes > self._max_bytes:
            _, oldest = self.entries.popitem(last=False)
            self.num_bytes -= _size(oldest)
            num_dropped += 1
        if num_dropped:
            self._telemetry.cache_dropped("room", num_dropped)

    def forget(self, key: tuple[int, bytes]) -> None:
        self.num_bytes -= _size(self.entries.pop(key))
        self._telemetry.cache_dropped("corrupt", 1)


def _size(entry: _Entry) -> int:
    return len(entry[1]) + ENTRY_OVERHEAD


@dataclass(frozen=True, slots=True)
class _Line:
    """The outputs that may answer for *live*: those made by one of *makers*, by version. See `gateway.ports.VersionOutputs`."""

    number: int
    live: Manifest
    makers: Mapping[int, Manifest]
    rows: _Rows
    telemetry: OutputTelemetry

    def find(self, keys: Sequence[bytes]) -> dict[int, Known]:
        """See `gateway.ports.VersionOutputs`. What its checksum does not fit is forgotten."""
        found = {}
        entries = self.rows.entries
        for place, key in enumerate(keys):
            entry = entries.get((self.number, key))
            if entry is None:
                continue
            version, content, checksum = entry
            maker = self.makers.get(version)
            if maker is None:
                continue
            if zlib.crc32(content) != checksum:
                self.rows.forget((self.number, key))
                continue
            entries.move_to_end((self.number, key))
            found[place] = Known(maker, np.frombuffer(content, np.float32))
        self.telemetry.cache_looked_up(self.live.name, hits=len(found), misses=len(keys) - len(found))
        return found

    def keep(self, keys: Sequence[bytes], scores: FloatArray) -> None:
        """See `gateway.ports.VersionOutputs`."""
        for key, row in zip(keys, scores, strict=True):
            content = row.tobytes()
            self.rows.put((self.number, key), (self.live.version, content, zlib.crc32(content)))
