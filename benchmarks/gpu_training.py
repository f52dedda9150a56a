"""Training steps on the device, as `smartcs.train` takes them: eager, and captured as CUDA graphs.

    python benchmarks/gpu_training.py --output rows.json

Part of gpu_check.py. A cycle is a batch of 6 sentences with SMART and the Bregman term, 40 pairs and 4 pairs, on
BERT-base's and MiniLM's shapes with random weights and the embedded sentences. First the losses of some steps must be
those of the reference.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from gpu_report import Rows, add_arguments
from gpu_stages import SKIPPED
from gpu_timing import clock_of, prepare, rows_of, time_in_turns
from results_io import row
from timing import Step

TASKS = 3
ROUNDS, SHARE = 9, 5e-3
STEPS_COMPARED = 2 * TASKS
TOLERANCE = 1e-3  # relative, of a loss: as tests/training/test_trainer.py has it
WAYS = ("eager", "captured")


class NotThere(Exception):
    """The trainer cannot do this in this version."""


def make_trainer(shape: str, backend: str, device: str, way: str):  # type: ignore[no-untyped-def]
    """A trainer of the recipe "smart-bregman" on `device`; "captured" replays CUDA graphs where it can.

    The only place that knows how a trainer is told of device and graphs.
    """
    from setting import encoder, sentences

    import smartcs
    from smartcs.training.config import TrainConfig
    from smartcs.training.trainer import Trainer

    if device != "cpu":
        raise NotThere("this version trains on the CPU alone")
    if way == "captured":
        raise NotThere("CUDA graphs need a GPU")
    values = {"recipe": "smart-bregman", "data": "none", "model": "none", "cycles": 10**6}
    torch.manual_seed(0)
    with smartcs.backend(backend):  # type: ignore[arg-type]
        return Trainer(TrainConfig.from_dict(values), smartcs.MultitaskBert(encoder(shape)), sentences())


def cycle(shape: str, backend: str, device: str, way: str) -> Step:
    """Takes the next batch of every task."""
    import smartcs

    steps = make_trainer(shape, backend, device, way).epoch()

    def run() -> list[float]:
        with smartcs.backend(backend):  # type: ignore[arg-type]
            return [next(steps).loss for _ in range(TASKS)]

    return run


def compare(shape: str, device: str, way: str) -> float:
    """The largest relative difference of a loss between the fused ops on the device and the reference on the CPU."""
    runs = [cycle(shape, "fused", device, way), cycle(shape, "reference", "cpu", "eager")]
    worst = 0.0
    for _ in range(STEPS_COMPARED // TASKS):
        for ours, expected in zip(*(run() for run in runs), strict=True):  # type: ignore[call-overload]
            worst = max(worst, abs(ours / expected - 1))
    return worst


def training(device: str, rows: Rows, seconds: float) -> list[str]:
    """Compares and times every way; returns what differs from the reference."""
    shapes, deadline = ("minilm", "base") if device == "cuda" else ("tiny",), time.monotonic() + seconds
    clock, wrong = clock_of(device), []

    def left_out(shape: str, candidate: str, reason: str) -> None:
        about = {"status": "not measured", "reason": reason}
        rows.add([row("training cycle", candidate, shape, "fp32", torch.get_num_threads(), **about)])

    for shape in shapes:
        makers: dict[str, Callable[[], Step]] = {}
        for way in WAYS:
            if time.monotonic() > deadline:
                left_out(shape, way, "the time was up")
                continue
            try:
                difference = compare(shape, device, way)
            except NotThere as reason:
                left_out(shape, way, str(reason))
                continue
            print(f"{shape}, {way}: losses differ from the reference's by at most {difference:.1e}", flush=True)
            if not difference <= TOLERANCE:
                wrong.append(f"{shape}, {way}: losses differ by {difference:.1e}, allowed is {TOLERANCE:.0e}")
            makers[way] = lambda shape=shape, way=way: cycle(shape, "fused", device, way)
        if makers:
            makers["reference"] = lambda shape=shape: cycle(shape, "reference", device, "eager")
        steps = prepare(makers, lambda name, reason, shape=shape: left_out(shape, name, reason))
        times = time_in_turns(steps, clock, ROUNDS if device == "cuda" else 2, SHARE)
        rows.add(rows_of(("training cycle", shape, "fp32"), "", times, "eager"))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, seconds=40)
    options = parser.parse_args()
    if find_spec("tyro") is None:
        print("the trainer's configuration needs tyro, which is not installed: pip install tyro")
        sys.exit(SKIPPED)
    rows = Rows(options.output, rehearsal=options.device == "cpu")
    wrong = training(options.device, rows, options.seconds)
    if wrong:
        sys.exit("not the reference's losses:\n" + "\n".join(wrong))
    if all(one["status"] != "measured" for one in rows.rows):
        print(f"nothing to measure: {rows.rows[0]['reason']}")
        sys.exit(SKIPPED)


if __name__ == "__main__":
    main()
