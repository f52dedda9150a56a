"""Triton kernels on CPU tensors, run by Triton's interpreter underneath the ops' own autograd functions.

tests/conftest.py tells Triton to interpret: here it would be too late.
"""

import warnings

import pytest

import smartcs
from smartcs import kernels
from smartcs._extension import extension_status


@pytest.fixture
def triton_op(request):
    """Runs the op named in the module's OP on its Triton kernels, for tensors on the CPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
    available, reason = extension_status()
    if not available:
        pytest.skip(f"no schemas to implement: {reason}")
    if not kernels.interpreted():
        pytest.skip("TRITON_INTERPRET is not 1")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*overrid.*")
        library = kernels.register(request.module.OP, "CPU")
    with smartcs.backend("fused"):
        yield
    library._destroy()
