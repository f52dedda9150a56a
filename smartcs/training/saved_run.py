"""A run's model and data, for the commands that use a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch

from smartcs.data.encode import EncodedTask
from smartcs.data.examples import TASKS, DataFolder, describe_skipped
from smartcs.model.multitask import MultitaskBert
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig
from smartcs.training.run_folder import read_config
from smartcs.training.setup import encode_split, load_data


class SavedRun(NamedTuple):
    """A model in evaluation mode, and the configuration it was trained with if the folder has one."""

    folder: Path
    model: MultitaskBert
    config: TrainConfig | None

    @classmethod
    def load(cls, folder: str, device: torch.device) -> SavedRun:
        """Reads a run's output folder, the model onto a device.

        Raises:
            UsageError: there is no such folder.
            ModelSourceError, CheckpointError: it holds no run, or a damaged one.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise UsageError(f"no folder {folder!r}: expected the output folder of a training run")
        config = read_config(path)
        return cls(path, MultitaskBert.from_pretrained(path).to(device), config)

    def check_task(self, task: str) -> None:
        """Raises UsageError where the run was not trained on `task`: its head would answer with random weights."""
        if self.config is not None and task not in self.config.trained_tasks:
            raise UsageError(f"{self.folder} was trained on {', '.join(self.config.trained_tasks)}, not on {task}")

    def data(self, data: str | None, *, strict: bool = False) -> DataFolder:
        """The tasks that the run was trained on, of `data` or of its own.

        Raises:
            UsageError: neither is known.
            DataError: see `smartcs.data.formats`; with `strict` also for malformed rows.
        """
        if data is None and self.config is None:
            raise UsageError(f"{self.folder} does not say what it was trained on: pass --data FOLDER, or --data sample")
        tasks = TASKS if self.config is None else self.config.trained_tasks
        if data is None and self.config is not None:
            return load_data(self.config.data, strict=strict, tasks=tasks, holdout=self.config.holdout)
        return load_data(data or "", strict=strict, tasks=tasks)

    def encode(self, data: DataFolder, split: str, *, strict: bool = False) -> dict[str, EncodedTask]:
        """A split of `data`, tokenized as in training; stderr says what of it was skipped or truncated.

        Raises:
            DataError: with `strict`, a sequence is too long.
        """
        positions = self.model.bert.config.max_position_embeddings
        limit = positions if self.config is None else self.config.max_length
        examples = getattr(data, split)
        encoded = encode_split(self.model, examples, limit, strict=strict)
        skipped = [row for task in examples.values() for row in task.skipped]
        lines = describe_skipped(skipped) if skipped else []
        lines += [f"{split} {task.describe()}" for task in encoded.values() if task.truncated]
        for line in lines:
            print(line, file=sys.stderr)
        return encoded
