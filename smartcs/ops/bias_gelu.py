"""bias_gelu: bias + exact GELU.

    y = z * Phi(z),  z = x + bias,  Phi(z) = (1 + erf(z / sqrt 2)) / 2

Backward: dx = dy * (Phi(z) + z * phi(z)) with phi(z) = exp(-z^2 / 2) / sqrt(2 pi); dbias = sum over rows of dx.

Source: Hendrycks and Gimpel 2016; BERT uses the exact form, not the tanh approximation.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .autograd import once_differentiable, parameter
from .backend import use_fused
from .checks import check_float, check_like
from .random import compute_dtype


def bias_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU of ``x + bias``.

    Args:
        x: (..., C), float32, float64 or bfloat16 (any floating dtype on the reference).
        bias: (C,) with x's dtype and device, or None.

    Returns:
        Shape and dtype of x.

    Raises:
        ValueError: bias does not match x's last axis or device.
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
    """
    check_float("bias_gelu", "x", x)
    if x.dim() == 0:
        raise ValueError("bias_gelu: x is a scalar, expected shape (..., C)")
    if bias is not None:
        check_like("bias_gelu", "bias", bias, (x.shape[-1],), x, "x")
    bias = parameter(bias)
    if not use_fused("bias_gelu", x):
        return bias_gelu_reference(x, bias)
    return _BiasGelu.apply(x.flatten(end_dim=-2) if x.dim() > 1 else x.unsqueeze(0), bias).reshape(x.shape)


def bias_gelu_reference(x: Tensor, bias: Tensor | None) -> Tensor:
    """The formula in plain PyTorch."""
    z = x.to(compute_dtype(x))
    if bias is not None:
        z = z + bias.to(z.dtype)
    return (0.5 * z * (1.0 + torch.erf(z * (1.0 / math.sqrt(2.0))))).to(x.dtype)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        bias = None if bias is None else bias.contiguous()
        ctx.save_for_backward(x, bias)
        return torch.ops.smartcs.bias_gelu_fwd(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, bias = ctx.saved_tensors
        need_x, need_bias = ctx.needs_input_grad
        dx, dbias = torch.ops.smartcs.bias_gelu_bwd(grad_y.contiguous(), x, bias, need_bias)
        return dx if need_x else None, dbias if need_bias else None


def register_fakes() -> None:
    """Shapes and dtypes of the raw ops' results, for torch.compile and opcheck."""

    @torch.library.register_fake("smartcs::bias_gelu_fwd")
    def _(x, bias):  # type: ignore[no-untyped-def]
        return torch.empty_like(x)

    @torch.library.register_fake("smartcs::bias_gelu_bwd")
    def _(grad_y, x, bias, bias_grad):  # type: ignore[no-untyped-def]
        return torch.empty_like(x), x.new_empty(x.shape[1] if bias_grad else 0)
