"""Where a model is right and wrong: confusion, recall and precision per class, adjacent errors, histograms.

The paper's section 6 and its figures 4, 9 and 10, computed from the predictions of one split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

CLASSES = {"sst": 5, "qqp": 2}
STS_RANGE = (0.0, 5.0)
# Centred on the multiples of 0.2 that most labels are: bins of another width would hold two such labels here and
# one there, and show peaks that the data does not have. The halves of the outer bins beyond the range stay empty.
STS_BINS = [(2 * k - 1) / 10 for k in range(27)]


def analyse(predictions: Mapping[str, ArrayLike], labels: Mapping[str, ArrayLike | None]) -> dict[str, Any]:
    """The section "analysis" of metrics.json, of plain numbers; None stands for what is not defined.

    Args:
        predictions: task -> (N,): classes of SST (0 to 4) and QQP (0 or 1), scores of STS; N may be 0.
        labels: task -> (N,) in the same order. A task without labels, or without predictions, is left out.

    Returns:
        "sst": confusion (5 x 5 counts, rows are the truth), recall and precision (5 each), adjacent_errors (the share
            of wrong predictions that are a neighbouring class) and adjacent_errors_by_class (the same by true class).
        "qqp": confusion (2 x 2), recall and precision (2 each).
        "sts": bins (edges, see `STS_BINS`), true and predicted (counts, values clipped to `STS_RANGE`, those that
            are not finite left out), true_mean and predicted_mean (of the values as they are).

    Raises:
        ValueError: an unknown task, lengths that differ, or a class out of range.
    """
    known = [*CLASSES, "sts"]
    unknown = sorted({*predictions, *labels} - {*known})
    if unknown:
        raise ValueError(f"analyse: unknown tasks {', '.join(unknown)}; known: {', '.join(known)}")
    pairs = {}
    for task in known:
        truth = labels.get(task)
        if task in predictions and truth is not None:
            pairs[task] = _pair(task, predictions[task], truth)
    result: dict[str, Any] = {}
    for task, (predicted, truth) in pairs.items():
        if task == "sts":
            result[task] = _scores(predicted, truth)
        else:
            confusion = np.zeros((CLASSES[task], CLASSES[task]), dtype=np.int64)
            np.add.at(confusion, (truth, predicted), 1)
            result[task] = _classes(confusion) | (_adjacent(confusion) if task == "sst" else {})
    return result


def _pair(task: str, predicted: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels, checked: int64 classes or float64 scores."""
    arrays = {"predictions": np.asarray(predicted), "labels": np.asarray(truth)}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or len(shapes["labels"]) != 1:
        raise ValueError(
            f"analyse: {task} predictions have shape {shapes['predictions']} and labels {shapes['labels']}, "
            "expected (N,) for both"
        )
    if task == "sts":
        return arrays["predictions"].astype(np.float64), arrays["labels"].astype(np.float64)
    for name, array in arrays.items():
        wrong = array[~np.isin(array, np.arange(CLASSES[task]))]
        if len(wrong):
            raise ValueError(
                f"analyse: {task} {name} hold {wrong[0].item()!r}, expected classes from 0 to {CLASSES[task] - 1}"
            )
    return arrays["predictions"].astype(np.int64), arrays["labels"].astype(np.int64)


def _classes(confusion: np.ndarray) -> dict[str, Any]:
    right = confusion.diagonal()
    return {
        "confusion": confusion.tolist(),
        "recall": _shares(right, confusion.sum(axis=1)),
        "precision": _shares(right, confusion.sum(axis=0)),
    }


def _adjacent(confusion: np.ndarray) -> dict[str, Any]:
    distance = np.abs(np.subtract.outer(np.arange(len(confusion)), np.arange(len(confusion))))
    adjacent = np.where(distance == 1, confusion, 0).sum(axis=1)
    wrong = np.where(distance > 0, confusion, 0).sum(axis=1)
    return {
        "adjacent_errors": _shares(adjacent.sum(keepdims=True), wrong.sum(keepdims=True))[0],
        "adjacent_errors_by_class": _shares(adjacent, wrong),
    }


def _shares(part: np.ndarray, whole: np.ndarray) -> list[float | None]:
    return [int(a) / int(b) if b else None for a, b in zip(part, whole, strict=True)]


def _scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    return {
        "bins": list(STS_BINS),
        "true": _counts(truth),
        "predicted": _counts(predicted),
        "true_mean": _mean(truth),
        "predicted_mean": _mean(predicted),
    }


def _counts(values: np.ndarray) -> list[int]:
    counts, _ = np.histogram(np.clip(values[np.isfinite(values)], *STS_RANGE), bins=STS_BINS)
    return counts.tolist()


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) and np.isfinite(values).all() else None
