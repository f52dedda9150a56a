"""Figures against values worked out by hand, losses against their formulas."""

import math

import numpy as np
import pytest
import torch

from smartcs.data.sample import sample_folder
from smartcs.training.metrics import (
    accuracy,
    majority_figures,
    metric,
    pearson,
    predictions,
    score,
    task_loss,
)


def test_accuracy():
    assert accuracy([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75
    assert accuracy([1, 0], np.array([1.0, 1.0], dtype=np.float32)) == 0.5


def test_pearson_by_hand():
    # Deviations (-1, 0, 1) and (-4/3, -1/3, 5/3): 3 / sqrt(2 * 14/3).
    assert pearson([1, 2, 3], [1, 2, 4]) == pytest.approx(3 / math.sqrt(28 / 3), rel=1e-12)
    assert pearson([1, 2, 3], [-1, -2, -3]) == -1.0
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=500), rng.normal(size=500)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-10)


def test_pearson_is_summed_in_float64():
    # The labels differ in the last digits only: float32 sums of products would lose them.
    x = np.float32(4096) + np.arange(1000, dtype=np.float32) / 1024
    assert pearson(x, np.arange(1000)) == pytest.approx(1.0, abs=1e-12)


def test_pearson_of_tiny_and_huge_numbers():
    assert pearson([1e-200, 2e-200, 3e-200], [1, 2, 4]) == pytest.approx(pearson([1, 2, 3], [1, 2, 4]))
    assert pearson([1e200, 2e200, 3e200], [1, 2, 4]) == pytest.approx(pearson([1, 2, 3], [1, 2, 4]))


@pytest.mark.parametrize("constant", [0.0, 0.1, 2.7])
def test_pearson_of_a_constant_is_zero(constant):
    # 0.1 has no exact mean in binary: its deviations are not all zero.
    assert pearson(np.full(7, constant, dtype=np.float32), np.arange(7)) == 0.0
    assert pearson(np.arange(7), np.full(7, constant)) == 0.0
    assert pearson([constant], [1.0]) == 0.0


def test_pearson_of_nan_is_nan():
    assert math.isnan(pearson([1.0, math.nan, 2.0], [1, 2, 3]))
    assert math.isnan(pearson([math.nan] * 3, [1, 2, 3]))
    assert math.isnan(pearson([1.0, math.inf, 2.0], [1, 2, 3]))


def test_score_reproduces_the_papers_rows():
    # SMART + Bregman, and the baseline, whose published .764 its own formula does not give.
    rows = {(0.494, 0.879, 0.876): 0.770, (0.480, 0.887, 0.882): 0.769, (0.512, 0.859, 0.858): 0.767}
    for (sst, qqp, sts), expected in rows.items():
        figures = {"sst_accuracy": sst, "qqp_accuracy": qqp, "sts_pearson": sts}
        assert score(figures) == pytest.approx(expected, abs=6e-4)


def test_predictions():
    assert predictions("sst", torch.tensor([[0.1, 0.3, 0.2, 0, 0], [0, 0, 0, 0, 1]])).tolist() == [1, 4]
    paraphrases = predictions("qqp", torch.tensor([-1.0, 0.0, 1e-9]))
    assert paraphrases.tolist() == [0, 0, 1] and paraphrases.dtype == np.int64
    assert predictions("sts", torch.tensor([2.5, -0.5])).tolist() == [2.5, -0.5]


def test_losses():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0, math.log(4)]])
    assert task_loss("sst", logits, torch.tensor([4])).item() == pytest.approx(math.log(2))
    assert task_loss("qqp", torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])).item() == pytest.approx(math.log(2))
    assert task_loss("sts", torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])).item() == pytest.approx(2.5)
    each = task_loss("sts", torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0]), reduction="none")
    assert each.tolist() == [1.0, 4.0]


def test_metric_of_a_task():
    assert metric("qqp", [1, 0], [1, 1]) == 0.5
    assert metric("sts", [1, 2, 3], [2, 4, 6]) == 1.0


def test_majority_of_the_sample():
    sample = sample_folder()
    figures = majority_figures(sample.train, sample.dev)
    assert figures["qqp_accuracy"] == pytest.approx((sample.dev["qqp"].labels == 0).mean())
    assert figures["sts_pearson"] == 0.0
    assert figures["score"] == pytest.approx((figures["sst_accuracy"] + figures["qqp_accuracy"] + 0.5) / 3)
