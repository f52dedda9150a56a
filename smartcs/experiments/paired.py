"""How far one system's figures lie from another's, and how far that would move with other examples and other seeds.

Both systems have been run with the same seeds and predict the same N examples, so what the examples and the seeds do
to both cancels in the difference. The interval holds two: a percentile bootstrap (Efron & Tibshirani 1993), of which
every draw takes N examples and as many seeds with replacement, the same ones for both systems; and, from two seeds on,
Student's t interval of the seeds' differences. A bootstrap of three seeds has too few values to be wide enough where
seeds differ more than examples do, and the t interval knows nothing of the examples, so the wider end counts. With one
seed only the examples vary: that interval says nothing about what another seed would have given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from smartcs.training.metrics import METRICS

DRAWS = 10_000
_CHUNK = 500  # draws at a time; bounds the memory

Predictions = Mapping[str, np.ndarray]
"""Task -> (N,) predictions of one run."""


@dataclass(frozen=True)
class Difference:
    """A system's figure minus another's, in the figure's own unit.

    Attributes:
        mean: over the seeds.
        low, high: the 95 % interval.
        each: one per seed.
    """

    mean: float
    low: float
    high: float
    each: tuple[float, ...]

    @property
    def seeds(self) -> int:
        """How many pairs of runs."""
        return len(self.each)

    @property
    def clear(self) -> bool:
        """Whether there are several seeds and the interval excludes zero."""
        return self.seeds > 1 and (self.low > 0 or self.high < 0)

    def as_dict(self) -> dict[str, Any]:
        """As results.json has it."""
        return {**asdict(self), "clear": self.clear}


def paired_differences(
    ours: Sequence[Predictions], others: Sequence[Predictions], labels: Predictions, *, draws: int = DRAWS
) -> dict[str, Difference]:
    """Ours minus the other system's, for the figure of every task and, where there are all three, for the score.

    Args:
        ours, others: one run per seed, in the same order of seeds.
        labels: task -> (N,): what is right.
        draws: of the bootstrap, which draws the same whenever it is called.

    Returns:
        "sst_accuracy", "qqp_accuracy", "sts_pearson", "score" -> the difference; empty without runs.

    Raises:
        ValueError: not as many runs of one as of the other, or predictions that are not one per label.
    """
    if len(ours) != len(others):
        raise ValueError(f"paired_differences: {len(ours)} runs of ours, {len(others)} of the other, expected as many")
    for number, run in enumerate([*ours, *others]):
        for task, right in labels.items():
            if len(run[task]) != len(right):
                got = f"run {number} has {len(run[task])} predictions of {task}"
                raise ValueError(f"paired_differences: {got}, expected {len(right)}")
    if not ours:
        return {}
    generator = np.random.default_rng(0)
    seeds = generator.integers(len(ours), size=(draws, len(ours)))
    observed: dict[str, np.ndarray] = {}
    drawn: dict[str, np.ndarray] = {}
    for task, right in labels.items():
        figure = _pearson if task == "sts" else _accuracy
        pair = np.stack([[run[task] for run in system] for system in (ours, others)])
        observed[METRICS[task]] = figure(pair, right, np.ones((1, len(right))))[0]
        drawn[METRICS[task]] = np.concatenate(
            [
                figure(pair, right, generator.multinomial(len(right), np.full(len(right), 1 / len(right)), size=part))
                for part in _parts(draws)
            ]
        )
    if set(labels) == set(METRICS):
        for values in (observed, drawn):
            values["score"] = (values["sst_accuracy"] + values["qqp_accuracy"] + values["sts_pearson"] / 2) / 3
    differences = {}
    for name, found in drawn.items():
        mean, each = float(observed[name].mean()), observed[name]
        low, high = np.percentile(np.take_along_axis(found, seeds, 1).mean(axis=1), [2.5, 97.5])
        if len(each) > 1:
            reach = _t_quantile(len(each) - 1) * float(each.std(ddof=1)) / math.sqrt(len(each))
            low, high = min(low, mean - reach), max(high, mean + reach)
        differences[name] = Difference(mean, float(low), float(high), tuple(map(float, each)))
    return differences


def _t_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's distribution, from its density on a fine grid of angles: t = sqrt(f) tan a."""
    angles = np.linspace(0, math.pi / 2, 400_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.sqrt(freedom) * math.tan(np.interp(0.95, below / below[-1], angles)))


def _parts(draws: int) -> list[int]:
    return [min(_CHUNK, draws - begin) for begin in range(0, draws, _CHUNK)]


def _accuracy(pair: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(draws, seeds): the difference of accuracies of the pair (2, seeds, N), example i drawn counts[:, i] times."""
    right = (pair == labels).astype(np.float64)
    return counts @ (right[0] - right[1]).T / len(labels)


def _pearson(pair: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The same of Pearson's correlations; that of constant predictions is 0."""
    weights, n = counts.astype(np.float64), len(labels)
    y = labels.astype(np.float64) - labels.mean()
    x = pair.astype(np.float64) - pair.mean(axis=2, keepdims=True)
    mean_y, square_y = weights @ y / n, weights @ y**2 / n
    found = []
    for system in x:
        mean_x, square_x, product = (
            weights @ (system**power * other).T / n for power, other in ((1, 1), (2, 1), (1, y))
        )
        deviations = (square_x - mean_x**2) * (square_y - mean_y**2)[:, None]
        covariance = product - mean_x * mean_y[:, None]
        found.append(np.divide(covariance, np.sqrt(deviations), out=np.zeros_like(covariance), where=deviations > 0))
    return found[0] - found[1]
