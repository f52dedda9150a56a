"""smartcs: SMART fine-tuning of BERT on several tasks, with fused ops under a small model and trainer."""

from ._checkout import register_kernels
from ._extension import load_extension
from ._version import __version__

load_extension()
register_kernels()

from . import ops  # noqa: E402
from .ops.backend import backend, get_backend, set_backend  # noqa: E402

__all__ = ["__version__", "backend", "get_backend", "ops", "set_backend"]
