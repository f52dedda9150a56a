"""Whether the paper's row of a recipe is what a run did, and what else is different about the run."""

from __future__ import annotations

from typing import Any

from smartcs.report.run_data import RunData
from smartcs.training import paper
from smartcs.training.config import TrainConfig, flat, nested
from smartcs.training.plan import idle_settings
from smartcs.training.recipes import recipe_values

# Settings that make a run another system than the paper's.
_METHOD = ("cosine", "head_dropout", "sampler", "solo_steps")
_METHOD_PARTS = ("smart.", "bregman.", "pretrain.")
# Those of pretraining that say how long, as `epochs` does.
_LENGTHS = ("pretrain.epochs", "pretrain.cycles", "pretrain.learning_rate")
# What the page says elsewhere, and what does not change the figures.
_UNMENTIONED = (
    *("recipe", "data", "model", "seed", "epochs", "cycles"),
    *("fused", "output", "overwrite", "strict_data", "eval_batch_size", "report", "tensorboard"),
    *("checkpoint_every", "keep", "max_skipped_steps"),
)


def has_row(run: RunData) -> bool:
    """Whether the paper has a row of the run's recipe and the run keeps to its method."""
    return run.recipe in paper.DEV and not changed_method(run)


def changed_method(run: RunData) -> list[str]:
    """The settings of the method that are not the recipe's, as "smart.weight 5.0 (2.0)"; the recipe's in brackets."""
    return [text for name, text in _changed(run).items() if _is_method(name, run)]


def changed_conditions(run: RunData) -> list[str]:
    """The other settings that are not the recipe's, those the page says elsewhere left out."""
    changed = _changed(run).items()
    return [text for name, text in changed if name not in _UNMENTIONED and not _is_method(name, run)]


def _is_method(name: str, run: RunData) -> bool:
    if name == "pretrain.epochs":  # without is another system
        return bool(run.config[name]) != bool(_of_recipe(run)[name])
    return name in _METHOD or (name.startswith(_METHOD_PARTS) and name not in _LENGTHS)


def _of_recipe(run: RunData) -> dict[str, Any]:
    return {**flat(TrainConfig()), **recipe_values(run.recipe)}


def _changed(run: RunData) -> dict[str, str]:
    """Name -> setting and, in brackets, the recipe's; settings that the run does not name count as the recipe's."""
    if run.recipe not in paper.DEV:
        return {}
    recipe = _of_recipe(run)
    config = {name: value for name, value in run.config.items() if name in recipe}
    try:
        idle = idle_settings(TrainConfig(**nested({**recipe, **config})))
    except ValueError:  # a value that this version does not know
        idle = {}
    return {
        name: f"{name} {_text(value)} ({_text(recipe[name])})"
        for name, value in config.items()
        if value != recipe[name] and name not in idle
    }


def _text(value: Any) -> str:
    return "left open" if value is None else str(value)
