"""What a run writes beside its checkpoints: the first of several ranks writes it, the others call in vain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from smartcs.data.encode import EncodedTask
from smartcs.model.bert import BertModel
from smartcs.model.multitask import MultitaskBert
from smartcs.report.tensorboard import TensorBoardLog
from smartcs.training.distributed import Ranks
from smartcs.training.evaluation import Evaluation
from smartcs.training.predictions import write_predictions
from smartcs.training.run_folder import PREDICTIONS, LossLog, write_metrics


class Written:
    """The files of a run's folder.

    Args:
        folder: the run's.
        ranks: those of the run.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder, self._ranks, self._writes = folder, ranks, ranks.is_first

    def log(self, folder: Path, tasks: int, *, goes_on: bool) -> AbstractContextManager[LossLog | None]:
        """losses.csv of a stage, see `LossLog`; None on the other ranks."""
        if not self._writes:
            return nullcontext()
        folder.mkdir(exist_ok=True)
        return LossLog(folder, tasks, goes_on=goes_on)

    def board(self, step: int | None) -> AbstractContextManager[TensorBoardLog | None]:
        """TensorBoard's events, see `TensorBoardLog`; None on the other ranks."""
        return TensorBoardLog(self._folder, step) if self._writes else nullcontext()

    def model(self, model: MultitaskBert) -> None:
        """The weights."""
        if self._writes:
            model.save_pretrained(self._folder)

    def best(self, like: MultitaskBert) -> MultitaskBert:
        """A model with the weights in the folder, on all ranks, of which only the first need see it."""
        model = MultitaskBert.from_pretrained(self._folder) if self._writes else copy.deepcopy(like)
        model = model.to(next(like.parameters()).device)
        self._ranks.copy_first(model)
        return model

    def encoder(self, folder: Path, bert: BertModel, tokenizer: Tokenizer) -> None:
        """A checkpoint of the encoder alone."""
        if self._writes:
            bert.save_pretrained(folder, tokenizer)

    def metrics(self, metrics: Mapping[str, Any]) -> None:
        """metrics.json."""
        if self._writes:
            write_metrics(self._folder, dict(metrics))

    def predictions(self, split: str, tasks: Mapping[str, EncodedTask], evaluation: Evaluation) -> None:
        """The predictions of a split."""
        if self._writes:
            ids = {name: task.ids for name, task in tasks.items()}
            write_predictions(self._folder / PREDICTIONS, split, ids, evaluation.predictions)

    def report(self) -> None:
        """report.html, from the files above."""
        if self._writes:
            from smartcs.report import write_run_report  # matplotlib takes a second to load

            write_run_report(self._folder)
