"""Training by one process and by two, of one thread each: tokens per second, taking turns in the same two processes.

    torchrun --standalone --nproc-per-node 2 benchmarks/distributed.py --rounds 15

A turn is a cycle of MiniLM's shape: a step of each task, with the paper's batches (6 SST, 40 QQP, 4 STS). One process
takes it while the other waits; two take the same steps with half of each batch, and steps of twice the size with a
batch each. The machine needs a core for each process. Rows go to benchmarks/results/distributed, which tables.py makes
the table of docs/distributed.md from.
"""

import argparse
from collections.abc import Callable
from time import perf_counter

import torch
import torch.distributed as dist
from cycle import configuration
from results_io import environment, ratio_quantiles, row, write
from setting import BATCHES, SHAPES, add_arguments, encoder, mode, sentences

import smartcs
from smartcs.data.encode import EncodedTask
from smartcs.training.config import TrainConfig, flat
from smartcs.training.distributed import ALONE, Ranks
from smartcs.training.launch import launched
from smartcs.training.memory import keep_freed_memory
from smartcs.training.trainer import Trainer

ONE, HALVES, TWO = "1 process", "2 processes, halves", "2 processes"
RECIPES = ("baseline", "smart-bregman")
WARM_UP = 2


def cycle(recipe: str, shape: str, share: int, ranks: Ranks, data: dict[str, EncodedTask]) -> Callable[[], int]:
    """Takes a cycle of batches of 1 / share each process, and returns its tokens."""
    torch.manual_seed(0)
    batches = {f"batch_{task}": size // share for task, size in BATCHES.items()}
    config = TrainConfig.from_dict({**flat(configuration(recipe, "fp32")), **batches})
    with mode("fused", "fp32"):
        trainer = Trainer(config, smartcs.MultitaskBert(encoder(shape)), data, ranks=ranks)
        steps = trainer.epoch()

    def take() -> int:
        with mode("fused", "fp32"):
            return sum(next(steps).tokens for _ in BATCHES)

    return take


def measure(recipe: str, shape: str, rounds: int, ranks: Ranks, data: dict[str, EncodedTask]) -> dict[str, list[float]]:
    """Tokens per second of each candidate, one number a round; of the first process."""
    own = ranks.is_first
    takes = {ONE: cycle(recipe, shape, 1, ALONE, data) if own else None}
    takes |= {name: cycle(recipe, shape, share, ranks, data) for name, share in ((HALVES, 2), (TWO, 1))}
    speeds: dict[str, list[float]] = {name: [] for name in takes}
    names = list(takes)
    for turn in range(WARM_UP + rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            take = takes[name]
            dist.barrier()
            begin = perf_counter()
            tokens = take() if take is not None else 0
            if turn >= WARM_UP and own:
                speeds[name].append(tokens / (perf_counter() - begin))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=15)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=RECIPES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    data, about = sentences(arguments.data), environment()
    with launched(torch.device("cpu")) as ranks:
        if ranks.size != 2:
            parser.error(f"{ranks.size} processes, expected 2: torchrun --nproc-per-node 2 benchmarks/distributed.py")
        for recipe in arguments.recipes:
            speeds = measure(recipe, arguments.shape, arguments.rounds, ranks, data)
            if not ranks.is_first:
                continue
            rows = [
                row(
                    recipe,
                    name,
                    arguments.shape,
                    "fp32",
                    1,
                    unit="tokens/s",
                    values=values,
                    ratios={ONE: ratio_quantiles(values, speeds[ONE])},
                )
                for name, values in speeds.items()
            ]
            write("distributed", rows, about, arguments.output)
            print(", ".join(f"{recipe} {one['candidate']}: {one['median']:,.0f} tokens/s" for one in rows), flush=True)


if __name__ == "__main__":
    main()
