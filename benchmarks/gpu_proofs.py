"""The table of proofs of docs/gpu.md, from results/gpu-evidence.json and results/gpu-resources.json; needs no torch.

`make gpu-proofs` makes the former anew: what the tests of PATHS have compared (tests/evidence.py).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from results_io import RESULTS

EVIDENCE, RESOURCES = "gpu-evidence.json", "gpu-resources.json"
CHIPS = ("sm_80", "sm_90", "sm_100")
BOTH, FORWARD = ("forward", "backward"), ("forward",)
STORED = ("float32", "bfloat16", "float16")


class Op(NamedTuple):
    """What there should be of one op.

    passes, dtypes: every combination has a row. A dtype is that of the compared result.
    file: the test file that compares, below tests/.
    kernels: files with kernels that it launches.
    """

    name: str
    language: str
    passes: tuple[str, ...]
    dtypes: tuple[str, ...]
    file: str
    kernels: tuple[str, ...]


OPS = (
    Op("attention", "Triton", BOTH, STORED, "kernels/test_attention.py", ("attention",)),
    Op(
        "add_layer_norm", "Triton", BOTH, STORED, "kernels/test_add_layer_norm.py",
        ("add_layer_norm", "layer_norm_row", "rows"),
    ),
    Op("bias_gelu", "Triton", BOTH, STORED, "kernels/test_bias_gelu.py", ("bias_gelu", "rows")),
    Op(
        "embedding", "Triton", BOTH, STORED, "kernels/test_embedding.py",
        ("embedding", "layer_norm_row", "rows", "row_sums"),
    ),
    Op("linear, bf16 mode", "Triton, cuBLAS", FORWARD, STORED[:2], "kernels/test_linear.py", ("bias_gelu", "rows")),
    Op(
        "linear, bf16 mode", "Triton, cuBLAS", ("backward",), STORED[:1], "kernels/test_linear.py",
        ("bias_gelu", "rows"),
    ),
    Op("symmetric_kl", "CUDA C++", FORWARD, ("float32", "float64"), "cuda/test_symmetric_kl.py", ("symmetric_kl",)),
    Op("symmetric_kl", "CUDA C++", ("backward",), (*STORED, "float64"), "cuda/test_symmetric_kl.py", ("symmetric_kl",)),
    Op("perturb", "CUDA C++", FORWARD, (*STORED, "float64"), "cuda/test_perturb.py", ("perturb",)),
    Op("perturb_noise", "CUDA C++", FORWARD, (*STORED, "float64"), "cuda/test_noise.py", ("perturb",)),
    Op("adamw", "CUDA C++", FORWARD, ("float32", "float64"), "cuda/test_adamw.py", ("adamw",)),
)  # fmt: skip
OTHERS = {
    "training/test_device_step.py": "the whole step: replayed equals launched to the bit, nothing waits, filled-up "
    "batches train as bare ones (operators recorded on a CPU)",
    "training/test_device.py": "which device, and when steps are recorded",
    "ops/test_counter_offset.py": "random numbers counted from a place on the device, reference and C++",
    "kernels/test_counter_offset.py": "the same in Triton",
    "kernels/test_philox.py": "the generator in Triton, bit for bit",
    "cuda/test_emulation.py": "the emulation notices races, lost barriers and foreign memory",
    "cuda/test_compiles.py": "nvcc takes every C++ kernel, warnings are errors",
    "kernels/test_resources.py": "Triton kernels compiled for three chips: every launch is recorded, figures "
    "and spills are the recorded ones",
    "gpu/test_ops.py": "what `make gpu-check` runs on a device, rehearsed: every op",
    "gpu/test_adamw.py": "the same: AdamW",
    "gpu/test_random.py": "the same: masks and noise are the CPU's",
    "gpu/test_training.py": "the same: steps against the float64 reference",
    "gpu/test_recorded_steps.py": "the same: replayed steps are those launched",
}
"""Test files that are about more than one op -> what they show."""
PATHS = (
    "tests/kernels",
    "tests/cuda",
    "tests/gpu",
    *(f"tests/{f}" for f in OTHERS if f.startswith(("training", "ops"))),
)


def evidence(folder: Path = RESULTS) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / EVIDENCE).read_text())
    return found


def ops_table(folder: Path = RESULTS) -> str:
    """A row per op, pass and dtype.

    Raises:
        ValueError: there is no evidence for one of them.
    """
    found, rows = evidence(folder), json.loads((folder / RESOURCES).read_text())
    heads = ["op", "pass", "dtype", "written in", "comparisons", "largest share of the allowance"]
    heads += ["compiled instances", "mistakes refused", "command"]
    lines = [f"| {' | '.join(heads)} |"]
    lines.append("|---" * 9 + "|")
    for op in OPS:
        tests = found.get(f"tests/{op.file}", {"held": {}, "mutants": 0})
        for direction in op.passes:
            for dtype in op.dtypes:
                held = tests["held"].get(direction, {}).get(dtype)
                if held is None:
                    raise ValueError(f"{EVIDENCE} has no comparison of {op.name}, {direction}, {dtype}")
                cells = [f"`{op.name}`" if "," not in op.name else op.name, direction, dtype, op.language]
                cells += [f"{held['comparisons']:,}", f"{held['share']:.0%}", _compiled(rows, op.kernels, dtype)]
                cells += [f"{tests['mutants']}", f"`pytest tests/{op.file}`"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _compiled(resources: dict[str, Any], kernels: Sequence[str], dtype: str) -> str:
    """How many instances of these kernels compile for all chips, and the most bytes that one of them spills."""
    figure = resources["figures"].index("spills")
    rows = [r for r in resources["rows"] if r["kernel"].split(".")[0] in kernels and r["dtype"] in (dtype, "any")]
    spills = max((row[chip][figure] for row in rows for chip in CHIPS), default=0)
    return f"{len(rows)}, {f'up to {spills} bytes spilled' if spills else 'no spills'}"


def others_table(folder: Path = RESULTS) -> str:
    """A row per test file that is not about one op.

    Raises:
        ValueError: no test of it has passed.
    """
    found = evidence(folder)
    lines = ["| what | tests passed | command |", "|---|---|---|"]
    for file, what in OTHERS.items():
        if f"tests/{file}" not in found:
            raise ValueError(f"{EVIDENCE} has no test of {file}")
        lines.append(f"| {what} | {found[f'tests/{file}']['passed']} | `pytest tests/{file}` |")
    return "\n".join(lines)


TABLES = {"gpu-proofs": ops_table, "gpu-proofs-others": others_table}

if __name__ == "__main__":
    sys.stdout.write(" ".join(PATHS))
