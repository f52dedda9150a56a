"""What the paper's methods cost: a training cycle of each recipe over one of the baseline, in the same process.

    python benchmarks/recipes.py --threads 2

A cycle is a batch and an optimizer step of each task (6 SST, 40 QQP, 4 STS), dropout 0.1, on the fused ops. Recipes
take turns, cycle by cycle; printed are the median time, the median of the ratios within a turn with 20 % and 80 %
quantiles, and the ratio of the encoder's operations (a pass forward 1, backward 2, its input gradients alone 1).
"""

import argparse
import statistics
import time

import torch
from cycle import BATCHES, SHAPES, encoder

import smartcs
from smartcs.data.encode import EncodedTask, encode
from smartcs.data.sample import sample_folder, sample_tokenizer
from smartcs.training.config import TrainConfig
from smartcs.training.trainer import Trainer

RECIPES = ("baseline", "smart", "smart-bregman", "smart-all", "smart-adv", "cosine")


def passes(recipe: str) -> dict[str, int]:
    """Encoder passes per task in units of a forward pass."""
    smart = {"sst": 5} if "smart" in recipe else {}
    if recipe == "smart-all":
        smart = dict.fromkeys(BATCHES, 5)
    if "bregman" in recipe:
        smart["sst"] += 1
    return {task: 3 + smart.get(task, 0) for task in BATCHES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = sample_tokenizer()
    data = {task: encode(tokenizer, examples) for task, examples in sample_folder().train.items()}
    steps = {recipe: trainer(recipe, arguments.shape, data).epoch() for recipe in RECIPES}
    seconds: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    tokens = dict.fromkeys(BATCHES, 0)
    for turn in range(arguments.rounds + 2):
        for recipe in RECIPES:
            begin = time.perf_counter()
            taken = [next(steps[recipe]) for _ in BATCHES]
            if turn >= 2:  # the first two warm up
                seconds[recipe].append(time.perf_counter() - begin)
                for step in taken:
                    tokens[step.task] += step.tokens
    print(f"{arguments.shape}, {arguments.threads} threads, {smartcs.__version__}")
    print(f"{'recipe':16}{'ms':>8}{'over baseline':>16}{'20 - 80 %':>16}{'by operations':>16}")
    work = {recipe: sum(tokens[task] * count for task, count in passes(recipe).items()) for recipe in RECIPES}
    for recipe in RECIPES:
        ratios = [a / b for a, b in zip(seconds[recipe], seconds["baseline"], strict=True)]
        low, _, _, high = statistics.quantiles(ratios, n=5)
        expected = "" if recipe == "cosine" else f"{work[recipe] / work['baseline']:.2f}"
        print(
            f"{recipe:16}{statistics.median(seconds[recipe]) * 1e3:8.0f}{statistics.median(ratios):16.2f}"
            f"{f'{low:.2f} - {high:.2f}':>16}{expected:>16}"
        )


def trainer(recipe: str, shape: str, data: dict[str, EncodedTask]) -> Trainer:
    """Of a model with its own weights, for more cycles than are timed."""
    torch.manual_seed(0)
    config = TrainConfig.from_dict({"recipe": recipe, "data": "none", "model": "none", "cycles": 10**6})
    model = smartcs.MultitaskBert(encoder(shape, 30522), smartcs.HeadConfig(cosine=config.cosine))
    return Trainer(config, model, data)


if __name__ == "__main__":
    main()
