"""How the word tables are written down: one string per list, so that they can be read as lists."""

from __future__ import annotations

from typing import TypeAlias

Wordings: TypeAlias = tuple[str, ...]
"""One meaning and its wordings; any of them may stand for any other."""


def words(text: str) -> tuple[str, ...]:
    """``"a, b c"`` -> ``("a", "b c")``."""
    return tuple(text.split(", "))


def wordings(text: str) -> tuple[Wordings, ...]:
    """``"a, b/c"`` -> ``(("a",), ("b", "c"))``: meanings by comma, wordings of one meaning by slash."""
    return tuple(tuple(meaning.split("/")) for meaning in text.split(", "))
