"""Triton kernels on CPU tensors, run by Triton's interpreter underneath the ops' own autograd functions.

tests/conftest.py tells Triton to interpret: here it would be too late.
"""

import pytest
from op_harness import threads

from smartcs import kernels
from smartcs._extension import extension_status


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in tests/ops."""
    with threads(1):
        yield


@pytest.fixture
def interpreter():
    """Skips where kernels cannot be interpreted."""
    pytest.importorskip("triton", reason="Triton is not installed")
    available, reason = extension_status()
    if not available:
        pytest.skip(f"no schemas to implement: {reason}")
    if not kernels.interpreted():
        pytest.skip("TRITON_INTERPRET is not 1")


@pytest.fixture
def triton_op(request, interpreter):
    """Runs the op named in the module's OP on its Triton kernels, for tensors on the CPU."""
    from interpreted import on_triton  # only where Triton is

    with on_triton(request.module.OP):
        yield
