"""The tables' rows: all that the paper has, with its figures, and each what its name says."""

import re

import pytest

from smartcs.experiments.figures import CHOSEN_PRETRAINING
from smartcs.experiments.studies import EXPERIMENTS
from smartcs.training import paper
from smartcs.training.config import TrainConfig, flat
from smartcs.training.recipes import RECIPES

ROWS = [(experiment, row) for experiment in EXPERIMENTS.values() for row in experiment.rows]


def rows(name, extra=False) -> dict:
    return {row.name: row for row in EXPERIMENTS[name].rows if row.extra == extra}


def settings(row, **values) -> dict:
    """What a row is on the full data with a pretrained encoder, whatever its recipe is called."""
    config = TrainConfig.from_dict({"data": "d", "model": "a/b", "recipe": row.recipe, **row.settings, **values})
    return {name: value for name, value in flat(config).items() if name != "recipe"}


def test_every_system_of_the_paper_is_a_row():
    systems = {**rows("figure2"), **rows("figure8")}
    assert set(systems) == set(paper.NAMES)
    for name, row in systems.items():
        assert (row.recipe, dict(row.settings)) == (name, {})
    assert {name: row.label for name, row in rows("figure2").items()} == {n: paper.NAMES[n] for n in paper.FIGURE_2}
    assert [row.label for row in rows("figure8").values()] == [
        *("Baseline", "Dropout Baseline", "Stickland Baseline", "SMART Loss Default", "SMART-SST Loss"),
        "SMART-SST Loss + Bregman",
    ]
    assert [row.label for row in rows("figure3").values()] == [
        *("SMART Loss", "SMART Loss, Bregman", "Pretrain, SMART Loss, Bregman", "Baseline"),
    ]
    for name in ("figure2", "figure3", "figure8"):
        assert {"smart-adv", "smart-adv-bregman"} <= set(rows(name, extra=True))
    assert {row.recipe for _, row in ROWS} == set(RECIPES)


@pytest.mark.parametrize(
    ("name", "order"),
    [("figure2", paper.FIGURE_2), ("figure3", (*paper.FIGURE_3, "baseline")), ("figure8", paper.FIGURE_8)],
)
def test_the_order_is_the_papers(name, order):
    assert tuple(rows(name)) == order


def test_figures_are_the_papers():
    for name, row in {**rows("figure2"), **rows("figure8")}.items():
        assert paper.DEV[name].as_dict().items() <= row.paper.items()
    for name, row in rows("figure3").items():
        figures = paper.TEST[name].as_dict() if name in paper.TEST else {}
        times = {key: rows("figure2")[name].paper[key] for key in ("seconds_per_epoch", "time_ratio")}
        assert row.paper == figures | times
    assert rows("figure2")["smart-bregman"].paper == pytest.approx(
        {
            "sst_accuracy": 0.494,
            "qqp_accuracy": 0.879,
            "sts_pearson": 0.876,
            "score": 0.770,
            "seconds_per_epoch": 1940,
            "time_ratio": 1940 / 1620,
        }
    )
    # Only in figure 2: 3.934 hours for ten epochs, the baseline 4.5.
    assert rows("figure2")["pretrain"].paper["seconds_per_epoch"] == pytest.approx(1416.24)
    assert rows("figure2")["pretrain"].paper["time_ratio"] == pytest.approx(3.934 / 4.5)
    assert rows("figure8")["stickland"].paper["time_ratio"] == pytest.approx(3200 / 1620)
    assert all(not row.paper for row in rows("figure2", extra=True).values())


def test_figure_6_sweeps_the_learning_rate_without_qqp():
    found = {row.settings["learning_rate"]: row for row in rows("figure6").values()}
    assert {rate: (row.paper["sst_accuracy"], row.paper["sts_pearson"]) for rate, row in found.items()} == (
        paper.LEARNING_RATES
    )
    assert list(rows("figure6"))[2] == "learning-rate-3e-5"
    for rate, row in found.items():
        assert settings(row) == settings(rows("figure2")["baseline"], tasks="sst+sts", learning_rate=rate)


def test_figure_7_sweeps_the_batches():
    found = {
        tuple(row.settings[f"batch_{task}"] for task in ("qqp", "sst", "sts")): row for row in rows("figure7").values()
    }
    assert {sizes: row.paper for sizes, row in found.items()} == {
        sizes: figures.as_dict() for sizes, figures in paper.BATCH_SIZES.items()
    }
    for (qqp, sst, sts), row in found.items():
        assert row.name == f"batches-{qqp}-{sst}-{sts}"
        assert settings(row) == settings(rows("figure2")["baseline"], batch_qqp=qqp, batch_sst=sst, batch_sts=sts)
    assert settings(rows("figure7")["batches-40-6-4"]) == settings(rows("figure2")["baseline"])


def test_lambda_is_tried_on_all_tasks():
    weights = {name: row for name, row in rows("lambda").items() if name != "baseline"}
    assert [row.settings["smart.weight"] for row in weights.values()] == [1, 2, 5]
    assert {row.recipe for row in weights.values()} == {"smart-all"}
    assert [bool(row.paper) for row in weights.values()] == [False, True, False]


@pytest.mark.parametrize(
    "experiment", [spec for spec in EXPERIMENTS.values() if spec.baseline], ids=lambda spec: spec.name
)
def test_what_compares_times_runs_its_baseline_by_itself(experiment):
    row = rows(experiment.name)[experiment.baseline]
    added = experiment.name in ("figure3", "lambda", "pretrain")
    if experiment.name == "parts":
        assert not row.paper and settings(row)["smart.tasks"] == "none"
        return
    assert row.paper["time_ratio"] == 1 and ("not in the paper's table" in row.note) == added


def test_pretraining_changes_one_choice_at_a_time():
    chosen = settings(rows("pretrain")["pretrain"])
    assert chosen == settings(rows("figure2")["pretrain"])
    assert CHOSEN_PRETRAINING.items() <= chosen.items()
    changes = {}
    for row in (*rows("pretrain").values(), *rows("pretrain", extra=True).values()):
        changes[row.name] = {name: value for name, value in settings(row).items() if chosen[name] != value}
    assert changes == {
        "pretrain": {},
        "pretrain-mask": {"pretrain.strategy": "mask"},
        "pretrain-sst": {"pretrain.tasks": "sst"},
        "pretrain-dropout": {"pretrain.dropout": True},
        "pretrain-epochs-3": {"pretrain.epochs": 3},
        "pretrain-epochs-10": {"pretrain.epochs": 10},
        "pretrain-learning-rate-2e-5": {"pretrain.learning_rate": 2e-5},
        "pretrain-learning-rate-3e-5": {"pretrain.learning_rate": 3e-5},
        "pretrain-fraction-15": {"pretrain.fraction": 0.15},
        "pretrain-head-embeddings": {"pretrain.head": "embeddings"},
        "baseline": {"pretrain.epochs": 0},
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_rows_can_be_told_apart(experiment):
    names = [row.name for row in experiment.rows]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)
    assert "pretrained" not in names, "the folder of the pretrained encoders"
    assert len({row.label for row in experiment.rows}) == len(names)
    assert len({str(settings(row)) for row in experiment.rows}) == len(names)
    assert experiment.baseline is None or experiment.baseline in names


def test_one_name_is_one_system_in_all_experiments():
    """`--reuse` relies on it."""
    known = {}
    for _, row in ROWS:
        assert known.setdefault(row.name, settings(row)) == settings(row)


def test_which_rows_pretrain():
    for _, row in ROWS:
        assert row.pretrains == row.name.startswith("pretrain")


def test_slips_are_the_two_of_the_paper():
    found = {experiment.name + " " + row.name: paper.score_slip(row.label, row.paper) for experiment, row in ROWS}
    found = {name: slip for name, slip in found.items() if slip}
    (printed, formula), (batch_printed, batch_formula) = paper.SCORE_SLIPS.values()
    baseline = f"Baseline: the paper prints a score of {printed:.3f}; its own formula gives {formula:.3f}."
    assert found == {
        "figure2 baseline": baseline,
        "figure8 baseline": baseline,
        "methods baseline": baseline,
        "lambda baseline": baseline,
        "pretrain baseline": baseline,
        "figure7 batches-45-4-3": "Batches of 45 QQP, 4 SST, 3 STS: the paper prints a score of "
        f"{batch_printed:.3f}; its own formula gives {batch_formula:.3f}.",
    }
