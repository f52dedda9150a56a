"""What every table of the paper consists of: its rows as recipes and settings, and the figures it prints.

`smartcs.experiments.studies` has the experiments that are ours, and `EXPERIMENTS`, which lists both.

Source: the SMARTCS paper, figures 2, 3, 6, 7, 8 and section 5.2; the figures themselves are in
`smartcs.training.paper`. Rows marked `extra` are not in the paper's table; they run where they are asked for. A
baseline that the table does not have runs by itself, for the time ratios.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smartcs.training import paper
from smartcs.training.recipes import recipe_values


@dataclass(frozen=True)
class Row:
    """One line of a table: a system or a setting.

    Attributes:
        name: unique within the experiment; the folder of its runs.
        label: as people read it, where the paper has a name the paper's.
        recipe: of `smartcs.training.recipes`.
        settings: values of `TrainConfig` by name that make the row what it is, on top of the recipe.
        paper: the paper's figures by the names of `smartcs.report.comparison.QUANTITIES`; empty where it has none.
        extra: not in the paper's table, and run only where it is asked for.
        note: what a reader must know of it.
    """

    name: str
    label: str
    recipe: str = "baseline"
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    extra: bool = False
    note: str = ""

    @property
    def pretrains(self) -> bool:
        """Whether additional pretraining comes before fine-tuning."""
        return bool({**recipe_values(self.recipe), **self.settings}.get("pretrain.epochs"))


@dataclass(frozen=True)
class Experiment:
    """A table of the paper.

    Attributes:
        name: as the command line calls it.
        title: what it shows.
        rows: in the paper's order, then the extra ones.
        baseline: name of the row that run times are compared with; None where time is not the point.
        split: whose figures the paper's are, "dev" or "test".
        notes: what a reader must know of the table.
        contrasts: pairs of rows, the first of which is compared with the second beside the baseline.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    baseline: str | None = None
    split: str = "dev"
    notes: tuple[str, ...] = ()
    contrasts: tuple[tuple[str, str], ...] = ()


def short(value: float) -> str:
    """1e-4 and 1, for names and labels."""
    return f"{value:g}" if value >= 1 else f"{value:.0e}".replace("e-0", "e-")


def _times(recipe: str) -> dict[str, float]:
    """The paper's run time of a system of figures 2 and 8."""
    seconds, ratio = paper.EPOCH_SECONDS.get(recipe), paper.time_ratio(recipe)
    assert ratio is not None
    total = paper.TOTAL_HOURS[recipe] * 3600 / paper.EPOCHS if seconds is None else seconds
    return {"seconds_per_epoch": total, "time_ratio": ratio}


def system(recipe: str, label: str = "") -> Row:
    """A system of figures 2 and 8 with its dev figures and run time."""
    values = paper.DEV[recipe].as_dict() | _times(recipe)
    return Row(recipe, label or paper.NAMES[recipe], recipe, paper=values)


ADVERSARIAL = (
    Row("smart-adv", "SMART Loss, adversarial step", "smart-adv", extra=True),
    Row("smart-adv-bregman", "SMART Loss, adversarial step, Bregman", "smart-adv-bregman", extra=True),
)
"""The recipes that the paper does not have."""

_FOR_RATIOS = "not in the paper's table; the time ratios need it"
_BASELINE = Row("baseline", paper.NAMES["baseline"], paper=system("baseline").paper, note=_FOR_RATIOS)

_FIGURE_2 = Experiment(
    "figure2",
    "Figure 2: development set performance of all approaches",
    (*map(system, paper.FIGURE_2), *ADVERSARIAL),
    baseline="baseline",
    notes=("The paper's seconds per epoch: its total execution time over its ten epochs.",),
)

# The paper's names where they are not those of figure 2.
_FIGURE_3_NAMES = {"smart-bregman": "SMART Loss, Bregman"}
_FIGURE_8_NAMES = {"smart": "SMART-SST Loss", "smart-bregman": "SMART-SST Loss + Bregman"}

_FIGURE_3 = Experiment(
    "figure3",
    "Figure 3: test set performance of the three best approaches",
    (
        *(
            Row(
                recipe,
                _FIGURE_3_NAMES.get(recipe, paper.NAMES[recipe]),
                recipe,
                paper=paper.TEST[recipe].as_dict() | _times(recipe),
            )
            for recipe in paper.FIGURE_3
        ),
        Row("baseline", paper.NAMES["baseline"], paper=_times("baseline"), note=_FOR_RATIOS),
        *ADVERSARIAL,
    ),
    baseline="baseline",
    split="test",
    notes=("The paper's seconds per epoch and time ratios: those of the same systems in figures 2 and 8.",),
)

_FIGURE_6 = Experiment(
    "figure6",
    "Figure 6: learning rates, trained on SST and STS alone",
    tuple(
        Row(
            f"learning-rate-{short(rate)}",
            f"Learning rate {short(rate)}",
            settings={"tasks": "sst+sts", "learning_rate": rate},
            paper={"sst_accuracy": sst, "sts_pearson": sts},
        )
        for rate, (sst, sts) in paper.LEARNING_RATES.items()
    ),
    notes=(
        "Without QQP there is no score; the best epoch is chosen by SST accuracy and STS Pearson, weighted as there.",
    ),
)

_FIGURE_7 = Experiment(
    "figure7",
    "Figure 7: batch sizes",
    tuple(
        Row(
            f"batches-{qqp}-{sst}-{sts}",
            f"Batches of {qqp} QQP, {sst} SST, {sts} STS",
            settings={"batch_qqp": qqp, "batch_sst": sst, "batch_sts": sts},
            paper=figures.as_dict(),
        )
        for (qqp, sst, sts), figures in paper.BATCH_SIZES.items()
    ),
    notes=("40, 6, 4 became the paper's setting: figure 2 gives the same system other figures (score 0.764).",),
)

_FIGURE_8 = Experiment(
    "figure8",
    "Figure 8: SMART beside other regularisers, with the run time of an epoch",
    (*(system(recipe, _FIGURE_8_NAMES.get(recipe, "")) for recipe in paper.FIGURE_8), *ADVERSARIAL),
    baseline="baseline",
)

# Section 5.2 tries the weights before "finally" applying the regulariser to SST alone: on all three tasks.
_LAMBDA = Experiment(
    "lambda",
    "Section 5.2: the weight of SMART's regulariser, on all three tasks",
    (
        *(
            Row(
                f"lambda-{weight:g}",
                f"SMART on all, lambda {weight:g}",
                "smart-all",
                settings={"smart.weight": weight},
                paper=system("smart-all").paper if weight == paper.CHOSEN_SMART_WEIGHT else {},
                note="the paper's: figure 8, SMART Loss Default" if weight == paper.CHOSEN_SMART_WEIGHT else "",
            )
            for weight in paper.SMART_WEIGHTS
        ),
        _BASELINE,
    ),
    baseline="baseline",
    notes=("The paper chose lambda = 2 and gives no figures of the others.",),
)

CHOSEN_PRETRAINING: dict[str, Any] = {
    "pretrain.strategy": "bert",
    "pretrain.tasks": "all",
    "pretrain.dropout": False,
    "pretrain.epochs": 5,
    "pretrain.learning_rate": 1e-5,
}
"""What the paper chose of what it tried (section 5.2)."""


def _pretraining(name: str, label: str, changed: Mapping[str, Any], *, extra: bool = False, note: str = "") -> Row:
    """A row of the sweeps: the chosen pretraining but for what is changed, then the baseline's fine-tuning."""
    published = {} if changed else system("pretrain").paper
    return Row(name, label, "pretrain", {**CHOSEN_PRETRAINING, **changed}, published, extra, note)


_PRETRAIN = Experiment(
    "pretrain",
    "Section 5.2: additional pretraining, one choice changed at a time",
    (
        _pretraining("pretrain", "Chosen: 80/10/10, all tasks, no dropout, 5 epochs, 1e-5", {}),
        _pretraining("pretrain-mask", "Always [MASK]", {"pretrain.strategy": "mask"}),
        _pretraining("pretrain-sst", "Texts of SST alone", {"pretrain.tasks": "sst"}),
        _pretraining("pretrain-dropout", "With dropout", {"pretrain.dropout": True}),
        _pretraining("pretrain-epochs-3", "3 epochs", {"pretrain.epochs": 3}),
        _pretraining("pretrain-epochs-10", "10 epochs", {"pretrain.epochs": 10}),
        _pretraining("pretrain-learning-rate-2e-5", "Learning rate 2e-5", {"pretrain.learning_rate": 2e-5}),
        _pretraining("pretrain-learning-rate-3e-5", "Learning rate 3e-5", {"pretrain.learning_rate": 3e-5}),
        _pretraining(
            "pretrain-fraction-15",
            "15 % of the tokens hidden",
            {"pretrain.fraction": 0.15},
            extra=True,
            note="section 6 suspects that one token per sequence was too little",
        ),
        _pretraining(
            "pretrain-head-embeddings", "Head from the word embeddings", {"pretrain.head": "embeddings"}, extra=True
        ),
        _BASELINE,
    ),
    baseline="baseline",
    notes=(
        "Every row is fine-tuned as the baseline. The paper gives figures of the chosen setting only; "
        f"its pretraining took {paper.PRETRAIN_SECONDS:,} seconds for the five epochs.",
    ),
)

TABLES = (_FIGURE_2, _FIGURE_3, _FIGURE_6, _FIGURE_7, _FIGURE_8, _LAMBDA, _PRETRAIN)
"""The paper's, in its order."""
