"""SentencePiece's precompiled character map: the bytes from which a tokenizer.json's `Precompiled` normaliser reads its rules.

Layout, all little-endian: uint32 size of the trie in bytes; the trie, uint32 units of a double array as Darts-clone has it;
the replacements in UTF-8, each ended by a NUL. The value of a key in the trie is where its replacement begins.

A unit at place p: bits 0-7 the byte that leads here, bit 8 whether a value ends the key, bits 10-30 what gives, XORed with p,
the node's base. The child for byte b stands at base ^ b, a value at base itself, with bit 31 set.
"""

import struct
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Final

import numpy as np

MAX_RULES: Final = 1 << 16
"""More would not fit the 21 bits that a base has in a unit."""

_HAS_VALUE: Final = 1 << 8
_BASE_SHIFT: Final = 10
_IS_VALUE: Final = 1 << 31
_BLOCK: Final = 256


def precompiled(rules: Mapping[str, str]) -> bytes:
    """The map that replaces each key, one character, by its value; neither holds a NUL, and there are at most `MAX_RULES`.

    The same rules give the same bytes. The readers in use have a quirk that is theirs: an accent after a replaced
    character is dropped when both take fewer than 6 bytes together.
    """
    replacements = bytearray()
    places: dict[str, int] = {}
    for replacement in sorted(set(rules.values())):
        places[replacement] = len(replacements)
        replacements += replacement.encode() + b"\0"
    trie = _double_array({key.encode(): places[value] for key, value in rules.items()})
    return struct.pack("<I", len(trie)) + trie + replacements


def _double_array(values: Mapping[bytes, int]) -> bytes:
    """*values* by key; no key begins another one, as no character's UTF-8 begins another's."""
    children = _children(values)
    units: dict[int, int] = {0: 0}
    bases = _Bases(units)
    waiting = [(b"", 0)]
    for prefix, place in waiting:
        if prefix in values:
            base = bases.take([0])
            units[base] = values[prefix] | _IS_VALUE
            units[place] |= _HAS_VALUE
        else:
            labels = children.get(prefix, [])
            base = bases.take(labels)
            units |= {base ^ label: label for label in labels}
            waiting += [(prefix + bytes([label]), base ^ label) for label in labels]
        units[place] |= (place ^ base) << _BASE_SHIFT
    # Whole blocks: whatever byte a reader XORs to a base, it stays inside.
    array = np.zeros((max(units) // _BLOCK + 1) * _BLOCK, dtype="<u4")
    for place, unit in units.items():
        array[place] = unit
    return array.tobytes()


def _children(keys: Mapping[bytes, int]) -> dict[bytes, list[int]]:
    """Which bytes follow each beginning of a key, in order."""
    labels: dict[bytes, set[int]] = {}
    for key in keys:
        for length in range(len(key)):
            labels.setdefault(key[:length], set()).add(key[length])
    return {prefix: sorted(found) for prefix, found in labels.items()}


class _Bases:
    """Gives each node a base of its own, so that no node can be taken for another's child; owns which are gone.

    *units* is the array so far: a place in it is not free.
    """

    def __init__(self, units: Mapping[int, int]) -> None:
        self._units = units
        self._taken: set[int] = set()
        self._first = 0

    def take(self, labels: list[int]) -> int:
        """The lowest base at which a child for each of *labels* finds its place free."""
        base = next(base for base in self._untaken() if all(base ^ label not in self._units for label in labels))
        self._taken.add(base)
        return base

    def _untaken(self) -> Iterator[int]:
        # A node without a value could have an occupied base; passing those by costs little room and saves the most time.
        while self._first in self._taken or self._first in self._units:
            self._first += 1
        return (base for base in count(self._first) if base not in self._taken)
