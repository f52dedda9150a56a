"""What a run starts from: its data as the model reads it, and the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer

from smartcs.data.encode import EncodedTask, data_digest, examples_digest
from smartcs.data.examples import DataFolder
from smartcs.model.multitask import MultitaskBert
from smartcs.training.config import TrainConfig
from smartcs.training.metrics import majority_figures
from smartcs.training.plan import SMALL_MODEL_NOTICE
from smartcs.training.recipes import AUTO_MODEL, SMALL_MODEL, model_name
from smartcs.training.setup import build_model, describe_model, encode_split, load_data

Of = TypeVar("Of")

_LISTED_ROWS = 100  # skipped rows that metrics.json names; it counts all of them


@dataclass(frozen=True, eq=False)
class Inputs:
    """Data and model of one run.

    Attributes:
        data: the tasks that are trained.
        model: on the run's device, in training mode.
        encoded: split -> task -> examples.
        majority: what always answering with the commonest training label reaches on dev.
    """

    data: DataFolder
    model: MultitaskBert
    encoded: dict[str, dict[str, EncodedTask]]
    majority: dict[str, float]

    @classmethod
    def read(
        cls,
        config: TrainConfig,
        device: torch.device,
        say: Callable[[str], None],
        model: MultitaskBert | None = None,
    ) -> Inputs:
        """What `config` names; `say` is told what it is, and what of the data was skipped or truncated.

        Args:
            model: takes the place of a new one.

        Raises:
            DataError, ModelSourceError, CheckpointError: something cannot be used.
        """
        data = load_data(config.data, strict=config.strict_data, tasks=config.trained_tasks, holdout=config.holdout)
        say(data.describe())
        model = (build_model(config) if model is None else model).to(device).train()
        say(f"model: {describe_model(model, model_name(config.model))}")
        if config.model == AUTO_MODEL and model_name(config.model) == SMALL_MODEL:
            say(SMALL_MODEL_NOTICE)
        encoded = {}
        for split, examples in (("train", data.train), ("dev", data.dev), ("test", data.test)):
            encoded[split] = encode_split(model, examples, config.max_length, strict=config.strict_data)
            for task in encoded[split].values():
                if split == "train" or task.truncated:
                    say(f"  {split} {task.describe()}")
        return cls(data, model, encoded, majority_figures(data.train, data.dev))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        assert self.model.tokenizer is not None  # build_model gives it one
        return self.model.tokenizer

    @cached_property
    def digests(self) -> dict[str, dict[str, str]]:
        """Split -> task -> digest of its examples."""
        return self._of_each(examples_digest)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The data's section in metrics.json."""
        skipped = self.data.skipped
        return {
            "source": self.data.source,
            "sha256": data_digest(self.encoded),
            "examples": self._of_each(len),
            "skipped": len(skipped),
            "skipped_rows": [str(row) for row in skipped[:_LISTED_ROWS]],
            "truncated": self._of_each(lambda task: len(task.truncated)),
        }

    def _of_each(self, count: Callable[[EncodedTask], Of]) -> dict[str, dict[str, Of]]:
        return {split: {name: count(task) for name, task in tasks.items()} for split, tasks in self.encoded.items()}
