"""Peak memory of a training cycle, each candidate in a process of its own: `cycle.py --memory`."""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from results_io import Row, row

CYCLES = 2
_MEGABYTE = 2**20


def measure_all(arguments: argparse.Namespace, names: list[str]) -> list[Row]:
    """A row per candidate: the most memory its process ever held, torch itself included, in bytes."""
    found: dict[str, float] = {}
    rows = []
    for name in names:
        command = [sys.executable, __file__, name, arguments.shape, arguments.recipe, arguments.data]
        # Its stderr is ours.
        child = subprocess.run([*command, str(arguments.threads)], stdout=subprocess.PIPE, text=True)
        precision = "bf16" if name.endswith("bf16") else "fp32"
        key = (arguments.recipe, name, arguments.shape, precision, arguments.threads)
        if child.returncode:
            rows.append(row(*key, status="not measured", reason=f"its process ended with {child.returncode}"))
            continue
        found[name] = float(child.stdout.split()[-1])
        rows.append(row(*key, unit="B", values=[found[name]]))
        print(f"{name:22}{found[name] / _MEGABYTE:8.0f} MB", flush=True)
    for one in rows:
        value = found.get(one["candidate"])
        if value is not None:
            others = {name: value / other for name, other in found.items() if name != one["candidate"]}
            one["ratios"] = {name: [float(f"{ratio:.4g}")] * 3 for name, ratio in others.items()}
    return rows


def child(name: str, shape: str, recipe: str, folder: str, threads: str) -> None:
    """Takes the cycles and prints the peak."""
    torch.set_num_threads(int(threads))
    from cycle import OWN, make
    from setting import sentences

    from smartcs.training.memory import keep_freed_memory

    if name in OWN:  # as `smartcs.train` does; it costs memory
        keep_freed_memory()

    candidate = make(name, shape, recipe, sentences(folder))
    for _ in range(CYCLES):
        candidate.prepare()
        candidate()
    print(peak_memory())


def peak_memory() -> int:
    """Bytes: the most this process held. Linux's own count: getrusage's begins with that of the parent."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    child(*sys.argv[1:])
