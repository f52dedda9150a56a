"""What a run's folder says, as the report needs it."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartcs._reading import MIB, read_text
from smartcs.data.examples import TASKS
from smartcs.model.files import CheckpointError, read_json
from smartcs.training.checks import task_names
from smartcs.training.run_folder import LOSSES, METRICS

_REQUIRED = ("step", "epoch", "task", "loss")
_OPTIONAL = ("smart", "alignment", "perturbation", "bregman")
# Parts of metrics.json that are read under their names, and what holds them.
_KINDS = {
    "epochs": list,
    **dict.fromkeys(("bregman", "config", "data", "dev", "environment", "model", "smart", "test"), dict),
}
_LOSSES_BYTES = 512 * MIB  # ten million steps
_LARGEST = 2**53  # step or epoch: what a double, which is drawn, holds exactly


@dataclass
class Curve:
    """Values of one task by optimizer step, in the order of the steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RunData:
    """A run as it lies in its folder, finished or not.

    Attributes:
        folder: the run's folder.
        metrics: metrics.json.
        curves: column of losses.csv -> task -> its curve; no entry for what no step has.
        epoch_ends: epoch -> its last step in losses.csv.
        last_step: the last step in losses.csv, 0 where there is none.
    """

    folder: Path
    metrics: dict[str, Any]
    curves: dict[str, dict[str, Curve]]
    epoch_ends: dict[int, int]
    last_step: int

    @classmethod
    def read(cls, folder: Path) -> RunData:
        """Reads metrics.json and, where there is one, losses.csv.

        Raises:
            CheckpointError: the folder holds no metrics.json, or one of the files is damaged.
        """
        path = folder / METRICS
        if not path.is_file():
            raise CheckpointError(f"{folder} holds no {METRICS}: expected the output folder of a training run")
        metrics = read_json(path)
        for name, kind in _KINDS.items():
            if not isinstance(metrics.get(name) or kind(), kind):
                raise CheckpointError(f"{path}: {name} is a {type(metrics[name]).__name__}, expected {kind.__name__}")
        if not all(isinstance(epoch, dict) for epoch in metrics.get("epochs") or []):
            raise CheckpointError(f"{path}: epochs holds something else than objects")
        return cls(folder, metrics, *_read_losses(folder / LOSSES))

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """One entry per epoch that was evaluated."""
        return self.metrics.get("epochs") or []

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, nested settings as "smart.weight"."""
        return flat(self.metrics.get("config") or {})

    @property
    def recipe(self) -> str:
        """The recipe's name, empty where the configuration has none."""
        return str(self.config.get("recipe", ""))

    @property
    def is_pretraining(self) -> bool:
        """Whether this is a run of masked language modelling alone."""
        return "mlm_loss" in self.metrics

    @property
    def planned_epochs(self) -> int | None:
        """How many epochs the configuration asks for."""
        return self.config.get("pretrain.epochs" if self.is_pretraining else "epochs")

    def section(self, *names: str) -> dict[str, Any]:
        """A section of metrics.json, {} where it is absent or null."""
        value: Any = self.metrics
        for name in names:
            value = (value or {}).get(name)
            if not isinstance(value or {}, dict):
                raise CheckpointError(
                    f"{self.folder / METRICS}: {'.'.join(names)} is {value!r:.80}, expected an object"
                )
        return value or {}


def anchor_divergence(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Tasks, joined by +, -> their mean divergence from the Bregman anchor, of a run's metrics; {} without one."""
    found = (metrics.get("bregman") or {}).get("anchor_divergence")
    if found is None:
        return {}
    config = flat(metrics.get("config") or {})
    trained = task_names(config.get("tasks", "all"))
    return {"+".join(name for name in task_names(config.get("bregman.tasks", "all")) if name in trained): float(found)}


def task_label(task: str) -> str:
    """A task's name as people read it, or those of several joined by +."""
    return task.upper().replace("+", " + ")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested object as one of dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


def _read_losses(path: Path) -> tuple[dict[str, dict[str, Curve]], dict[int, int], int]:
    curves: dict[str, dict[str, Curve]] = {}
    ends: dict[int, int] = {}
    step = 0
    try:
        text = read_text(path, _LOSSES_BYTES) if path.is_file() else ""
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    # A run that was killed may leave half a line at the end.
    lines = text[: text.rfind("\n") + 1].splitlines()
    reader = csv.DictReader(lines)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise CheckpointError(f"{path}, line {reader.line_num}: {error}") from None
    missing = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
    if lines and missing:
        raise CheckpointError(f"{path}: no column {', '.join(missing)}")
    for number, row in enumerate(rows, start=2):
        try:
            step, epoch, task = int(row["step"]), int(row["epoch"]), row["task"]
            values = {name: float(row[name]) for name in ("loss", *_OPTIONAL) if row.get(name)}
            if max(abs(step), abs(epoch)) > _LARGEST:
                raise ValueError(f"step or epoch is beyond {_LARGEST}")
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}, line {number}: {error}") from None
        if task not in TASKS:
            raise CheckpointError(f"{path}, line {number}: task is {task!r:.80}, expected {', '.join(TASKS)}")
        ends[epoch] = step
        for name, value in values.items():
            if math.isfinite(value):
                curve = curves.setdefault(name, {}).setdefault(task, Curve())
                curve.steps.append(step)
                curve.values.append(value)
    return {name: {task: by[task] for task in TASKS if task in by} for name, by in curves.items()}, ends, step
