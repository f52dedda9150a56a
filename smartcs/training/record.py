"""What a run has reached: its epochs and the best of them, and the figures in metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from smartcs.training.analysis import analyse
from smartcs.training.evaluation import Evaluation
from smartcs.training.inputs import Inputs
from smartcs.training.metrics import METRICS, best_by
from smartcs.training.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        folder: weights, metrics.json, losses.csv and predictions.
        metrics: the content of metrics.json.
        signal: the signal that ended the run early, or None.
    """

    folder: Path
    metrics: dict[str, Any]
    signal: int | None = None


@dataclass
class Record:
    """The figures of one run.

    Attributes:
        begin: when it began, by `perf_counter`.
        history: an entry per evaluated epoch.
        best, best_epoch: the best of them on dev, and its number, from 1; None before the first.
        weights: which files hold the model of the best epoch: {"checkpoint": its name, "files": name -> SHA-256}.
        test: the test split at the end, by the weights of the best epoch.
        pretrained: `Pretrainer.metrics` of the stage before, if there was one.
    """

    begin: float = field(default_factory=perf_counter)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Evaluation | None = None
    best_epoch: int | None = None
    weights: dict[str, Any] | None = None
    test: Evaluation | None = None
    pretrained: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return perf_counter() - self.begin

    def add_epoch(self, evaluation: Evaluation, losses: dict[str, float | None], seconds: float) -> bool:
        """Enters the next epoch; returns whether it is the best so far.

        Args:
            losses: mean training losses.
            seconds: of all steps so far.
        """
        so_far = math.nan if self.best is None else best_by(self.best.figures)
        is_best = math.isnan(so_far) or best_by(evaluation.figures) > so_far
        epoch = len(self.history) + 1
        if is_best:
            self.best, self.best_epoch = evaluation, epoch
        self.history.append(
            {
                "epoch": epoch,
                **evaluation.figures,
                "dev_losses": evaluation.losses,
                "train_losses": losses,
                "seconds": seconds,
                "seconds_total": self.seconds,
            }
        )
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors, as `state_files.write_state` takes them, but for `test`."""
        best = self.best
        return {
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best": best
            and {
                "predictions": {task: torch.from_numpy(values) for task, values in best.predictions.items()},
                "figures": best.figures,
                "losses": best.losses,
                "examples": best.examples,
            },
            "weights": self.weights,
            "pretrained": self.pretrained,
        }

    def load_state_dict(self, state: Mapping[str, Any], seconds: float) -> None:
        """Goes on from a `state_dict` of a run that had taken so many seconds."""
        best = state["best"]
        self.begin = perf_counter() - seconds
        self.history, self.best_epoch = list(state["history"]), state["best_epoch"]
        self.weights, self.pretrained = state["weights"], state["pretrained"]
        if best is not None:
            predictions = {task: values.numpy().copy() for task, values in best["predictions"].items()}
            self.best = Evaluation(predictions, best["figures"], best["losses"], best["examples"])

    def metrics(
        self,
        inputs: Inputs,
        trainer: Trainer,
        *,
        finished: bool,
        interrupted: bool = False,
        diverged: bool = False,
    ) -> dict[str, Any]:
        """What metrics.json says of data, training and evaluation."""
        seconds = sum(trainer.seconds.values())
        figures = {**dict.fromkeys((*METRICS.values(), "score")), **(self.best.figures if self.best else {})}
        return {
            **figures,
            "seconds": seconds,
            "tokens_per_second": trainer.tokens / seconds if seconds else None,
            "finished": finished,
            "interrupted": interrupted,
            "diverged": diverged,
            "best_epoch": self.best_epoch,
            "dev": {**(self.best.as_dict() if self.best else figures), "majority": inputs.majority},
            "test": self.test.as_dict() if self.test else None,
            "epochs": self.history,
            "seconds_per_epoch": self.history[-1]["seconds"] / len(self.history) if self.history else None,
            **trainer.objective.metrics(),
            "pretrain": self.pretrained,
            "analysis": self._analysis(inputs),
            "steps": trainer.step,
            "cycles_per_epoch": trainer.sampler.cycles,
            "skipped_steps": dict(trainer.skips.counts),
            "tokens": trainer.tokens,
            "seconds_by_part": trainer.seconds_by_part(),
            "seconds_total": self.seconds,
            "graphs": trainer.graphs(),
            "data": inputs.facts,
        }

    def _analysis(self, inputs: Inputs) -> dict[str, Any] | None:
        """Confusion, recall and histograms of the best epoch's dev predictions."""
        if self.best is None:
            return None
        return analyse(self.best.predictions, {name: task.labels for name, task in inputs.encoded["dev"].items()})
