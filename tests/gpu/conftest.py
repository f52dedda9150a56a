"""Every op on the device under test: a GPU, or in a rehearsal the CPU (see devices.py)."""

import pytest
from op_harness import threads


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in tests/ops."""
    with threads(1):
        yield
