"""Where the values of a training run come from.

Later ones win: the paper's settings (the defaults of `TrainConfig`), those of a model that starts from nothing
(`FROM_SCRATCH`) and of the embedded sample (`SAMPLE`), the recipes in the order they are named, and what the
user sets. A name with a dot is a setting of a part: "smart.weight" is `TrainConfig.smart.weight`.
"""

from __future__ import annotations

from typing import Any

from smartcs.model.sources import MINILM, bundled_minilm

SAMPLE_DATA = "sample"
SMALL_MODEL = "small"
AUTO_MODEL = "auto"

_SMART = {"smart.tasks": "sst"}
_BREGMAN = {"bregman.tasks": "sst"}
_PRETRAIN = {"pretrain.epochs": 5}
_COSINE = {"cosine": "fusion"}
# At its published settings the ascent does not move: alpha * g is far smaller than v, so what mt-dnn's rule
# normalises to a largest element of 1 is the random start. Here g is normalised first and the step is as long as the
# ball is wide, a ball in which R_s is about as large as mt-dnn's random one makes it (MiniLM, untuned heads).
_ADVERSARIAL = {**_SMART, "smart.update": "projected", "smart.step_size": 1e-2, "smart.radius": 1e-2}

# The systems of the paper's figures 2 and 8, and the two adversarial ones. `a+b` applies a, then b.
RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "pretrain": _PRETRAIN,
    "cosine": _COSINE,
    "smart": _SMART,
    "smart-bregman": {**_SMART, **_BREGMAN},
    "pretrain-smart-bregman": {**_PRETRAIN, **_SMART, **_BREGMAN},
    "pretrain-cosine": {**_PRETRAIN, **_COSINE},
    "smart-bregman-cosine": {**_SMART, **_BREGMAN, **_COSINE},
    "pretrain-smart-bregman-cosine": {**_PRETRAIN, **_SMART, **_BREGMAN, **_COSINE},
    "dropout": {"head_dropout": 0.15},
    "stickland": {"sampler": "annealed_deterministic"},
    "smart-all": {"smart.tasks": "all"},
    "smart-adv": _ADVERSARIAL,
    "smart-adv-bregman": {**_ADVERSARIAL, **_BREGMAN},
}

# 3e-5 fine-tunes a trained encoder; from random weights it would take days.
FROM_SCRATCH: dict[str, Any] = {"learning_rate": 5e-4, "pretrain.learning_rate": 5e-4}

# The sample is there to see all three tasks learnt within two minutes on two cores, by kind of model: larger
# batches where there are few steps, and no dropout in a run that ends before it could overfit.
SAMPLE: dict[str, dict[str, Any]] = {
    "small": {
        "epochs": 5,
        "cycles": 150,
        "learning_rate": 1e-3,
        "batch_sst": 16,
        "batch_qqp": 32,
        "batch_sts": 32,
        "encoder_dropout": 0.0,
        "pretrain.cycles": 20,
    },
    "pretrained": {
        "epochs": 4,
        "cycles": 40,
        "learning_rate": 1e-4,
        "batch_sst": 16,
        "batch_qqp": 32,
        "batch_sts": 16,
        "encoder_dropout": 0.0,
        "pretrain.cycles": 4,
        "pretrain.learning_rate": 1e-4,
    },
}


def default_values(recipe: str, data: str, model: str) -> dict[str, Any]:
    """What follows from the three values that others depend on: settings by name.

    Raises:
        ValueError: an unknown recipe.
    """
    small = model_name(model) == SMALL_MODEL
    values: dict[str, Any] = dict(FROM_SCRATCH) if small else {}
    if data == SAMPLE_DATA:
        values |= SAMPLE["small" if small else "pretrained"]
    return {"recipe": recipe, "data": data, "model": model, **values, **recipe_values(recipe)}


def recipe_values(name: str) -> dict[str, Any]:
    """The settings of a recipe, or of several joined by +, the later ones winning.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    values: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in RECIPES:
            raise ValueError(
                f"TrainConfig: recipe is {name!r}, expected {', '.join(RECIPES)}, or several of them joined by +"
            )
        values |= RECIPES[part]
    return values


def model_name(model: str) -> str:
    """`model` with "auto" replaced by what it stands for on this installation."""
    if model != AUTO_MODEL:
        return model
    return SMALL_MODEL if bundled_minilm() is None else MINILM
