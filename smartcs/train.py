"""``python -m smartcs.train``: fine-tune on the three tasks."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated, NamedTuple

import tyro
from tyro.conf import arg

from smartcs.training.commandline import UsageError, run_command
from smartcs.training.config import TrainConfig, nested
from smartcs.training.memory import keep_freed_memory
from smartcs.training.recipes import default_values
from smartcs.training.resume import Resumption
from smartcs.training.run import train

_DESCRIPTION = """\
Fine-tune BERT on sentiment (SST), paraphrase (QQP) and similarity (STS), a batch of each in turn.

Without arguments this trains on a small embedded sample of synthetic English, in about two minutes.

The defaults below are the paper's. A run prints the settings it uses when it starts.

The sample has other epochs, cycles, batches, learning rate and encoder dropout than these.
"""


@dataclass(frozen=True)
class _Flags(TrainConfig):
    """The flags as they are typed: tyro would wrap the message of a check in a box, `parse` checks afterwards."""

    resume: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: begin a run)")] = None
    """Go on with the run in that output folder from its newest whole checkpoint, or from a checkpoint's folder. All
    settings are the run's; --epochs, --device and those of writing may be given anew."""

    def __post_init__(self) -> None:
        return None


class Command(NamedTuple):
    """What a command line asks for: a run's configuration, and the run to go on with, if any."""

    config: TrainConfig
    resumed: Resumption | None


def parse(arguments: list[str] | None = None) -> Command:
    """What a command line (default: this process's) asks for.

    Raises:
        UsageError: a value out of range, or nothing to resume; tyro itself exits with code 2 on what it cannot parse.
        CheckpointError: what is to be resumed is damaged.
    """

    def read(default: _Flags) -> _Flags:
        return tyro.cli(
            _Flags, prog="python -m smartcs.train", description=_DESCRIPTION, args=arguments, default=default
        )

    # The run to go on with, or else recipe, data and model, decide the defaults of all the rest: they are read first.
    first = read(_Flags())
    resumed = None if first.resume is None else Resumption.find(first.resume)
    try:
        if resumed is None:
            defaults = nested(default_values(first.recipe, first.data, first.model))
        else:
            defaults = {item.name: getattr(resumed.config, item.name) for item in fields(resumed.config)}
        flags = read(_Flags(**defaults))
        return Command(TrainConfig(**{item.name: getattr(flags, item.name) for item in fields(TrainConfig)}), resumed)
    except ValueError as error:
        raise UsageError(_as_typed(str(error))) from None


def _as_typed(message: str) -> str:
    """A message of TrainConfig with its field as a flag: "TrainConfig: batch_sst is 0" -> "--batch-sst is 0"."""
    return re.sub(r"^TrainConfig: ([\w.]+)", lambda found: "--" + found[1].replace("_", "-"), message)


def main() -> int:
    config, resumed = parse()
    keep_freed_memory()
    result = train(config, resumed=resumed)
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    run_command(main)
