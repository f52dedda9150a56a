"""linear: y = x W^T + bias, the matrix product with its bias.

Both backends call PyTorch's product, which calls the platform's BLAS: there is nothing to fuse into it in float32 that
``bias_gelu`` and ``add_layer_norm`` do not already take over from the layer that follows.
"""

import torch.nn.functional as F
from torch import Tensor

from .checks import check_float, check_like


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Affine map of the last axis.

    Args:
        x: (..., C_in), any floating dtype.
        weight: (C_out, C_in), x's dtype and device.
        bias: (C_out,) or None.

    Returns:
        (..., C_out).

    Raises:
        ValueError: a shape or device does not match.
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
    """
    check_float("linear", "x", x)
    check_float("linear", "weight", weight)
    if x.dim() == 0 or weight.dim() != 2:
        raise ValueError(
            f"linear: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, "
            "expected (..., C_in) and (C_out, C_in)"
        )
    check_like("linear", "weight", weight, (weight.shape[0], x.shape[-1]), x, "x")
    if bias is not None:
        check_like("linear", "bias", bias, (weight.shape[0],), x, "weight")
    return F.linear(x, weight, bias)
