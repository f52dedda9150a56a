"""Mean losses of an epoch, which may be resumed in its middle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smartcs.training.steps import Step


class EpochLosses:
    """Sums of the losses of an epoch's steps, task by task; those of skipped steps do not count."""

    def __init__(self, tasks: Iterable[str]) -> None:
        self._sums = dict.fromkeys(tasks, 0.0)
        self._counts = dict.fromkeys(self._sums, 0)

    def add(self, step: Step) -> None:
        """Counts one step."""
        if not step.skipped:
            self._sums[step.task] += step.loss
            self._counts[step.task] += 1

    def means(self) -> dict[str, float | None]:
        """The mean of each task; None where it had no step."""
        return {task: value / self._counts[task] if self._counts[task] else None for task, value in self._sums.items()}

    def clear(self) -> None:
        """Begins the next epoch."""
        self._sums, self._counts = dict.fromkeys(self._sums, 0.0), dict.fromkeys(self._counts, 0)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`. Raises ValueError where it is of other tasks."""
        if not set(state["sums"]) == set(state["counts"]) == set(self._sums):
            raise ValueError(f"EpochLosses: the state has {', '.join(state['sums'])}, expected {', '.join(self._sums)}")
        self._sums = {task: float(state["sums"][task]) for task in self._sums}
        self._counts = {task: int(state["counts"][task]) for task in self._counts}
