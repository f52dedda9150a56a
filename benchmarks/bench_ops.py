"""pytest-benchmark of every op: make bench, or pytest benchmarks --benchmark-only -k "attention and training".

Absolute times of one machine; benchmarks/ratio.py has the comparison that travels.
"""

from functools import lru_cache

import pytest
import torch
from workloads import CANDIDATES, MODES, Workload, workloads

from smartcs._extension import extension_status


@lru_cache(maxsize=1)
def verified(name: str) -> Workload:
    """The workload, once its results have been checked."""
    workload = workloads()[name]()
    workload.verify()
    return workload


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", workloads())
def test_op(benchmark, name, mode, candidate):
    available, reason = extension_status()
    if candidate == "fused" and not available:
        pytest.skip(f"needs the compiled extension: {reason}")
    workload = verified(name)
    if mode not in workload.modes:
        pytest.skip(f"{name} has no backward pass")
    benchmark.group = f"{name} {mode}"
    benchmark.extra_info |= {
        "bytes_moved": workload.bytes(mode),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instruction_set": torch.ops.smartcs.instruction_set() if available else None,
    }
    benchmark(workload.step(candidate, mode))
