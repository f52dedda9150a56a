"""Experiments of our own: how to choose the settings, every recipe side by side, and what SMART's parts do.

The paper compares systems once each, chooses on the dev set, and perturbs in a direction that is random at its
settings (see `smartcs.training.recipes`). These experiments ask the same questions so that chance can be told from
effect: settings are chosen on held-out training texts (``--set holdout=0.1``), rows differ in one thing, seeds repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smartcs.experiments.figures import ADVERSARIAL, TABLES, Experiment, Row, short, system
from smartcs.training import paper

LEARNING_RATES = (3e-5, 5e-5, 1e-4, 2e-4)
WARMUPS = (0, 100)


def _setting(pooling: str, rate: float, warmup: int, tasks: str = "sst+sts") -> Row:
    values = {"pooling": pooling, "learning_rate": rate, "warmup": warmup, "tasks": tasks}
    name = f"{pooling}-{short(rate)}-warmup-{warmup}"
    label = f"{pooling}, {short(rate)}, {warmup} steps of warm-up"
    if tasks != "all":
        return Row(name, label, settings=values)
    note = "the candidates on all three tasks, where a rate that is too high shows first"
    return Row(f"all-{name}", f"{label}, all tasks", settings=values, extra=True, note=note)


_SETTINGS = Experiment(
    "settings",
    "Learning rate, warm-up and pooling of the baseline, on SST and STS as in figure 6",
    (
        *(_setting("mean", rate, warmup) for rate in LEARNING_RATES for warmup in WARMUPS),
        *(_setting("cls", rate, WARMUPS[-1]) for rate in LEARNING_RATES),
        *(_setting("mean", rate, warmup, "all") for rate in LEARNING_RATES for warmup in WARMUPS),
    ),
    notes=("To choose by, not to report: run it with --set holdout=0.1.",),
)

_METHODS = Experiment(
    "methods",
    "Every recipe: the systems of figures 2 and 8, and two with a truly adversarial step",
    (
        *map(system, paper.FIGURE_2),
        *(system(recipe) for recipe in paper.FIGURE_8 if recipe not in paper.FIGURE_2),
        *(Row(row.name, row.label, row.recipe) for row in ADVERSARIAL),
    ),
    baseline="baseline",
    contrasts=(("smart-adv", "smart"), ("smart-bregman", "smart"), ("smart-adv-bregman", "smart-adv")),
)


def _part(name: str, label: str, changed: Mapping[str, Any], *, extra: bool = False) -> Row:
    return Row(name, label, settings={"tasks": "sst", "smart.tasks": "sst", **changed}, extra=extra)


def _ascent(radius: float, norm: str = "inf") -> dict[str, Any]:
    """To the rim of the ball in one step along the gradient."""
    return {"smart.update": "projected", "smart.norm": norm, "smart.step_size": radius, "smart.radius": radius}


def _random(radius: float) -> dict[str, Any]:
    """A normal start far outside the ball, not moved along the gradient, drawn back to its rim: a random direction."""
    return {**_ascent(radius, "2"), "smart.step_size": 0.0, "smart.noise_std": 1.0}


_RADIUS = 1e-2  # that of smart-adv
_FRESH = {"smart.share_dropout": False}


def _directions(size: float, *, extra: bool) -> tuple[Row, Row]:
    """Perturbations of equal 2-norm per token, along the gradient and not."""
    text = short(size)
    return (
        _part(f"adv-l2-{text}", f"Adversarial, 2-norm {text}", _ascent(size, "2"), extra=extra),
        _part(f"random-l2-{text}", f"Random direction, 2-norm {text}", _random(size), extra=extra),
    )


_PARTS = Experiment(
    "parts",
    "What SMART's parts do, on SST alone",
    (
        Row("plain", "No regulariser", settings={"tasks": "sst"}),
        _part("published", "Published: random, inf-norm 1", {}),
        _part("adv", f"Adversarial, inf-norm {short(_RADIUS)}", _ascent(_RADIUS)),
        *_directions(1.0, extra=False),
        _part("published-fresh", "Published, fresh dropout masks", _FRESH),
        *(
            _part(f"adv-{short(radius)}", f"Adversarial, inf-norm {short(radius)}", _ascent(radius))
            for radius in (_RADIUS / 10, _RADIUS * 10)
        ),
        _part(
            "adv-embedding-output",
            "Adversarial, behind the embedding layer",
            {**_ascent(_RADIUS), "smart.perturb_at": "embedding_output"},
        ),
        _part("adv-lambda-10", "Adversarial, lambda 10", {**_ascent(_RADIUS), "smart.weight": 10.0}),
        *_directions(0.1, extra=True),
        _part("adv-fresh", "Adversarial, fresh dropout masks", {**_ascent(_RADIUS), **_FRESH}, extra=True),
        _part("adv-lambda-1", "Adversarial, lambda 1", {**_ascent(_RADIUS), "smart.weight": 1.0}, extra=True),
    ),
    baseline="plain",
    notes=(
        "Rows of equal 2-norm have perturbations of one size per token and differ in their direction alone.",
        "lambda is 2 unless a row says otherwise.",
        "A random direction's gradient is taken far away, at its start: its alignment tells nothing.",
    ),
    contrasts=(
        ("adv-l2-1", "random-l2-1"),
        ("adv-l2-1e-1", "random-l2-1e-1"),
        ("adv", "published"),
        ("published-fresh", "published"),
        ("adv-embedding-output", "adv"),
        ("adv-lambda-10", "adv"),
    ),
)

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (*TABLES, _SETTINGS, _METHODS, _PARTS)
}
"""By the name on the command line."""
