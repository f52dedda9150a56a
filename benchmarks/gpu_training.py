"""Training steps on the device, as `smartcs.train` takes them: eager, and recorded as CUDA graphs.

    python benchmarks/gpu_training.py --output rows.json

Part of gpu_check.py. A cycle is a batch of 6 sentences with SMART and the Bregman term, 40 pairs and 4 pairs, on
BERT-base's and MiniLM's shapes with random weights and the embedded sentences. First, on the smallest of the shapes,
the losses of recorded steps must be the eager ones' to the bit, and these the reference's within rounding.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from gpu_report import Rows, add_arguments
from gpu_stages import SKIPPED
from gpu_timing import prepare, rows_of, time_in_turns
from results_io import row
from timing import Step, seconds

TASKS = 3
ROUNDS, SHARE = 9, 5e-3
CYCLES_RECORDED = 8  # enough for every task to be replayed
CYCLES_OF_REFERENCE = 2
TOLERANCE = 1e-3  # relative, of a loss: as tests/training/test_trainer.py has it
WAYS = {"eager": ("fused", False), "recorded": ("fused", True), "reference": ("reference", False)}


class NotThere(Exception):
    """This device cannot do it."""


def make_trainer(shape: str, device: str, way: str) -> Any:
    """A trainer of the recipe "smart-bregman", with the weights, batches and masks that all of them have."""
    from setting import encoder, sentences

    import smartcs
    from smartcs.training.config import TrainConfig
    from smartcs.training.device_step import CudaRecorder
    from smartcs.training.trainer import Trainer

    backend, recorded = WAYS[way]
    if recorded and device == "cpu":
        raise NotThere("CUDA graphs need a GPU")
    values = {"recipe": "smart-bregman", "data": "none", "model": "none", "cycles": 10**6}
    torch.manual_seed(0)
    with smartcs.backend(backend):  # type: ignore[arg-type]
        model = smartcs.MultitaskBert(encoder(shape)).to(device)
        recorder = CudaRecorder(next(model.parameters()).device) if recorded else None
        return Trainer(TrainConfig.from_dict(values), model, sentences(), recorder)


def cycle(shape: str, device: str, way: str) -> Callable[[], list[float]]:
    """Takes the next batch of every task, and returns the terms of their losses."""
    import smartcs

    trainer = make_trainer(shape, device, way)
    steps = trainer.epoch()

    def run() -> list[float]:
        with smartcs.backend(WAYS[way][0]):  # type: ignore[arg-type]
            taken = [next(steps) for _ in range(TASKS)]
        run.replayed = trainer.device_step.replayed if trainer.device_step else 0  # type: ignore[attr-defined]
        terms = [term for step in taken for term in (step.loss, step.smart, step.bregman)]
        return [term for term in terms if term is not None]

    return run


def losses(shape: str, device: str, way: str, cycles: int) -> list[float]:
    run = cycle(shape, device, way)
    found = [loss for _ in range(cycles) for loss in run()]
    print(f"{shape}, {way}: {cycles} cycles, {run.replayed} steps replayed", flush=True)  # type: ignore[attr-defined]
    if way == "recorded" and not run.replayed:  # type: ignore[attr-defined]
        raise AssertionError("no step was replayed")
    return found


def compare(shape: str, device: str) -> list[str]:
    """What differs that should not."""
    wrong = []
    eager = losses(shape, device, "eager", CYCLES_RECORDED)
    if device == "cuda":
        recorded = losses(shape, device, "recorded", CYCLES_RECORDED)
        if recorded != eager:
            first = next(i for i, (a, b) in enumerate(zip(eager, recorded, strict=True)) if a != b)
            wrong.append(f"term {first + 1}: recorded gives {recorded[first]:.9g}, eager {eager[first]:.9g}")
    reference = losses(shape, device, "reference", CYCLES_OF_REFERENCE)
    worst = max(abs(ours / theirs - 1) for ours, theirs in zip(eager, reference, strict=False))
    print(f"{shape}: losses differ from the reference's by at most {worst:.1e}", flush=True)
    if not worst <= TOLERANCE:
        wrong.append(f"losses differ from the reference's by {worst:.1e}, allowed is {TOLERANCE:.0e}")
    return wrong


def measure(shape: str, device: str, rows: Rows) -> None:
    """By the wall clock: a step waits for its loss."""

    def left_out(way: str, reason: str) -> None:
        about = {"status": "not measured", "reason": reason}
        rows.add([row("training cycle", way, shape, "fp32", torch.get_num_threads(), **about)])

    def make(way: str) -> Step:
        run = cycle(shape, device, way)
        for _ in range(CYCLES_RECORDED if WAYS[way][1] else 1):
            run()
        return run

    steps = prepare({way: lambda way=way: make(way) for way in WAYS}, left_out)
    times = time_in_turns(steps, seconds, ROUNDS if device == "cuda" else 2, SHARE)
    rows.add(rows_of(("training cycle", shape, "fp32"), "", times, "eager"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, seconds=40)
    options = parser.parse_args()
    if find_spec("tyro") is None:
        print("the trainer's configuration needs tyro, which is not installed: pip install tyro")
        sys.exit(SKIPPED)
    shapes, deadline = ("minilm", "base") if options.device == "cuda" else ("tiny",), time.monotonic() + options.seconds
    rows = Rows(options.output, rehearsal=options.device == "cpu")
    wrong = compare(shapes[0], options.device)
    for shape in shapes:
        if time.monotonic() < deadline:
            measure(shape, options.device, rows)
        else:
            print(f"{shape}: not measured, the time was up", flush=True)
    if wrong:
        sys.exit("not the losses that they should be:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
