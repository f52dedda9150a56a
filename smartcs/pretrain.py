"""``python -m smartcs.pretrain``: masked language modelling on the tasks' texts, before fine-tuning."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, arg

from smartcs.data.masking import MaskStrategy
from smartcs.model.mlm import HeadStart
from smartcs.ops.precision import Precision
from smartcs.training.commandline import UsageError, run_command
from smartcs.training.config import Device, Pooling, TrainConfig, flat
from smartcs.training.memory import keep_freed_memory
from smartcs.training.pretrain_run import SETTINGS, pretrain_run
from smartcs.training.recipes import AUTO_MODEL, SAMPLE_DATA

_DESCRIPTION = """\
Pretrain BERT further by masked language modelling on the texts of SST, QQP and STS.

The checkpoint it writes is what python -m smartcs.train --model FOLDER starts from.

Without arguments this runs on a small embedded sample of synthetic English, in about a minute.

The defaults below are the paper's. On the sample, cycles, batches and learning rate are others.
"""
# On the sample, that many times the cycles of the train command's recipe, which has to leave time for fine-tuning.
_SAMPLE_CYCLES = 4
# Flags that are called otherwise than the settings behind them.
_NAMES = {"strategy": "mask", "fraction": "mask_fraction"}


@dataclass(frozen=True)
class _Flags:
    """The flags, with the paper's defaults."""

    fused: bool = True
    """Run the compiled C++ ops; --no-fused runs their PyTorch reference, which learns the same."""
    data: str = SAMPLE_DATA
    """Folder with the course's files (ids-sst-train.csv, ...); "sample" is the embedded sample."""
    model: str = AUTO_MODEL
    """Encoder to start from: a folder, a hub id, "minilm" (the installed package), "small" (random weights).
    "auto" is minilm where that is installed, else small."""
    output: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: a new one in runs/)")] = None
    """Folder for the checkpoint, metrics.json and losses.csv."""
    overwrite: Annotated[bool, FlagCreatePairsOff] = False
    """Replace the run that the output folder holds."""
    epochs: int = 5
    """Epochs; after each one the dev split is evaluated and the checkpoint written."""
    cycles: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: until the task with fewest batches is exhausted)")
    ] = None
    """Cycles per epoch; a cycle is one batch and one optimizer step of each task."""
    learning_rate: float = 1e-5
    """AdamW's learning rate, constant."""
    mask: MaskStrategy = "bert"
    """What stands for a hidden token: "bert", [MASK] 80 %, a random word piece 10 %, itself 10 %; "mask", [MASK]."""
    mask_fraction: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint="(default: one token per sequence)")
    ] = None
    """Share of the tokens to hide, at least one per sequence; the original BERT's is 0.15."""
    tasks: str = "all"
    """Whose texts: all, or some of sst, qqp, sts joined by +."""
    dropout: bool = False
    """Apply the encoder's dropout."""
    head: HeadStart = "random"
    """Where the layer over the vocabulary starts: random weights, or a copy of the word embeddings.
    From the latter a trained encoder's loss falls sooner."""
    seed: int = 11711
    """Names the order of examples, the hidden tokens, the head's initial weights and the dropout masks."""
    batch_sst: int = 6
    """Sentences per SST batch; of each process, where torchrun has started several, and of each accumulated slice."""
    batch_qqp: int = 40
    """Pairs per QQP batch, likewise."""
    batch_sts: int = 4
    """Pairs per STS batch, likewise."""
    accumulate: int = 1
    """Batches whose gradients add up to one optimizer step, in each process."""
    eval_batch_size: int = 64
    """Examples per batch when evaluating; changes speed only."""
    precision: Precision = "fp32"
    """Of matrix products. bf16: of numbers rounded to bfloat16, summed in float32, which all the rest stays.
    Where it has no fast bf16 products it runs in fp32."""
    device: Device = "auto"
    """Where it runs: cpu, cuda (an NVIDIA GPU), or auto, a GPU where torch sees one."""
    pooling: Pooling = "auto"
    """What the checkpoint says shall stand for a sentence; "auto": what it said before."""
    max_length: int = 512
    """Longest sequence in word pieces; longer ones are cut, counted and named."""
    max_skipped_steps: int = 5
    """A step whose loss or gradient is not finite is skipped. This many in a row of one task end the run."""
    strict_data: Annotated[bool, FlagCreatePairsOff] = False
    """Make malformed rows and sequences that are too long an error."""
    report: bool = True
    """Write report.html and its figures into the output folder at the end."""


def parse(arguments: list[str] | None = None) -> TrainConfig:
    """The configuration that a command line (default: this process's) asks for; its `pretrain` part is what runs.

    Raises:
        UsageError: a value out of range; tyro itself exits with code 2 on what it cannot parse.
    """

    def read(default: _Flags) -> _Flags:
        return tyro.cli(
            _Flags, prog="python -m smartcs.pretrain", description=_DESCRIPTION, args=arguments, default=default
        )

    first = read(_Flags())
    try:
        # Data and model decide the defaults of all the rest, so they are read first.
        defaults = flat(TrainConfig.from_dict({"recipe": "pretrain", "data": first.data, "model": first.model}))
        if first.data == SAMPLE_DATA:
            defaults["pretrain.cycles"] *= _SAMPLE_CYCLES
        flags = read(_Flags(**{item.name: defaults[_setting(item.name)] for item in fields(_Flags)}))
        values = {_setting(item.name): getattr(flags, item.name) for item in fields(_Flags)}
        # The encoder keeps the dropout it came with, for fine-tuning too.
        config = TrainConfig.from_dict({"recipe": "pretrain", "encoder_dropout": None, **values})
    except ValueError as error:
        raise UsageError(_as_typed(str(error))) from None
    if config.pretrain.epochs < 1:
        raise UsageError(f"--epochs is {config.pretrain.epochs}, expected an integer of at least 1")
    return config


def _setting(flag: str) -> str:
    """The setting of TrainConfig behind a flag: "mask" -> "pretrain.strategy", "data" -> "data"."""
    if flag in SETTINGS:
        return flag
    setting = {name: setting for setting, name in _NAMES.items()}.get(flag, flag)
    return f"pretrain.{setting}"


def _as_typed(message: str) -> str:
    """A message of TrainConfig with its field as a flag: "TrainConfig: pretrain.strategy is" -> "--mask is"."""

    def flag(found: re.Match[str]) -> str:
        return "--" + _NAMES.get(found[1], found[1]).replace("_", "-")

    return re.sub(r"^TrainConfig: (?:pretrain\.)?(\w+)", flag, message)


def main() -> int:
    config = parse()
    keep_freed_memory()
    result = pretrain_run(config)
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    run_command(main)
