"""Random choices that stay the same on every platform and in every version of Python and numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
_MASK = (1 << 64) - 1


class Draw:
    """A stream of choices that follows from (seed, name) alone.

    SplitMix64 (Steele, Lea, Flood 2014), seeded through SHA-256. The `random` module and numpy promise
    stable bits but not stable choices and shuffles, and the sample has to be the same everywhere.
    """

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        self._state = int.from_bytes(digest[:8], "little")

    def below(self, n: int) -> int:
        """An integer in 0..n-1."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * n) >> 64

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 cases."""
        return self.below(100) < percent

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def other(self, items: Sequence[Item], than: Item) -> Item:
        """One of the items that are not equal to `than`."""
        return self.pick([item for item in items if item != than])

    def two(self, items: Sequence[Item]) -> tuple[Item, Item]:
        """Two different items, in random order."""
        first = self.pick(items)
        return first, self.other(items, first)


def sentence(text: str, end: str = ".") -> str:
    """`text` as a sentence: first letter large, one final mark."""
    return text[0].upper() + text[1:] + end
