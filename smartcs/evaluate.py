"""``python -m smartcs.evaluate RUN_DIR``: the figures of a finished run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console

from smartcs.ops.backend import set_backend
from smartcs.ops.precision import Precision, arithmetic, precision
from smartcs.training.commandline import UsageError, run_command
from smartcs.training.config import Device
from smartcs.training.device import choose_device
from smartcs.training.evaluation import evaluate
from smartcs.training.metrics import majority_figures
from smartcs.training.saved_run import SavedRun
from smartcs.training.tables import figures_table

_DESCRIPTION = """\
Print accuracy (SST, QQP), Pearson's correlation (STS) and the score of a run's best weights.
"""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Output folder of a training run."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the run's)")] = None
    """Folder with the course's files, or "sample"."""
    split: Literal["dev", "test"] = "dev"
    """Which split; it needs labels."""
    batch_size: int = 64
    """Examples per batch; changes speed only."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""
    strict_data: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make malformed rows and sequences that are too long an error."""
    fused: bool = True
    """Run the compiled C++ ops, or with --no-fused their PyTorch reference."""
    precision: Precision = "fp32"
    """Of matrix products. bf16: of numbers rounded to bfloat16, summed in float32; where it has no fast bf16
    products it runs in fp32."""
    device: Device = "auto"
    """Where it runs: cpu, cuda (an NVIDIA GPU), or auto, a GPU where torch sees one."""


def main() -> int:
    config = tyro.cli(EvaluateConfig, prog="python -m smartcs.evaluate", description=_DESCRIPTION)
    if config.batch_size < 1:
        raise UsageError(f"--batch-size is {config.batch_size}, expected at least 1")
    set_backend("fused" if config.fused else "reference")
    device = choose_device(config.device)
    chosen = arithmetic(config.precision, device.type)
    if chosen.reason:
        print(chosen.notice, file=sys.stderr)
    run = SavedRun.load(config.run, device)
    data = run.data(config.data, strict=config.strict_data)
    split = getattr(data, config.split)
    lacking = [task for task in data.train if task not in split or split[task].labels is None]
    if lacking:
        raise UsageError(
            f"{data.source}: the {config.split} split has no labels for {', '.join(lacking)}; "
            "python -m smartcs.predict writes predictions without them"
        )
    encoded = run.encode(data, config.split, strict=config.strict_data)
    with precision(chosen.precision):
        result = evaluate(run.model, encoded, config.batch_size)
    majority = majority_figures(data.train, split)
    if config.json:
        left_out = {
            "skipped": {task: len(examples.skipped) for task, examples in split.items()},
            "truncated": {task: len(examples.truncated) for task, examples in encoded.items()},
        }
        facts = {"split": config.split, "precision": chosen.precision}
        print(json.dumps({**facts, **result.as_dict(), **left_out, "majority": majority}, indent=2))
    else:
        Console().print(figures_table(config.split, result, majority))
    return 0


if __name__ == "__main__":
    run_command(main)
