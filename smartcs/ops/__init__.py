"""The ops: one file each, with its formulas, its reference in plain PyTorch and its autograd function.

These functions are the only door to an implementation; ``smartcs.ops.backend`` decides which one runs.
"""

from .._extension import extension_status
from . import adamw as _adamw
from . import add_layer_norm as _add_layer_norm
from . import attention as _attention
from . import bias_gelu as _bias_gelu
from . import embedding as _embedding
from . import linear as _linear
from . import perturb as _perturb
from . import symmetric_kl as _symmetric_kl
from .adamw import AdamWSettings, AdamWTensors, adamw
from .add_layer_norm import add_layer_norm
from .attention import attention
from .autograd import input_gradients_only
from .bias_gelu import bias_gelu
from .embedding import embedding
from .linear import linear
from .perturb import perturb, perturb_noise
from .precision import activation_dtype
from .symmetric_kl import symmetric_kl

__all__ = [
    "AdamWSettings",
    "AdamWTensors",
    "activation_dtype",
    "adamw",
    "add_layer_norm",
    "attention",
    "bias_gelu",
    "embedding",
    "input_gradients_only",
    "linear",
    "perturb",
    "perturb_noise",
    "symmetric_kl",
]

if extension_status()[0]:
    for _module in (_adamw, _add_layer_norm, _attention, _bias_gelu, _embedding, _linear, _perturb, _symmetric_kl):
        _module.register_fakes()
