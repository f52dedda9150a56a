"""Peak memory of one training step, with SMART and the Bregman term and without, each in a process of its own.

    python benchmarks/memory.py --shape base --tokens 1220

"activations" is what autograd keeps alive for backward passes at the worst moment, each storage counted once, without
the weights; "sets" is that over the baseline's. "peak" is the most memory the process ever held, torch itself and the
optimizer's state included.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from live_activations import ActivationMeter  # noqa: E402
from setting import encoder  # noqa: E402

import smartcs  # noqa: E402
from smartcs.training.config import TrainConfig  # noqa: E402
from smartcs.training.objective import Objective  # noqa: E402

RECIPES = ("baseline", "smart", "smart-bregman")
_LENGTH = 25  # tokens of a sentence


def measure(recipe: str, shape: str, tokens: int) -> None:
    """Prints MB: weights, activations at the worst moment, the process's peak."""
    torch.manual_seed(0)
    model = smartcs.MultitaskBert(encoder(shape)).train()
    objective = Objective(TrainConfig.from_dict({"recipe": recipe, "data": "none", "model": "none"}), model, 10)
    optimizer = smartcs.AdamW(model.parameters(), lr=1e-5)
    rows = [torch.randint(30522, (_LENGTH,)).tolist() for _ in range(tokens // _LENGTH)]
    batch, labels = smartcs.PackedBatch.from_lists(rows), torch.randint(5, (len(rows),))

    def step(number: int) -> None:
        loss = objective("sst", batch, labels, number).total
        loss.backward()
        del loss
        optimizer.step(anchor=objective.anchor_of("sst"))
        optimizer.zero_grad(set_to_none=True)

    for number in range(3):
        step(number)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with ActivationMeter(model.parameters()) as meter:
        objective("sst", batch, labels, 3).total.backward()
    print(sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20, meter.peak / 2**20, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("minilm", "base"), default="base")
    parser.add_argument("--tokens", type=int, default=1220)
    parser.add_argument("--recipe", choices=RECIPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recipe:
        measure(arguments.recipe, arguments.shape, arguments.tokens)
        return
    if arguments.tokens < _LENGTH:
        parser.error(f"--tokens is {arguments.tokens}, expected at least {_LENGTH}, one sentence")
    print(f"{arguments.shape}, {arguments.tokens} tokens; MB")
    print(f"{'step':16}{'weights':>10}{'activations':>14}{'sets':>7}{'peak':>10}{'ratio':>8}")
    baseline: tuple[float, float] | None = None
    for recipe in RECIPES:
        command = [sys.executable, __file__, "--recipe", recipe]
        command += ["--shape", arguments.shape, "--tokens", str(arguments.tokens)]
        # Its stderr is ours.
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if child.returncode:
            sys.exit(f"{recipe}: the process that measures it ended with {child.returncode}")
        weights, activations, peak = map(float, child.stdout.split())
        baseline = baseline or (activations, peak)
        print(
            f"{recipe:16}{weights:10,.0f}{activations:14,.1f}{activations / baseline[0]:7.2f}{peak:10,.0f}"
            f"{peak / baseline[1]:8.2f}"
        )


if __name__ == "__main__":
    main()
