"""``python -m smartcs.train``: fine-tune on the three tasks."""

from __future__ import annotations

import re
from dataclasses import fields

import tyro

from smartcs.training.commandline import UsageError, run_command
from smartcs.training.config import TrainConfig, nested
from smartcs.training.memory import keep_freed_memory
from smartcs.training.recipes import default_values
from smartcs.training.run import train

_DESCRIPTION = """\
Fine-tune BERT on sentiment (SST), paraphrase (QQP) and similarity (STS), a batch of each in turn.

Without arguments this trains on a small embedded sample of synthetic English, in about two minutes.

The defaults below are the paper's. A run prints the settings it uses when it starts.

The sample has other epochs, cycles, batches, learning rate and encoder dropout than these.
"""


class _Flags(TrainConfig):
    """The flags as they are typed: tyro would wrap the message of a check in a box, `parse` checks afterwards."""

    def __post_init__(self) -> None:
        return None


def parse(arguments: list[str] | None = None) -> TrainConfig:
    """The configuration that a command line (default: this process's) asks for.

    Raises:
        UsageError: a value out of range; tyro itself exits with code 2 on what it cannot parse.
    """

    def read(default: _Flags) -> _Flags:
        return tyro.cli(
            _Flags, prog="python -m smartcs.train", description=_DESCRIPTION, args=arguments, default=default
        )

    # Recipe, data and model decide the defaults of all the rest, so they are read first.
    first = read(_Flags())
    try:
        flags = read(_Flags(**nested(default_values(first.recipe, first.data, first.model))))
        return TrainConfig(**{item.name: getattr(flags, item.name) for item in fields(flags)})
    except ValueError as error:
        raise UsageError(_as_typed(str(error))) from None


def _as_typed(message: str) -> str:
    """A message of TrainConfig with its field as a flag: "TrainConfig: batch_sst is 0" -> "--batch-sst is 0"."""
    return re.sub(r"^TrainConfig: ([\w.]+)", lambda found: "--" + found[1].replace("_", "-"), message)


def main() -> int:
    config = parse()
    keep_freed_memory()
    result = train(config)
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    run_command(main)
