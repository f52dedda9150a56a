"""``python -m smartcs.train``: fine-tune on the three tasks."""

from __future__ import annotations

import tyro

from smartcs.training.commandline import UsageError, run_command
from smartcs.training.recipes import TrainConfig, default_values


def parse(arguments: list[str] | None = None) -> TrainConfig:
    """The configuration that a command line (default: this process's) asks for.

    Raises:
        UsageError: a value out of range; tyro itself exits with code 2 on what it cannot parse.
    """
    prog = "python -m smartcs.train"
    try:
        # Recipe, data and model decide the defaults of all the rest, so they are read first.
        first = tyro.cli(TrainConfig, prog=prog, args=arguments)
        defaults = TrainConfig(**default_values(first.recipe, first.data, first.model))
        return tyro.cli(TrainConfig, prog=prog, args=arguments, default=defaults)
    except ValueError as error:
        raise UsageError(str(error)) from None


def main() -> int:
    config = parse()
    from smartcs.training.run import train

    result = train(config)
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    run_command(main)
