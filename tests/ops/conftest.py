"""Fixtures of the op tests; without the compiled extension everything that needs it is skipped, with the reason."""

import pytest
from op_harness import threads

from smartcs._extension import extension_status
from smartcs.ops.backend import backend


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors are small: several threads would mostly wait for each other, above all on a busy machine."""
    with threads(1):
        yield


@pytest.fixture
def fused():
    """The fused backend, where the compiled extension is there."""
    available, reason = extension_status()
    if not available:
        pytest.skip(f"needs the compiled extension: {reason}")
    with backend("fused"):
        yield


@pytest.fixture
def reference():
    """The reference backend."""
    with backend("reference"):
        yield


@pytest.fixture(params=["fused", "reference"])
def either(request):
    """Each backend in turn, the fused one where it is there."""
    request.getfixturevalue(request.param)
    return request.param
