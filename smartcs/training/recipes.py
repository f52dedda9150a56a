"""The configuration of a training run, and where its values come from.

Later ones win: the paper's settings (the defaults of `TrainConfig`), those of a model that starts from nothing
(`FROM_SCRATCH`) and of the embedded sample (`SAMPLE`), the recipes in the order they are named, and what the
user sets. `TrainConfig.from_dict` puts a config together that way; the constructor takes every value as it is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from smartcs.model.sources import MINILM, bundled_minilm

SAMPLE_DATA = "sample"
SMALL_MODEL = "small"
AUTO_MODEL = "auto"
_SHORTEST = 5  # [CLS] a [SEP] b [SEP], the least that `encode` cuts to

# What a recipe sets; METHOD's systems are combinations of these. `a+b` applies a, then b.
RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "dropout": {"head_dropout": 0.15},
}

# 3e-5 fine-tunes a trained encoder; from random weights it would take days.
FROM_SCRATCH: dict[str, Any] = {"learning_rate": 5e-4}

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
    },
    "pretrained": {
        "epochs": 4,
        "cycles": 40,
        "learning_rate": 1e-4,
        "batch_sst": 16,
        "batch_qqp": 32,
        "batch_sts": 16,
        "encoder_dropout": 0.0,
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. The defaults are the paper's; `--help` of the command shows the text below each."""

    fused: bool = True
    """Run the compiled C++ ops; --no-fused runs their PyTorch reference, which learns the same."""
    recipe: str = "baseline"
    """Named settings, several joined by +: baseline, dropout."""
    data: str = SAMPLE_DATA
    """Folder with the course's files (ids-sst-train.csv, ...); "sample" is the embedded sample."""
    model: str = AUTO_MODEL
    """Encoder to start from: a folder, a hub id, "minilm" (the installed package), "small" (random weights).
    "auto" is minilm where that is installed, else small."""
    output: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: a new one in runs/)")] = None
    """Folder for weights, metrics.json, losses.csv and predictions."""
    overwrite: Annotated[bool, FlagCreatePairsOff] = False
    """Replace the run that the output folder holds."""
    epochs: int = 10
    """Epochs; after each one the dev split is evaluated and the best weights so far are kept."""
    cycles: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: until the task with fewest batches is exhausted)")
    ] = None
    """Cycles per epoch; a cycle is one batch and one optimizer step of each task."""
    seed: int = 11711
    """Names the initial heads, the order of examples and the dropout masks."""
    learning_rate: float = 3e-5
    """AdamW's learning rate, constant after the warm-up."""
    warmup: int = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    batch_sst: int = 6
    """Sentences per SST batch."""
    batch_qqp: int = 40
    """Pairs per QQP batch."""
    batch_sts: int = 4
    """Pairs per STS batch."""
    eval_batch_size: int = 64
    """Examples per batch when evaluating; changes speed only."""
    precision: Literal["fp32"] = "fp32"
    """Of weights and arithmetic."""
    pooling: Literal["auto", "pooler", "cls", "mean"] = "auto"
    """What stands for a sentence; "auto" follows the checkpoint."""
    sst_head: Literal["relu_hidden", "relu_logits"] = "relu_hidden"
    """Sentiment head: ReLU on a hidden layer, or on the logits (the other reading of the paper)."""
    head_dropout: float = 0.0
    """Dropout before the output layer of each head."""
    encoder_dropout: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: the checkpoint's)")] = (
        None
    )
    """Dropout of the encoder, hidden states and attention alike."""
    max_length: int = 512
    """Longest sequence in word pieces; longer ones are cut, counted and named."""
    strict_data: Annotated[bool, FlagCreatePairsOff] = False
    """Make malformed rows and sequences that are too long an error."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_sst", "batch_qqp", "batch_sts", "eval_batch_size"):
            self._check(name, self._is_int(name) and getattr(self, name) >= 1, "an integer of at least 1")
        self._check(
            "cycles", self.cycles is None or (self._is_int("cycles") and self.cycles >= 1), "an integer of at least 1"
        )
        self._check("seed", self._is_int("seed") and 0 <= self.seed < 2**63, "an integer from 0 to 2**63 - 1")
        self._check(
            "max_length",
            self._is_int("max_length") and self.max_length >= _SHORTEST,
            f"an integer of at least {_SHORTEST}",
        )
        for name in ("fused", "overwrite", "strict_data"):
            self._check(name, isinstance(getattr(self, name), bool), "true or false")
        for name in ("recipe", "data", "model"):
            value = getattr(self, name)
            self._check(name, isinstance(value, str) and value != "", "a name")
        self._check("output", self.output is None or (isinstance(self.output, str) and self.output != ""), "a folder")
        self._check("learning_rate", self._is_number("learning_rate") and self.learning_rate > 0, "a number above 0")
        self._check("warmup", self._is_int("warmup") and self.warmup >= 0, "an integer of at least 0")
        self._check(
            "weight_decay", self._is_number("weight_decay") and self.weight_decay >= 0, "a number of at least 0"
        )
        self._check(
            "head_dropout", self._is_number("head_dropout") and 0 <= self.head_dropout < 1, "0 <= head_dropout < 1"
        )
        self._check(
            "encoder_dropout",
            self.encoder_dropout is None or (self._is_number("encoder_dropout") and 0 <= self.encoder_dropout < 1),
            "0 <= encoder_dropout < 1",
        )
        for name, choices in _CHOICES.items():
            self._check(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        recipe_values(self.recipe)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """A config from what the user set; everything else as the head of this file says.

        Raises:
            ValueError: an unknown key, recipe or model kind, or a value out of range; says what is valid.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"TrainConfig: unknown keys {', '.join(unknown)}; known: {', '.join(known)}")
        given = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in values.items()}
        chosen = {key: given.get(key, getattr(cls, key)) for key in ("recipe", "data", "model")}
        return cls(**{**default_values(**chosen), **given})

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Batch size per task, in the order of a cycle."""
        return {"sst": self.batch_sst, "qqp": self.batch_qqp, "sts": self.batch_sts}

    def _check(self, name: str, valid: bool, wanted: str) -> None:
        if not valid:
            raise ValueError(f"TrainConfig: {name} is {getattr(self, name)!r}, expected {wanted}")

    def _is_int(self, name: str) -> bool:
        return isinstance(getattr(self, name), int) and not isinstance(getattr(self, name), bool)

    def _is_number(self, name: str) -> bool:
        value = getattr(self, name)
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_CHOICES = {
    "precision": ("fp32",),
    "pooling": ("auto", "pooler", "cls", "mean"),
    "sst_head": ("relu_hidden", "relu_logits"),
}


def default_values(recipe: str, data: str, model: str) -> dict[str, Any]:
    """What follows from the three values that others depend on: keyword arguments of `TrainConfig`.

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
