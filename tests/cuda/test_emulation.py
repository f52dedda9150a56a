"""The emulation itself: kernels with a known mistake, and what it says of them."""

import ctypes
import re

import pytest


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("right", "nothing"),
        ("missing_barrier", "race: read with no barrier after the write|read before it was written"),
        (
            "missing_second_barrier",
            "race: (written with no barrier after the read|read with no barrier after the write)",
        ),
        ("two_writers", "race: two threads write"),
        ("never_written", "read before it was written"),
        ("beyond_shared", "shared memory: index 64"),
        ("divergent_barrier", "divergence: thread .* waits at emulated_faults.cpp:.* for threads that do not come"),
        ("two_barriers", "divergence: thread"),
        ("divergent_shuffle", "divergence: thread"),
        ("left_early", "divergence: thread"),
        ("lane_outside_mask", "the mask leaves out the lane"),
        ("null_pointer", "thread .*: touches memory that is not its own"),
    ],
)
@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
def test_says_what_is_wrong(emulated, kernel, message, schedule):
    """In every order of threads, also in those where the result happens to be right."""
    code = emulated("emulated_faults").code
    code.set_schedule(schedule)
    for function in (code.right, getattr(code, kernel)):
        function.restype = ctypes.c_char_p
    found = (getattr(code, kernel)() or b"nothing").decode()
    assert re.search(message, found), found
    assert code.right() is None, "a failed launch leaves nothing behind"
