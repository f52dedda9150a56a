"""Out of memory: one line that names the settings to lower, on the CPU and on a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from smartcs.model.files import first_line

# torch raises RuntimeError where a CPU tensor, or cuBLAS on a GPU, gets no memory.
_SIGNS = re.compile(
    r"DefaultCPUAllocator: (?:not enough memory|can't allocate memory)|out of memory|bad_alloc|STATUS_ALLOC_FAILED"
)


class OutOfMemory(RuntimeError):
    """There is not enough memory; the message says for what, and which settings need less."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, Python or the C++ library says that memory is missing."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and not isinstance(error, OutOfMemory) and bool(_SIGNS.search(str(error)))


@contextmanager
def telling_what_needs_less(what: Callable[[], str]) -> Iterator[None]:
    """Makes an `OutOfMemory` of an error within the block that says that memory is missing.

    Args:
        what: called then: what the memory was for and what to do, as "evaluating: lower --eval-batch-size (64)".
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # Not "from error": its traceback would keep the activations, and what is left to do needs memory.
        raise OutOfMemory(f"out of memory {what()} ({first_line(error)})") from None
