"""linear: y = x W^T + bias, the matrix product with its bias.

Backward: dx = dy W,  dW = dy^T x,  dbias = sum over rows of dy.

The reference is PyTorch's product. Fused float32 products go to the library that is fastest on this CPU
(csrc/cpu/linear.cpp); only the gradients that are asked for are computed. Half-precision operands on a CPU are widened
to float32 and the result is rounded once: that is more exact, and PyTorch's own half-precision product ends the process
with an illegal instruction on CPUs whose matrix unit is announced but not set up.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import once_differentiable, parameter
from .backend import use_fused
from .checks import check_float, check_like
from .random import compute_dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Affine map of the last axis.

    Args:
        x: (..., C_in), any floating dtype.
        weight: (C_out, C_in), x's dtype and device.
        bias: (C_out,) or None.

    Returns:
        (..., C_out), dtype of x.

    Raises:
        ValueError: a shape or device does not match.
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
    """
    check_float("linear", "x", x)
    check_float("linear", "weight", weight)
    if x.dim() == 0 or x.shape[-1] == 0 or weight.dim() != 2:
        raise ValueError(
            f"linear: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, "
            "expected (..., C_in) and (C_out, C_in) with C_in > 0"
        )
    check_like("linear", "weight", weight, (weight.shape[0], x.shape[-1]), x, "x")
    if bias is not None:
        check_like("linear", "bias", bias, (weight.shape[0],), x, "weight")
    weight, bias = parameter(weight), parameter(bias)
    dtype = compute_dtype(x) if x.device.type == "cpu" else x.dtype
    wide_bias = None if bias is None else bias.to(dtype)
    implementation = _Linear.apply if use_fused("linear", x) else linear_reference
    y = implementation(x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype), wide_bias)
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The formula in plain PyTorch."""
    return F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        need_x, need_weight, _ = ctx.needs_input_grad
        # x is needed for dW alone: where the weight is a constant, a layer keeps no activation.
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None)
        return torch.ops.smartcs.linear_fwd(x, weight, None if bias is None else bias.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        grads = torch.ops.smartcs.linear_bwd(grad_y.contiguous(), x, weight, *needed)
        return tuple(grad if need else None for grad, need in zip(grads, needed, strict=True))


def register_fakes() -> None:
    """Shapes and dtypes of the raw ops' results, for torch.compile and opcheck."""

    @torch.library.register_fake("smartcs::linear_fwd")
    def _(x, weight, bias):  # type: ignore[no-untyped-def]
        return x.new_empty((x.shape[0], weight.shape[0]))

    @torch.library.register_fake("smartcs::linear_bwd")
    def _(grad_y, x, weight, need_x, need_weight, need_bias):  # type: ignore[no-untyped-def]
        none = grad_y.new_empty(0)
        return (
            grad_y.new_empty((grad_y.shape[0], weight.shape[1])) if need_x else none,
            grad_y.new_empty((grad_y.shape[1], x.shape[1])) if need_weight else none.clone(),
            grad_y.new_empty(grad_y.shape[1]) if need_bias else none.clone(),
        )
