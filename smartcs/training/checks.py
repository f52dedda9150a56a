"""Checks of configuration values; messages name the field, what it got and what it wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smartcs.data.examples import TASKS


class Fields:
    """Checks the fields of one configuration.

    Args:
        config: any object with the fields as attributes.
        name: how messages call a field, e.g. "TrainConfig: {}" or "TrainConfig: smart.{}".

    Every method raises ValueError where a field is not what the method's name says.
    """

    def __init__(self, config: Any, name: str) -> None:
        self._config, self._name = config, name

    def integer(self, *names: str, low: int, high: int | None = None, optional: bool = False) -> None:
        """An integer from `low` to `high` (no limit when left out)."""
        wanted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {_power(high)}"
        for name in names:
            value = getattr(self._config, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            ok = whole and value >= low and (high is None or value <= high)
            self.that(name, ok or (optional and value is None), wanted)

    def number(self, *names: str, low: float = 0, above: bool = False, below: float | None = None) -> None:
        """A finite number of at least `low` (above it with `above`), and less than `below` if that is given."""
        for name in names:
            value = getattr(self._config, name)
            ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            ok = ok and (value > low if above else value >= low) and (below is None or value < below)
            wanted = f"a number {'above' if above else 'of at least'} {low:g}"
            self.that(name, ok, wanted if below is None else f"{low:g} <= {name} < {below:g}")

    def flag(self, *names: str) -> None:
        """True or false."""
        for name in names:
            self.that(name, isinstance(getattr(self._config, name), bool), "true or false")

    def text(self, *names: str, what: str = "a name", optional: bool = False) -> None:
        """A string that is not empty."""
        for name in names:
            value = getattr(self._config, name)
            self.that(name, (isinstance(value, str) and value != "") or (optional and value is None), what)

    def choice(self, name: str, choices: Sequence[str]) -> None:
        """One of `choices`."""
        self.that(name, getattr(self._config, name) in choices, f"one of {', '.join(choices)}")

    def tasks(self, name: str, *, none: bool = True) -> None:
        """What `task_names` reads."""
        try:
            names = task_names(getattr(self._config, name))
        except ValueError:
            names = ()
        ok = bool(names) or (none and getattr(self._config, name) == "none")
        self.that(name, ok, f"{'none, ' if none else ''}all, or some of {', '.join(TASKS)} joined by +")

    def that(self, name: str, valid: bool, wanted: str) -> None:
        """Any other condition."""
        if not valid:
            value = getattr(self._config, name)
            raise ValueError(f"{self._name.format(name)} is {value!r}, expected {wanted}")


def task_names(tasks: str) -> tuple[str, ...]:
    """The tasks that "none", "all" or names joined by + stand for, in the order of TASKS.

    Raises:
        ValueError: an unknown name.
    """
    if tasks == "none":
        return ()
    named = set(TASKS) if tasks == "all" else set(tasks.split("+")) if isinstance(tasks, str) else {""}
    if not named <= set(TASKS):
        raise ValueError(f"tasks are {tasks!r}, expected none, all, or some of {', '.join(TASKS)} joined by +")
    return tuple(name for name in TASKS if name in named)


def _power(high: int) -> str:
    return f"2**{(high + 1).bit_length() - 1} - 1" if high >= 2**31 and high & (high + 1) == 0 else str(high)
