"""The table of proofs of docs/gpu.md, from results/gpu-evidence.json and results/gpu-resources.json; needs no torch.

`make gpu-proofs` makes the former anew: what the tests of PATHS have compared (tests/evidence.py).
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from results_io import RESULTS

EVIDENCE, RESOURCES = "gpu-evidence.json", "gpu-resources.json"
CHIPS = ("sm_80", "sm_90", "sm_100")
STORED = ("float32", "bfloat16", "float16")
FLOATS = (*STORED, "float64")


class Op(NamedTuple):
    """What there should be of one pass of one op.

    dtypes: each has a row. A dtype is that of the compared result.
    file: the test file that compares, below tests/.
    kernels: what it launches, as gpu-resources.json calls them.
    operands: a result's dtype -> those of the operands that it is made of, where they are not its own.
    """

    name: str
    language: str
    direction: str
    dtypes: tuple[str, ...]
    file: str
    kernels: tuple[str, ...]
    operands: Mapping[str, tuple[str, ...]] = MappingProxyType({})


_SUMS = "rows._sum_partials_kernel"
_LAYER_NORM = ("layer_norm_row._backward_kernel", _SUMS)
_GELU = ("bias_gelu._backward_kernel", _SUMS)
_RUNS = ("row_sums._pieces_kernel", "row_sums._join_kernel")
_ATTENTION = ("attention._gradients_of_queries", "attention._gradients_of_keys")
_ROUNDED, _CUBLAS = "linear, bf16 mode", "Triton, cuBLAS"
OPS = (
    Op("attention", "Triton", "forward", FLOATS, "kernels/test_attention.py", ("attention._forward",)),
    Op("attention", "Triton", "backward", FLOATS, "kernels/test_attention.py", _ATTENTION),
    Op(
        "add_layer_norm", "Triton", "forward", FLOATS, "kernels/test_add_layer_norm.py",
        ("add_layer_norm._forward_kernel",),
    ),
    Op("add_layer_norm", "Triton", "backward", FLOATS, "kernels/test_add_layer_norm.py", _LAYER_NORM),
    Op("bias_gelu", "Triton", "forward", FLOATS, "kernels/test_bias_gelu.py", ("bias_gelu._forward_kernel",)),
    Op("bias_gelu", "Triton", "backward", FLOATS, "kernels/test_bias_gelu.py", _GELU),
    Op("embedding", "Triton", "forward", FLOATS, "kernels/test_embedding.py", ("embedding._forward_kernel",)),
    Op("embedding", "Triton", "backward", FLOATS, "kernels/test_embedding.py", (*_LAYER_NORM, *_RUNS)),
    Op(_ROUNDED, _CUBLAS, "forward", STORED[:2], "kernels/test_linear.py", ("bias_gelu._forward_kernel",)),
    Op(_ROUNDED, _CUBLAS, "backward", STORED[:2], "kernels/test_linear.py", _GELU),
    Op(
        "symmetric_kl", "CUDA C++", "forward", ("float32", "float64"), "cuda/test_symmetric_kl.py",
        ("symmetric_kl.categorical_forward_kernel", "symmetric_kl.bernoulli_forward_kernel"), {"float32": STORED},
    ),
    Op(
        "symmetric_kl", "CUDA C++", "backward", FLOATS, "cuda/test_symmetric_kl.py",
        ("symmetric_kl.categorical_backward_kernel", "symmetric_kl.bernoulli_backward_kernel"),
    ),
    Op("perturb", "CUDA C++", "forward", FLOATS, "cuda/test_perturb.py", ("perturb.perturb_step_kernel",)),
    Op("perturb_noise", "CUDA C++", "forward", FLOATS, "cuda/test_noise.py", ("perturb.perturb_noise_kernel",)),
    Op(
        "adamw", "CUDA C++", "forward", ("float32", "bfloat16", "float64"), "cuda/test_adamw.py",
        ("adamw.adamw_begin_kernel", "adamw.adamw_update_kernel"),
    ),
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
    "gpu/test_recorded_steps.py": "the same: replayed steps are those launched, and those of slices wait for nothing",
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
    heads += ["compiled instances", "mistakes refused, of all the op", "command"]
    lines = [f"| {' | '.join(heads)} |"]
    lines.append("|---" * 9 + "|")
    for op in OPS:
        tests = found.get(f"tests/{op.file}", {"held": {}, "mistakes": 0})
        for dtype in op.dtypes:
            held = tests["held"].get(op.direction, {}).get(dtype)
            if held is None:
                raise ValueError(f"{EVIDENCE} has no comparison of {op.name}, {op.direction}, {dtype}")
            cells = [f"`{op.name}`" if "," not in op.name else op.name, op.direction, dtype, op.language]
            cells += [f"{held['comparisons']:,}", f"{held['share']:.0%}", _compiled(rows, op, dtype)]
            cells += [f"{tests['mistakes']}", f"`pytest tests/{op.file}`"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _compiled(resources: dict[str, Any], op: Op, dtype: str) -> str:
    """How many instances of an op's kernels compile for all chips, and the most bytes that one of them spills.

    Raises:
        ValueError: one of the kernels has none.
    """
    figure, dtypes = resources["figures"].index("spills"), (*op.operands.get(dtype, (dtype,)), "any")
    rows = [r for r in resources["rows"] if r["kernel"] in op.kernels and r["dtype"] in dtypes]
    missing = sorted(set(op.kernels) - {row["kernel"] for row in rows})
    if missing:
        raise ValueError(f"{RESOURCES} has no {dtype} instance of {', '.join(missing)}")
    spills = max(row[chip][figure] for row in rows for chip in CHIPS)
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
