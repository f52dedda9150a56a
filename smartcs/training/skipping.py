"""Steps whose loss or gradient is not finite: skipped and counted; too many of them in a row end the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


class NonFiniteLossError(RuntimeError):
    """Losses or their gradients are NaN or infinite again and again; the weights are those before the first of them."""


class NotFinite(Exception):
    """Which number of a step is not, and all of the step's terms."""

    def __init__(self, what: str, numbers: list[float | None]) -> None:
        super().__init__(what)
        self.numbers = numbers


def check_loss(task: str, numbers: list[float | None]) -> None:
    """Raises NotFinite unless the total and the task's loss, the first of a `Loss`'s terms, are finite."""
    total, value = numbers[:2]
    assert total is not None and value is not None
    if not math.isfinite(value):
        raise NotFinite(f"{task} loss is {value}", numbers)
    if not math.isfinite(total):
        raise NotFinite(f"{task} loss with its regularisers is {total}", numbers)


def check_norm(task: str, numbers: list[float | None], norm: float) -> None:
    """The same of the norm of the gradients."""
    if not math.isfinite(norm):
        raise NotFinite(f"{task} gradient's norm is {norm}", numbers)


class Skips:
    """Counts skipped steps. In a row means of one task: what is wrong may be wrong with one task's head alone.

    Args:
        tasks: their names.
        most: how many in a row end the run, at least 1.

    Attributes:
        counts: per task, since the run began.
    """

    def __init__(self, tasks: Iterable[str], most: int) -> None:
        self.most = most
        self.counts = dict.fromkeys(tasks, 0)
        self._in_a_row = dict.fromkeys(self.counts, 0)

    def taken(self, task: str) -> None:
        """Counts a step that was not skipped."""
        self._in_a_row[task] = 0

    def skipped(self, task: str) -> bool:
        """Counts one that was; returns whether it is the one too many."""
        self.counts[task] += 1
        self._in_a_row[task] += 1
        return self._in_a_row[task] >= self.most

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"counts": dict(self.counts), "in_a_row": dict(self._in_a_row)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict` of the same tasks."""
        self.counts = {task: int(state["counts"][task]) for task in self.counts}
        self._in_a_row = {task: int(state["in_a_row"][task]) for task in self._in_a_row}
