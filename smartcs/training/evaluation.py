"""Run the model over a split and compute its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smartcs.data.encode import EncodedTask
from smartcs.data.masking import MaskedTask
from smartcs.model.multitask import MultitaskBert
from smartcs.training.distributed import ALONE, Ranks
from smartcs.training.metrics import METRICS, metric, predictions, score, task_loss
from smartcs.training.out_of_memory import telling_what_needs_less


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
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Evaluates without dropout; the model's mode is as before afterwards.

    Several ranks deal the batches out and all get the result, which is the same as of one.

    Args:
        model: on any device.
        split: the tasks to evaluate; those without labels get predictions only.
        batch_size: examples per batch, changes speed only.
        progress: called after every batch with the number of examples done and in all; it may raise to stop, on all
            ranks.
        ranks: those that evaluate the same model together.

    Raises:
        OutOfMemory: names the batch and the setting that needs less.
    """
    total, done = sum(len(task) for task in split.values()), 0
    result = Evaluation({}, {}, {}, {name: len(task) for name, task in split.items()})
    was_training, weight = model.training, next(model.parameters())
    device, dtype = weight.device, weight.dtype
    model.eval()
    try:
        for name, encoded in split.items():
            # Longest first: batches of like length, and a batch that is too large for memory shows at once.
            order = np.argsort(-encoded.lengths, kind="stable")
            batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
            output = torch.zeros((len(order), *model.output_shape(name)), dtype=dtype)
            for own, dealt in ranks.rounds(batches):
                for rows in own:
                    with torch.inference_mode(), needs_less(name, rows, encoded):
                        output[torch.from_numpy(rows)] = model(name, encoded.batch(rows)[0].to(device)).cpu()
                ranks.exchange().wait()
                if progress is not None:
                    progress(done + sum(map(len, batches[:dealt])), total)
            done += len(order)
            _add_task(result, name, encoded, ranks.sum(output))
    finally:
        model.train(was_training)
    if len(result.figures) == len(METRICS):
        result.figures["score"] = score(result.figures)
    return result


def needs_less(name: str, rows: np.ndarray, encoded: EncodedTask | MaskedTask) -> AbstractContextManager[None]:
    """Within the block, too little memory for evaluating these examples is an `OutOfMemory` that says what to lower."""

    def describe() -> str:
        return (
            f"evaluating {len(rows)} {name} examples of up to {encoded.lengths[rows].max()} word pieces: "
            "lower --eval-batch-size, or --max-length"
        )

    return telling_what_needs_less(describe)


def _add_task(result: Evaluation, name: str, encoded: EncodedTask, output: torch.Tensor) -> None:
    result.predictions[name] = predictions(name, output)
    if encoded.labels is not None:
        labels = torch.from_numpy(encoded.labels)
        losses = task_loss(name, output, labels, reduction="none").to(torch.float64)
        result.losses[name] = float(losses.mean())
        result.figures[METRICS[name]] = metric(name, result.predictions[name], encoded.labels)
