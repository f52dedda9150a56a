"""Run the model over a split and compute its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smartcs.data.encode import EncodedTask
from smartcs.model.multitask import MultitaskBert
from smartcs.training.metrics import METRICS, metric, predictions, score, task_loss


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The model on one split.

    Attributes:
        predictions: task -> (N,) predictions, as `metrics.predictions`.
        figures: sst_accuracy, qqp_accuracy, sts_pearson of the tasks with labels, and, when all have, score.
        losses: mean loss of the tasks with labels.
        examples: number of examples per task.
    """

    predictions: dict[str, np.ndarray]
    figures: dict[str, float]
    losses: dict[str, float]
    examples: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """What metrics.json says of it: figures, losses and counts."""
        return {**self.figures, "losses": self.losses, "examples": self.examples}


def evaluate(
    model: MultitaskBert,
    split: Mapping[str, EncodedTask],
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates without dropout; the model's mode is as before afterwards.

    Args:
        model: on any device.
        split: the tasks to evaluate; those without labels get predictions only.
        batch_size: examples per batch, changes speed only.
        progress: called after every batch with the number of examples done and in all; it may raise to stop.
    """
    total, done = sum(len(task) for task in split.values()), 0
    result = Evaluation({}, {}, {}, {name: len(task) for name, task in split.items()})
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        for name, encoded in split.items():
            # Longest first: batches of like length, and a batch that is too large for memory shows at once.
            order = np.argsort(-encoded.lengths, kind="stable")
            outputs = []
            for begin in range(0, len(order), batch_size):
                rows = order[begin : begin + batch_size]
                with torch.inference_mode():
                    outputs.append(model(name, encoded.batch(rows)[0].to(device)).cpu())
                done += len(rows)
                if progress is not None:
                    progress(done, total)
            _add_task(result, name, encoded, torch.cat(outputs)[torch.from_numpy(np.argsort(order))])
    finally:
        model.train(was_training)
    if len(result.figures) == len(METRICS):
        result.figures["score"] = score(result.figures)
    return result


def _add_task(result: Evaluation, name: str, encoded: EncodedTask, output: torch.Tensor) -> None:
    result.predictions[name] = predictions(name, output)
    if encoded.labels is not None:
        labels = torch.from_numpy(encoded.labels)
        losses = task_loss(name, output, labels, reduction="none").to(torch.float64)
        result.losses[name] = float(losses.mean())
        result.figures[METRICS[name]] = metric(name, result.predictions[name], encoded.labels)
