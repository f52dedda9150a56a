"""Modelled time of an optimizer step on a GPU: no GPU took part.

    python benchmarks/gpu_model.py           writes benchmarks/results/gpu-model.json
    python benchmarks/gpu_model.py --check   fails where it is not what the model says

The operators of a step are recorded (gpu_record.py), each is taken for the kernels it launches (gpu_kernels.py), and a
kernel takes the longest of its bytes at the card's bandwidth, its operations at the card's rate, and a floor. Without
CUDA graphs a step also takes its launches' time on the host, if that is longer: the share of launch latency is the part
of the step in which the GPU waits for it. `tables.py` makes docs/gpu.md's tables of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gpu_eager import replaced
from gpu_kernels import Launch, launches
from gpu_record import LENGTHS, SHAPES, Call, fake, filled_lengths, step_calls
from results_io import RESULTS

PATH = RESULTS / "gpu-model.json"
PRECISIONS, RECIPES = ("fp32", "bf16"), ("baseline", "smart-bregman")
FLOOR = 2e-6  # seconds, assumed: what a kernel takes that has nothing to do
LAUNCH = (3, 5, 10)  # microseconds of the host per launch, assumed
_TORCH = {"aten::mm": "product, torch", "aten::addmm": "product, torch", "aten::add": "add, torch"}


@dataclass(frozen=True)
class Card:
    """Bytes and operations per second: of an H100 as measured on one but for fp32, of the other the vendor's."""

    name: str
    bandwidth: float
    bf16: float
    fp32: float

    def seconds(self, launch: Launch) -> float:
        rate = self.bf16 if launch.rate == "bf16" else self.fp32
        return max(launch.bytes / self.bandwidth, launch.operations / rate)


CARDS = (Card("H100", 3.0e12, 800e12, 60e12), Card("RTX 4090", 1.0e12, 165e12, 80e12))


def device_seconds(card: Card, kernels: Iterable[Launch]) -> float:
    """One kernel after the other, as a CUDA graph runs them."""
    return sum(max(FLOOR, card.seconds(kernel)) for kernel in kernels)


def launch_share(device: float, count: int, microseconds: float) -> float:
    """The part of a step without graphs in which the GPU waits for the host."""
    return 1 - device / max(device, count * microseconds * 1e-6)


def totals(kernels: Sequence[Launch]) -> dict[str, Any]:
    """Numbers of a step, or of the kernels of one op."""
    return {
        "launches": len(kernels),
        "bytes": sum(kernel.bytes for kernel in kernels),
        "operations": {
            rate: sum(kernel.operations for kernel in kernels if kernel.rate == rate) for rate in ("fp32", "bf16")
        },
        "microseconds": {card.name: round(1e6 * device_seconds(card, kernels), 1) for card in CARDS},
    }


def step(kernels: Sequence[Launch]) -> dict[str, Any]:
    """The same, and the time without the floor and the share of launch latency."""
    found = totals(kernels)
    found["roofline_microseconds"] = {
        card.name: round(1e6 * sum(card.seconds(kernel) for kernel in kernels), 1) for card in CARDS
    }
    found["launch_share"] = {
        card.name: {
            str(each): round(launch_share(device_seconds(card, kernels), len(kernels), each), 3) for each in LAUNCH
        }
        for card in CARDS
    }
    return found


def by_op(calls: Sequence[Call], task: str) -> dict[str, dict[str, Any]]:
    """The kernels of every op, with those of the eager calls it replaces; torch's small ones together."""
    ours: dict[str, list[Launch]] = {}
    theirs: dict[str, list[Launch]] = {}
    known: dict[str, list[Launch]] = {}
    filled = filled_lengths(task)
    with fake():
        for call in calls:
            op = call.name.removeprefix("smartcs::") if call.name.startswith("smartcs") else None
            op = op or _TORCH.get(call.name, "others, torch")
            ours.setdefault(op, []).extend(launches(call, filled))
            key = repr((call.name, call.arguments))
            if key not in known:
                known[key] = replaced(call, LENGTHS[task])
            theirs.setdefault(op, []).extend(known[key])
    return {op: totals(kernels) | _eager(theirs[op]) for op, kernels in sorted(ours.items()) if kernels}


def _eager(kernels: Sequence[Launch]) -> dict[str, Any]:
    if not kernels:
        return {}
    return {"eager": {"launches": len(kernels), "bytes": sum(kernel.bytes for kernel in kernels)}}


def model(shapes: Iterable[str] = tuple(SHAPES)) -> dict[str, Any]:
    """All of it, for JSON. The kernels are those of the step with SMART."""
    steps, kernels = [], []
    for shape in shapes:
        for precision in PRECISIONS:
            for recipe in RECIPES:
                for task in LENGTHS:
                    calls, filled = step_calls(shape, recipe, precision, task), filled_lengths(task)
                    names = {"shape": shape, "precision": precision, "recipe": recipe, "task": task}
                    found = [launch for call in calls for launch in launches(call, filled)]
                    steps.append(names | {"tokens": sum(LENGTHS[task]), "filled_to": sum(filled)} | step(found))
                    if recipe == "smart-bregman" and task == "sst":
                        kernels += [names | {"op": op} | numbers for op, numbers in by_op(calls, task).items()]
    return {
        "status": "modelled",
        "torch": torch_version(),
        "cards": [asdict(card) for card in CARDS],
        "floor_microseconds": FLOOR * 1e6,
        "launch_microseconds": list(LAUNCH),
        "steps": steps,
        "kernels": kernels,
    }


def torch_version() -> str:
    """What the operators depend on: torch's minor version."""
    return ".".join(torch.__version__.split(".")[:2])


def text(found: dict[str, Any]) -> str:
    """The file: a line per row."""
    lines = []
    for name, value in found.items():
        rows = value if name in ("cards", "steps", "kernels") else None
        body = json.dumps(value) if rows is None else "[\n" + ",\n".join(f"  {json.dumps(r)}" for r in rows) + "\n ]"
        lines.append(f' "{name}": {body}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the file is out of date")
    made = text(model()) if parser.parse_args().check else None
    if made is None:
        PATH.write_text(text(model()))
    elif not PATH.is_file() or PATH.read_text() != made:
        sys.exit(f"{PATH.name} is not what the model says; run python benchmarks/gpu_model.py")


if __name__ == "__main__":
    main()
