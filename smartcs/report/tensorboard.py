"""A run's losses and figures as TensorBoard events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from smartcs.training.commandline import UsageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
_EVENTS = "events.out.tfevents.*"


def check_available() -> None:
    """To be called before a run starts.

    Raises:
        UsageError: the package tensorboard is not installed or cannot be used; says what to install.
    """
    _writer_class()


class TensorBoardLog:
    """Writes events to a run's folder `tensorboard`; those of an earlier run there are removed. A context manager.

    The x axis is the optimizer step. Tags: train/loss/TASK, smart/{regulariser,alignment,perturbation}/TASK,
    bregman/divergence/TASK, dev/FIGURE and dev/loss/TASK. Values that are None or not finite are left out.

    Args:
        folder: the run's folder, created if missing.
        after: goes on after this step with the events that are there; later ones are not shown any more.

    Raises:
        UsageError: see `check_available`.
    """

    def __init__(self, folder: str | Path, after: int | None = None) -> None:
        writer = _writer_class()
        target = Path(folder) / FOLDER
        for stale in target.glob(_EVENTS) if after is None else ():
            stale.unlink()
        self._writer: SummaryWriter = writer(log_dir=str(target), purge_step=None if after is None else after + 1)

    def step(
        self,
        step: int,
        task: str,
        loss: float,
        *,
        smart: float | None = None,
        alignment: float | None = None,
        perturbation: float | None = None,
        bregman: float | None = None,
    ) -> None:
        """One optimizer step; the quantities are those of losses.csv."""
        self._add(f"train/loss/{task}", loss, step)
        self._add(f"smart/regulariser/{task}", smart, step)
        self._add(f"smart/alignment/{task}", alignment, step)
        self._add(f"smart/perturbation/{task}", perturbation, step)
        self._add(f"bregman/divergence/{task}", bregman, step)

    def evaluation(self, epoch: int, step: int, figures: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """The dev split after an epoch, which the step belongs to: figures by name and losses by task."""
        self._add("dev/epoch", epoch, step)
        for name, value in figures.items():
            self._add(f"dev/{name}", value, step)
        for task, value in losses.items():
            self._add(f"dev/loss/{task}", value, step)
        self._writer.flush()

    def flush(self) -> None:
        """Writes everything to the file."""
        self._writer.flush()

    def _add(self, tag: str, value: float | None, step: int) -> None:
        if value is not None and math.isfinite(value):
            self._writer.add_scalar(tag, value, step)

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            f"TensorBoard events need the package tensorboard ({error}): pip install 'smartcs[tensorboard]'"
        ) from None
    return SummaryWriter
