"""What the paper reports, in one place: Mabene, Khawaja and Clinton, "SMARTCS", Stanford CS224N, figures 2 to 9.

BERT base, the full data, learning rate 3e-5, batches of 6 SST, 40 QQP and 4 STS examples, 10 epochs unless a table
says otherwise. The figures are those printed, with the digits printed; `Figures.score_by_formula` is what the
paper's own formula makes of them. It gives the printed score in all rows but the two of `SCORE_SLIPS`.

Where figures exist as a picture only (the confusion matrix of figure 4, the histograms of figure 10) there is
nothing to quote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smartcs.training.metrics import score

EPOCHS = 10
BASELINE = "baseline"


@dataclass(frozen=True)
class Figures:
    """A row of a table of the paper.

    Attributes:
        sst_accuracy, qqp_accuracy, sts_pearson: as in metrics.json.
        score: as printed.
    """

    sst_accuracy: float
    qqp_accuracy: float
    sts_pearson: float
    score: float

    def score_by_formula(self) -> float:
        """(SST accuracy + QQP accuracy + (STS Pearson + 1) / 2) / 3 of the printed figures."""
        return score(self.as_dict())

    def as_dict(self) -> dict[str, float]:
        """The four figures by their names in metrics.json."""
        return {
            "sst_accuracy": self.sst_accuracy,
            "qqp_accuracy": self.qqp_accuracy,
            "sts_pearson": self.sts_pearson,
            "score": self.score,
        }


NAMES: dict[str, str] = {
    "baseline": "Baseline",
    "pretrain": "Pretrain",
    "cosine": "Cosine Similarity",
    "smart": "SMART Loss",
    "smart-bregman": "SMART Loss, Bregman Only",
    "pretrain-smart-bregman": "Pretrain, SMART Loss, Bregman",
    "pretrain-cosine": "Pretrain, Cosine Similarity",
    "smart-bregman-cosine": "SMART Loss, Bregman, Cosine Similarity",
    "pretrain-smart-bregman-cosine": "Pretrain, SMART Loss, Bregman, Cosine Similarity",
    "dropout": "Dropout Baseline",
    "stickland": "Stickland Baseline",
    "smart-all": "SMART Loss Default",
}
"""Recipe -> the paper's name of the system; "SMART Loss" is on SST only, "Default" on all three tasks."""

DEV: dict[str, Figures] = {
    "baseline": Figures(0.480, 0.887, 0.882, 0.764),
    "pretrain": Figures(0.485, 0.859, 0.870, 0.760),
    "cosine": Figures(0.478, 0.866, 0.879, 0.761),
    "smart": Figures(0.509, 0.864, 0.866, 0.769),
    "smart-bregman": Figures(0.494, 0.879, 0.876, 0.770),
    "pretrain-smart-bregman": Figures(0.512, 0.859, 0.858, 0.767),
    "pretrain-cosine": Figures(0.472, 0.856, 0.864, 0.753),
    "smart-bregman-cosine": Figures(0.487, 0.863, 0.872, 0.762),
    "pretrain-smart-bregman-cosine": Figures(0.478, 0.862, 0.867, 0.758),
    "dropout": Figures(0.480, 0.861, 0.867, 0.758),
    "stickland": Figures(0.494, 0.883, 0.861, 0.769),
    "smart-all": Figures(0.515, 0.828, 0.867, 0.759),
}
"""Recipe -> dev figures (figures 2 and 8)."""

FIGURE_2 = (
    "baseline",
    "pretrain",
    "cosine",
    "smart",
    "smart-bregman",
    "pretrain-smart-bregman",
    "pretrain-cosine",
    "smart-bregman-cosine",
    "pretrain-smart-bregman-cosine",
)
"""The rows of figure 2, in its order."""

FIGURE_3 = ("smart", "smart-bregman", "pretrain-smart-bregman")
"""The rows of figure 3, in its order."""

FIGURE_8 = ("baseline", "dropout", "stickland", "smart-all", "smart", "smart-bregman")
"""The rows of figure 8, in its order."""

TEST: dict[str, Figures] = {
    "smart": Figures(0.501, 0.862, 0.863, 0.765),
    "smart-bregman": Figures(0.493, 0.878, 0.878, 0.770),
    "pretrain-smart-bregman": Figures(0.511, 0.855, 0.858, 0.765),
}
"""Recipe -> test figures (figure 3)."""

TOTAL_HOURS: dict[str, float] = {
    "baseline": 4.500,
    "pretrain": 3.934,
    "cosine": 4.010,
    "smart": 5.000,
    "smart-bregman": 5.389,
    "pretrain-smart-bregman": 4.572,
    "pretrain-cosine": 4.384,
    "smart-bregman-cosine": 4.932,
    "pretrain-smart-bregman-cosine": 5.034,
}
"""Recipe -> total execution time in hours (figure 2)."""

EPOCH_SECONDS: dict[str, float] = {
    "baseline": 1620,
    "dropout": 1620,
    "stickland": 3200,
    "smart-all": 1800,
    "smart": 1800,
    "smart-bregman": 1940,
}
"""Recipe -> run time of an epoch in seconds (figure 8; the same runs as figure 2 where both have a row)."""

LEARNING_RATES: dict[float, tuple[float, float]] = {
    1e-5: (0.474, 0.868),
    2e-5: (0.459, 0.879),
    3e-5: (0.498, 0.877),
    4e-5: (0.489, 0.871),
    5e-5: (0.486, 0.874),
}
"""Learning rate -> SST dev accuracy and STS dev correlation of training on SST and STS alone (figure 6)."""

BATCH_SIZES: dict[tuple[int, int, int], Figures] = {
    (32, 4, 3): Figures(0.262, 0.625, 0.314, 0.514),
    (40, 4, 3): Figures(0.443, 0.833, 0.854, 0.734),
    (45, 4, 3): Figures(0.478, 0.842, 0.853, 0.724),
    (40, 6, 4): Figures(0.487, 0.848, 0.866, 0.756),
    (40, 8, 6): Figures(0.438, 0.873, 0.871, 0.749),
}
"""Batch sizes of QQP, SST and STS, in that order -> dev figures (figure 7, whose columns are QQP, SST, STS)."""

SMART_WEIGHTS = (1.0, 2.0, 5.0)
"""The values of lambda that were tried (section 5.2); 2 was chosen, no figures are given."""
CHOSEN_SMART_WEIGHT = 2.0

PRETRAIN_SECONDS = 3924
"""Additional pretraining, five epochs (section 5.2)."""

SST_CLASSES = ("negative", "somewhat negative", "neutral", "somewhat positive", "positive")
SST_RECALL = (0.324, 0.512, 0.489, 0.487, 0.624)
"""Recall per SST class, dev set (figure 9, which names no model; figures 4 and 10 do).

With the classes' sizes in the course's dev set it makes an accuracy of .494, that of SMART + Bregman and of Stickland.
"""
SST_PRECISION = (0.474, 0.548, 0.397, 0.548, 0.500)
"""Precision per SST class, dev set (figure 9)."""
SST_ADJACENT_ERRORS = (0.70, 0.93)
"""Lowest and highest share, over the SST classes, of wrong predictions that are a neighbouring class (section 6)."""

SCORE_SLIPS = {"baseline": (0.764, 0.769), "batches 45, 4, 3": (0.724, 0.749)}
"""Rows whose printed score is not that of the paper's formula -> (printed, by the formula)."""


def score_slip(label: str, figures: Mapping[str, float]) -> str | None:
    """A sentence where the paper prints another score than its formula makes of a row's figures; None elsewhere.

    Args:
        label: what the sentence calls the row.
        figures: the paper's, by the names in metrics.json; a row without all four has no slip.
    """
    names = ("sst_accuracy", "qqp_accuracy", "sts_pearson", "score")
    if any(name not in figures for name in names):
        return None
    row = Figures(*(figures[name] for name in names))
    if abs(row.score - row.score_by_formula()) < 1e-3:  # rounding of the printed figures stays below
        return None
    return f"{label}: the paper prints a score of {row.score:.3f}; its own formula gives {row.score_by_formula():.3f}."


def time_ratio(recipe: str) -> float | None:
    """The paper's run time of a recipe over its baseline's: of epochs (figure 8), else in all (figure 2), else None."""
    for times in (EPOCH_SECONDS, TOTAL_HOURS):
        if recipe in times:
            return times[recipe] / times[BASELINE]
    return None
