"""What the paper's methods cost: a training cycle of each recipe over one of the baseline, in the same process.

    python benchmarks/recipes.py --threads 2 --rounds 15
    python benchmarks/recipes.py --threads 2 --shape base --rounds 5 --recipes baseline smart-bregman

A cycle is a batch and an optimizer step of each task (6 SST, 40 QQP, 4 STS), dropout 0.1, on the fused ops. Recipes
take turns, cycle by cycle; kept are the median time, the ratio to the baseline within a turn with its 20 % and 80 %
quantiles, and the ratio of the encoder's operations (a pass forward 1, backward 2, its input gradients alone 1).
"""

import argparse

import torch
from cycle import configuration
from results_io import bf16_products, environment, ratio_quantiles, row, write
from setting import BATCHES, SHAPES, add_arguments, encoder, mode, sentences
from timing import in_turns

import smartcs
from smartcs.data.encode import EncodedTask
from smartcs.training.memory import keep_freed_memory
from smartcs.training.trainer import Trainer

RECIPES = ("baseline", "smart", "smart-bregman", "smart-all", "smart-adv", "cosine")
WARM_UP = 2


def passes(recipe: str) -> dict[str, int]:
    """Encoder passes per task in units of a forward pass."""
    smart = {"sst": 5} if "smart" in recipe else {}
    if recipe == "smart-all":
        smart = dict.fromkeys(BATCHES, 5)
    if "bregman" in recipe:
        smart["sst"] += 1
    return {task: 3 + smart.get(task, 0) for task in BATCHES}


class Cycle:
    """A trainer of its own weights; calling it takes one cycle."""

    def __init__(self, recipe: str, shape: str, precision: str, data: dict[str, EncodedTask]) -> None:
        torch.manual_seed(0)
        config = configuration(recipe, precision)
        model = smartcs.MultitaskBert(encoder(shape), smartcs.HeadConfig(cosine=config.cosine))
        self.precision = precision
        with mode("fused", precision):
            self.steps = Trainer(config, model, data).epoch()
        self.tokens = dict.fromkeys(BATCHES, 0)

    def __call__(self) -> None:
        with mode("fused", self.precision):
            for _ in BATCHES:
                step = next(self.steps)
                self.tokens[step.task] += step.tokens


def compare(arguments: argparse.Namespace, precision: str, data: dict[str, EncodedTask], about: dict) -> None:
    """Times the recipes in one precision, prints and writes."""
    cycles = {recipe: Cycle(recipe, arguments.shape, precision, data) for recipe in arguments.recipes}
    for _ in range(WARM_UP):
        for cycle in cycles.values():
            cycle()
    times = in_turns(cycles, arguments.rounds)
    work = {name: sum(cycle.tokens[t] * count for t, count in passes(name).items()) for name, cycle in cycles.items()}
    print(f"{arguments.shape}, {precision}, {arguments.threads} threads")
    print(f"{'recipe':16}{'ms':>8}{'over baseline':>16}{'20 - 80 %':>16}{'by operations':>16}")
    rows = []
    for name, values in times.items():
        expected = None if name == "cosine" else work[name] / work["baseline"]
        ratios = {"baseline": ratio_quantiles(values, times["baseline"])}
        key = (name, f"smartcs {precision}", arguments.shape, precision, arguments.threads)
        rows.append(row(*key, values=values, ratios=ratios, by_operations=expected))
        low, middle, high = ratios["baseline"]
        by = "" if expected is None else f"{expected:.2f}"
        print(
            f"{name:16}{1e3 * rows[-1]['median']:8.0f}{middle:16.2f}{f'{low:.2f} - {high:.2f}':>16}{by:>16}", flush=True
        )
    write("cost", rows, about, arguments.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=15)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=RECIPES)
    parser.add_argument("--precision", nargs="*", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    arguments = parser.parse_args()
    if "baseline" not in arguments.recipes:
        parser.error("--recipes lacks baseline, which the others are compared with")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    data, about = sentences(arguments.data), environment()
    for precision in arguments.precision:
        if precision == "bf16" and bf16_products().startswith("none"):
            print(f"bf16: not measured, {bf16_products()}")
            continue
        compare(arguments, precision, data, about)


if __name__ == "__main__":
    main()
