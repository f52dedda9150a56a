"""The device under test, and what makes an op run its kernel there.

$SMARTCS_TEST_DEVICE is "cuda", or "cpu" for a rehearsal: the same tests on fewer cases, Triton's kernels interpreted,
the C++ kernels of the CPU in place of CUDA's. tests/conftest.py settles it before Triton is imported.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch

import smartcs
from smartcs import kernels
from smartcs._extension import extension_status
from smartcs.ops import backend

DEVICE = os.environ["SMARTCS_TEST_DEVICE"]
REHEARSAL = DEVICE == "cpu"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def dtypes_of(op: str) -> tuple[torch.dtype, ...]:
    """What the op is held to the error budget in on this device."""
    if op == "linear":  # products by cuBLAS; on a CPU, by another library
        return FLOATS[:2]
    if op in kernels.OPS:
        return FLOATS
    return (torch.float64, *FLOATS[: 2 if REHEARSAL else 3])


def missing(op: str) -> str | None:
    """Why the op has no kernel on the device under test, or None."""
    available, reason = extension_status()
    if not available:
        return reason
    if not REHEARSAL:
        return backend.no_gpu_kernel(op)
    if op not in kernels.OPS:
        return None
    return None if kernels.interpreted() else "TRITON_INTERPRET is not 1"


@contextmanager
def fused(*ops: str) -> Iterator[None]:
    """Within it the ops run their kernels for tensors of the device, float64 included; without one, skips the test."""
    for op in ops:
        reason = missing(op)
        if reason is not None:
            pytest.skip(f"no kernel of {op} on {DEVICE}: {reason}")
    with ExitStack() as stack:
        triton = [op for op in ops if op in kernels.OPS]
        if triton:
            from interpreted import on_triton, poisoned  # only where Triton is

            stack.enter_context(on_triton(*triton) if REHEARSAL else poisoned())
        if REHEARSAL and "linear" in ops:
            # Fused in bf16 mode, whatever this CPU multiplies.
            torch.ops.smartcs.set_bf16_products("portable")
            stack.callback(torch.ops.smartcs.set_bf16_products, "auto")
        stack.enter_context(patch.object(backend, "GPU_DTYPES", (*FLOATS, torch.float64)))
        stack.enter_context(smartcs.backend("fused"))
        yield
