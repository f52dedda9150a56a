"""``python -m smartcs.reproduce EXPERIMENT``: a table of the paper, run again."""

from __future__ import annotations

import json
import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from smartcs.experiments.figures import Experiment, Row
from smartcs.experiments.jobs import Options
from smartcs.experiments.runner import Reproduction, reproduce
from smartcs.experiments.studies import EXPERIMENTS
from smartcs.training.commandline import UsageError, run_command
from smartcs.training.config import TrainConfig, flat
from smartcs.training.memory import keep_freed_memory
from smartcs.training.recipes import AUTO_MODEL, SAMPLE_DATA

_INTRODUCTION = """\
Run the rows of a table of the paper, or of an experiment of ours, beside the paper's figures.

Without --data every row trains on a small embedded sample of synthetic English.

The paper's figures are of BERT base (--model bert-base-uncased) on the full data (--data DIR).

A finished row is not run again: repeat the command to go on after Ctrl-C, or to add rows and seeds.

The tables hold all runs of the output folder: results.md, .csv and .json and report.html there.

Beside them each run has a folder of its own, ROW/seed-SEED.

Experiments and their rows, after "extra" those that run only where they are asked for:
"""
_WIDTH = 92
# Settings that are flags of this command, or not its user's to choose.
_FLAGS = frozenset(
    {"fused", "recipe", "data", "model", "output", "overwrite", "epochs", "cycles", "seed", "report"}
    | {"pretrain.epochs", "pretrain.cycles"}
)


@dataclass(frozen=True)
class ReproduceConfig:
    """What to reproduce."""

    experiment: Annotated[
        Literal[
            "figure2", "figure3", "figure6", "figure7", "figure8", "lambda", "pretrain", "settings", "methods", "parts"
        ],
        Positional,
        arg(metavar="EXPERIMENT"),
    ]
    """One of the experiments above."""
    rows: Annotated[str | None, arg(metavar="A,B,...", help_behavior_hint="(default: all but the extra ones)")] = None
    """Rows to run, by their names above, joined by commas."""
    extra: Annotated[bool, FlagCreatePairsOff] = False
    """Run the extra rows as well, which the paper does not have; --rows may name them too."""
    seeds: Annotated[str, arg(metavar="S,T,...")] = str(TrainConfig.seed)
    """Seeds, joined by commas; every row is run with each, and the tables give mean and standard deviation."""
    data: Annotated[str, arg(metavar="DIR")] = SAMPLE_DATA
    """Folder with the course's files (ids-sst-train.csv, ...); "sample" is the embedded sample."""
    model: str = AUTO_MODEL
    """Encoder to start from: a folder, a hub id, "minilm" (the installed package), "small" (random weights).
    "auto" is minilm where that is installed, else small."""
    output: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: runs/EXPERIMENT)")] = None
    """Folder of the reproduction; what it holds of the same experiment is kept and gone on with."""
    reuse: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: none)")] = None
    """Folder of another reproduction: its finished runs of equal rows and settings are taken, figure 2's for 8."""
    overwrite: Annotated[bool, FlagCreatePairsOff] = False
    """Run again what is finished with other settings or data, which else is an error."""
    epochs: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the recipe's)")] = None
    """Epochs of every row."""
    cycles: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the recipe's)")] = None
    """Cycles per epoch of every row."""
    pretrain_epochs: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the recipe's)")] = None
    """Epochs of additional pretraining; not for the rows that are about another number of them."""
    pretrain_cycles: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the recipe's)")] = None
    """Cycles per epoch of additional pretraining."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="(default: none)")] = ()
    """Other settings of every row, by their names in metrics.json: precision=bf16 pooling=mean smart.weight=5."""
    jobs: int = 1
    """Runs at a time, in processes of their own that share the cores; figures are the same, times are longer."""
    fused: bool = True
    """Run the compiled C++ ops; --no-fused runs their PyTorch reference, which learns the same."""
    report: bool = True
    """Write report.html, of every run and of the whole."""


def parse(arguments: list[str] | None = None) -> tuple[Experiment, list[Row], Options]:
    """What a command line (default: this process's) asks for.

    Raises:
        UsageError: unknown rows or seeds; tyro itself exits with code 2 on what it cannot parse.
    """
    config = tyro.cli(ReproduceConfig, prog="python -m smartcs.reproduce", description=_description(), args=arguments)
    experiment = EXPERIMENTS[config.experiment]
    for flag, value in (("--pretrain-epochs", config.pretrain_epochs), ("--pretrain-cycles", config.pretrain_cycles)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} is {value}, expected an integer of at least 1")
        if value is not None and not any(row.pretrains for row in experiment.rows):
            raise UsageError(f"{flag}: no row of {experiment.name} has additional pretraining, leave it out")
    for flag, text in (("--output", config.output), ("--reuse", config.reuse)):
        if text == "":
            raise UsageError(f"{flag} is empty, expected a folder")
    if config.jobs < 1:
        raise UsageError(f"--jobs is {config.jobs}, expected an integer of at least 1")
    words = sys.argv[1:] if arguments is None else arguments
    options = Options(
        output=Path(config.output or f"runs/{experiment.name}"),
        data=config.data,
        model=config.model,
        fused=config.fused,
        seeds=_seeds(config.seeds),
        epochs=config.epochs,
        cycles=config.cycles,
        pretrain_epochs=config.pretrain_epochs,
        pretrain_cycles=config.pretrain_cycles,
        settings=_settings(config.set),
        jobs=config.jobs,
        report=config.report,
        overwrite=config.overwrite,
        reuse=None if config.reuse is None else Path(config.reuse).expanduser(),
        command=shlex.join(["python", "-m", "smartcs.reproduce", *words]),
    )
    return experiment, _rows(experiment, config.rows, config.extra), options


def _description() -> str:
    lines = [_INTRODUCTION.rstrip()]
    for experiment in EXPERIMENTS.values():
        names = {extra: ", ".join(row.name for row in experiment.rows if row.extra == extra) for extra in (False, True)}
        lines.append(f"  {experiment.name:<9} {experiment.title}")
        for text in (names[False], f"extra: {names[True]}" if names[True] else ""):
            # tyro keeps the lines that are indented as they are.
            lines += [f"    {line}" for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False)]
    return "\n".join(lines)


def _rows(experiment: Experiment, names: str | None, extra: bool) -> list[Row]:
    if names is None:
        return [row for row in experiment.rows if extra or not row.extra]
    chosen = [name.strip() for name in names.split(",")]
    known = [row.name for row in experiment.rows]
    for name in chosen:
        if name not in known:
            raise UsageError(f"--rows names {name!r}, expected some of {', '.join(known)}, joined by commas")
    return [row for row in experiment.rows if row.name in chosen or (extra and row.extra)]


def _settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """Values as JSON has them, all else as text: warmup=60, holdout=0.1, pooling=mean."""
    settings: dict[str, Any] = {}
    known = flat(TrainConfig())
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in known or name in _FLAGS:
            names = ", ".join(key for key in known if key not in _FLAGS)
            raise UsageError(f"--set names {text!r}, expected NAME=VALUE with a name among {names}")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def _seeds(text: str) -> tuple[int, ...]:
    try:
        # A seed that is named twice is run once.
        return tuple(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise UsageError(f"--seeds is {text!r}, expected integers joined by commas") from None


def _as_typed(message: str) -> str:
    """A message of TrainConfig with its field as a flag: "TrainConfig: pretrain.epochs" -> "--pretrain-epochs"."""

    def flag(found: re.Match[str]) -> str:
        return "--seeds" if found[1] == "seed" else "--" + re.sub(r"[._]", "-", found[1])

    return re.sub(r"^TrainConfig: ([\w.]+)", flag, message)


def main() -> int:
    experiment, rows, options = parse()
    keep_freed_memory()
    try:
        result: Reproduction = reproduce(experiment, rows, options)
    except UsageError:
        raise
    except ValueError as error:
        if not str(error).startswith("TrainConfig: "):
            raise
        raise UsageError(_as_typed(str(error))) from None
    if result.signal is not None:
        return 128 + result.signal
    return int(any(outcome.state != "finished" for outcome in result.results.outcomes))


if __name__ == "__main__":
    run_command(main)
