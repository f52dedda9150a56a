"""Runs that are stopped twice and resumed against the same runs in one piece: every recipe, backend and thread count.

    PYTHONPATH=tests python benchmarks/resume_equality.py                  all; ten minutes of a quiet machine
    PYTHONPATH=tests python benchmarks/resume_equality.py --only baseline

Two epochs of six steps, with dropout; the first stop is in the first epoch (or in the second one of pretraining), the
next in the second epoch. Weights, optimizer state, anchor, losses, predictions and figures must be equal to the bit.
What was found is in benchmarks/results/resume-equality.json.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from distributed_equality import settings
from results_io import RESULTS, source
from rich.console import Console
from run_comparison import differences
from training.resuming import go_on, stopping

from smartcs.training.config import TrainConfig
from smartcs.training.pretraining import Pretrainer
from smartcs.training.recipes import RECIPES
from smartcs.training.record import RunResult
from smartcs.training.run import train
from smartcs.training.trainer import Trainer

PATH = RESULTS / "resume-equality.json"
SHORT = {
    "epochs": 2, "cycles": 2, "checkpoint_every": 5, "keep": 2, "encoder_dropout": 0.1, "report": False,
    "learning_rate": 1e-3, "device": "cpu",
}  # fmt: skip


def stopped(at: int, loop: type, run: Callable[[], RunResult]) -> RunResult:
    """The result of a run that gets a signal after that step of fine-tuning or of pretraining."""
    with stopping(at, loop, signal.SIGTERM):
        result = run()
    assert result.signal == signal.SIGTERM
    return result


def compare(values: dict[str, Any], folder: Path) -> list[str]:
    """What differs between a run in one piece and one in three."""
    pretraining = "pretrain" in values["recipe"]
    if pretraining:
        values = {**values, "pretrain": {"epochs": 2, "cycles": 1, "dropout": True}}

    def start(name: str) -> Any:
        return train(TrainConfig.from_dict({**values, "output": str(folder / name)}), Console(quiet=True))

    whole = start("whole").folder
    parts = stopped(5 if pretraining else 4, Pretrainer if pretraining else Trainer, lambda: start("parts")).folder
    stopped(8, Trainer, lambda: go_on(parts))
    assert go_on(parts).signal is None
    return differences(whole, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--no-record", action="store_true", help=f"leave {PATH.name} as it is")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        base = {**settings(Path(name)), **SHORT}
        rows, begun = [], time.monotonic()
        for recipe, fused, threads in product(options.only, (True, False), (1, 2)):
            torch.set_num_threads(threads)
            with TemporaryDirectory(dir=name) as folder:
                found = compare({**base, "recipe": recipe, "fused": fused}, Path(folder))
            rows.append(
                {"recipe": recipe, "ops": "fused" if fused else "reference", "threads": threads, "differ": found}
            )
            print(f"{recipe}, {rows[-1]['ops']}, threads {threads}: {found or 'equal to the bit'}", flush=True)
    about = source()
    if not options.no_record and options.only == list(RECIPES):
        PATH.write_text(
            json.dumps({**about, "seconds": round(time.monotonic() - begun), "rows": rows}, indent=1) + "\n"
        )
    sys.exit(any(row["differ"] for row in rows))


if __name__ == "__main__":
    main()
