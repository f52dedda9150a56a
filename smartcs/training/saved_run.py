"""A run's model and data, for the commands that use a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from smartcs.data.encode import EncodedTask
from smartcs.data.examples import DataFolder
from smartcs.model.multitask import MultitaskBert
from smartcs.training.commandline import UsageError
from smartcs.training.recipes import TrainConfig
from smartcs.training.run_folder import read_config
from smartcs.training.setup import encode_split, load_data


class SavedRun(NamedTuple):
    """A model in evaluation mode, and the configuration it was trained with if the folder has one."""

    folder: Path
    model: MultitaskBert
    config: TrainConfig | None

    @classmethod
    def load(cls, folder: str) -> SavedRun:
        """Reads a run's output folder.

        Raises:
            UsageError: there is no such folder.
            ModelSourceError, CheckpointError: it holds no run, or a damaged one.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise UsageError(f"no folder {folder!r}: expected the output folder of a training run")
        config = read_config(path)
        return cls(path, MultitaskBert.from_pretrained(path), config)

    def data(self, data: str | None) -> DataFolder:
        """`data`, or what the run was trained on.

        Raises:
            UsageError: neither is known.
            DataError: see `smartcs.data.formats`.
        """
        if data is None and self.config is None:
            raise UsageError(f"{self.folder} does not say what it was trained on: pass --data FOLDER, or --data sample")
        return load_data(self.config.data if data is None and self.config else data or "")

    def encode(self, data: DataFolder, split: str) -> dict[str, EncodedTask]:
        """A split of `data`, tokenized as in training."""
        positions = self.model.bert.config.max_position_embeddings
        limit = positions if self.config is None else self.config.max_length
        return encode_split(self.model, getattr(data, split), limit)
