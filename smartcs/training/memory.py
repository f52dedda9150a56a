"""How the process keeps the memory of one training step for the next."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep large blocks that are freed; returns whether it does (False with another libc).

    By default malloc hands a large block back to the system when it is freed, and the next step, which asks for
    the same sizes, pays for fresh zeroed pages: about 8 % of a step on one thread, most of it for the gradient
    of the word embeddings. The setting is the process's, so it is for commands, not for library code.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    never_trim, largest_on_heap = -1, 2**30
    return bool(mallopt(_M_MMAP_THRESHOLD, largest_on_heap)) and bool(mallopt(_M_TRIM_THRESHOLD, never_trim))
