"""The tasks' losses and dev figures. N examples; arrays in, floats out, summed in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from smartcs.data.examples import Examples

# The dev figure of each task, as it is called in metrics.json.
METRICS = {"sst": "sst_accuracy", "qqp": "qqp_accuracy", "sts": "sts_pearson"}


def task_loss(task: str, output: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy (SST), binary cross entropy with logits (QQP), mean squared error (STS).

    Args:
        task: "sst", "qqp" or "sts".
        output: what `MultitaskBert.forward` returned, (B, 5) or (B,).
        labels: (B,) int64 classes for SST, else float32.
        reduction: "mean", "sum" or "none", as in torch.
    """
    if task == "sst":
        return functional.cross_entropy(output, labels, reduction=reduction)
    if task == "qqp":
        return functional.binary_cross_entropy_with_logits(output, labels, reduction=reduction)
    return functional.mse_loss(output, labels, reduction=reduction)


def predictions(task: str, output: Tensor) -> np.ndarray:
    """(N,): the most likely class (SST), 1 where the logit is above 0 (QQP), the score itself (STS)."""
    if task == "sst":
        return output.argmax(dim=-1).numpy()
    return (output > 0).to(torch.int64).numpy() if task == "qqp" else output.numpy()


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """The share of (N,) predictions that equal their label, N >= 1."""
    return float(np.mean(np.asarray(predicted) == np.asarray(labels)))


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two (N,) arrays; 0.0 where one of them is constant and it is not defined.

    A model that says the same of every pair has learnt nothing about order, and 0 is what that is worth in the
    score; NaN would spread into it. Values that are not finite give NaN.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    # Scaled first: the square of a deviation of 1e-200 would vanish.
    a /= np.abs(a).max()
    b /= np.abs(b).max()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def metric(task: str, predicted: ArrayLike, labels: ArrayLike) -> float:
    """The task's dev figure: accuracy, or Pearson's correlation for STS."""
    return pearson(predicted, labels) if task == "sts" else accuracy(predicted, labels)


def score(figures: Mapping[str, float]) -> float:
    """The three figures in one: (SST accuracy + QQP accuracy + (STS Pearson + 1) / 2) / 3."""
    return (figures["sst_accuracy"] + figures["qqp_accuracy"] + (figures["sts_pearson"] + 1) / 2) / 3


def best_by(figures: Mapping[str, float]) -> float:
    """What the best epoch has most of: the score, or where a task is missing the mean of the terms that are there."""
    if "score" in figures:
        return figures["score"]
    terms = [
        (figures[name] + 1) / 2 if task == "sts" else figures[name] for task, name in METRICS.items() if name in figures
    ]
    return sum(terms) / len(terms)


def majority_figures(train: Mapping[str, Examples], evaluated: Mapping[str, Examples]) -> dict[str, float]:
    """What always answering with the commonest training label reaches: a figure per task, of all three the score."""
    figures = {}
    for task in train:
        labels, truth = train[task].labels, evaluated[task].labels
        assert labels is not None and truth is not None
        values, counts = np.unique(labels, return_counts=True)
        figures[METRICS[task]] = metric(task, np.full(len(truth), values[counts.argmax()]), truth)
    return {**figures, "score": score(figures)} if len(figures) == len(METRICS) else figures
