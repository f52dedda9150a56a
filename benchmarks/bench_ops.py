"""pytest-benchmark of every op: make bench, or pytest benchmarks --benchmark-only -k "attention and training".

Absolute times of one machine; benchmarks/ratio.py has the comparison that travels, and keeps its figures.
"""

from functools import lru_cache

import pytest
import torch
from results_io import bf16_products
from workload import CANDIDATES, MODES, PRECISIONS, torch_bf16_failure
from workloads import Timed, workloads

from smartcs._extension import extension_status


@lru_cache(maxsize=1)
def verified(name: str, precision: str) -> Timed:
    """The workload, once its results have been checked."""
    workload = workloads()[name].make()
    workload.verify(precision)
    return workload


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", workloads())
def test_op(benchmark, name, precision, mode, candidate):
    available, reason = extension_status()
    if candidate == "fused" and not available:
        pytest.skip(f"needs the compiled extension: {reason}")
    entry = workloads()[name]
    if mode not in entry.modes or precision not in entry.precisions:
        pytest.skip(f"{name} is not timed in mode {mode} in {precision}")
    if precision == "bf16" and bf16_products().startswith("none"):
        pytest.skip(f"no bf16 products: {bf16_products()}")
    if precision == "bf16" and candidate == "torch" and torch_bf16_failure():
        pytest.skip(torch_bf16_failure())
    workload = verified(name, precision)
    benchmark.group = f"{name} {mode} {precision}"
    benchmark.extra_info |= {
        "bytes_moved": workload.bytes(mode, precision),
        "operations": workload.operations(mode),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instruction_set": torch.ops.smartcs.instruction_set() if available else None,
    }
    benchmark(workload.step(candidate, mode, precision))
