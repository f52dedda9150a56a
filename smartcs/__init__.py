"""smartcs: SMART fine-tuning of BERT on several tasks, with fused ops under a small model and trainer."""

from ._interrupt import end_on_interrupt

# Before torch, whose import takes seconds.
end_on_interrupt()

from ._checkout import register_kernels  # noqa: E402
from ._extension import load_extension  # noqa: E402
from ._version import __version__  # noqa: E402

# Before anything that registers fake kernels for the compiled ops.
load_extension()
register_kernels()

from . import ops  # noqa: E402
from .data.packing import PackedBatch  # noqa: E402
from .model.bert import BertConfig, BertModel, BertOutput  # noqa: E402
from .model.multitask import HeadConfig, MultitaskBert  # noqa: E402
from .model.similarity import cosine_similarity  # noqa: E402
from .ops.backend import backend, get_backend, set_backend  # noqa: E402
from .ops.precision import get_precision, precision, set_precision  # noqa: E402
from .ops.random import DropoutKey  # noqa: E402
from .smart import BregmanAnchor, SharedDropout, SmartRegularizer  # noqa: E402
from .training.optim import AdamW  # noqa: E402

__all__ = [
    "AdamW",
    "BertConfig",
    "BertModel",
    "BertOutput",
    "BregmanAnchor",
    "DropoutKey",
    "HeadConfig",
    "MultitaskBert",
    "PackedBatch",
    "SharedDropout",
    "SmartRegularizer",
    "__version__",
    "backend",
    "cosine_similarity",
    "get_backend",
    "get_precision",
    "ops",
    "precision",
    "set_backend",
    "set_precision",
]
