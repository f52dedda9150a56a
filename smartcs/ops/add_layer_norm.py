"""add_layer_norm: bias + dropout + residual + LayerNorm.

    h = residual + m * (x + input_bias)          m = 0 with probability p, else 1 / (1 - p)
    y = (h - mean) * rstd * weight + bias        mean, var (biased) over the last axis, rstd = 1 / sqrt(var + eps)

Backward, with g = dy * weight, xhat = (h - mean) * rstd and row means over the last axis:

    dh = rstd * (g - mean(g) - xhat * mean(g * xhat))
    dresidual = dh,  dx = m * dh,  dinput_bias = sum over rows of dx
    dweight = sum over rows of dy * xhat,  dbias = sum over rows of dy

Source: Ba, Kiros and Hinton 2016 (LayerNorm); its place after each BERT sublayer is Devlin et al. 2018. The mask is
that of ``smartcs.ops.random``: row = the row of x, column = the channel.
"""

from typing import Any

import torch
from torch import Tensor

from . import random
from .autograd import once_differentiable, parameter
from .backend import use_fused
from .checks import check_dropout, check_float, check_like, check_number


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    input_bias: Tensor | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    counter_offset: Tensor | None = None,
) -> Tensor:
    """LayerNorm of ``residual + dropout(x + input_bias)``; the module docstring has the formulas.

    Args:
        x: (..., C), float32, float64 or bfloat16 (any floating dtype on the reference).
        residual: Shape, dtype and device of x.
        weight, bias: (C,), LayerNorm's gain and shift.
        input_bias: (C,) or None, usually the bias of the linear layer that made x.
        eps: Added to the variance.
        dropout_p: Probability of dropping an element of ``x + input_bias``, 0 <= dropout_p < 1.
        seed, stream, counter_offset: Name the dropout mask, see ``smartcs.ops.random``.

    Returns:
        Shape and dtype of x. Statistics are float32 (float64 for float64) whatever the dtype.

    Raises:
        ValueError: a shape, device, dropout probability or eps is wrong.
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
    """
    check_float("add_layer_norm", "x", x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"add_layer_norm: x has shape {tuple(x.shape)}, expected (..., C) with C > 0")
    columns = x.shape[-1]
    check_like("add_layer_norm", "residual", residual, x.shape, x, "x")
    check_like("add_layer_norm", "weight", weight, (columns,), x, "x")
    check_like("add_layer_norm", "bias", bias, (columns,), x, "x")
    if input_bias is not None:
        check_like("add_layer_norm", "input_bias", input_bias, (columns,), x, "x")
    check_number("add_layer_norm", "eps", eps)
    if not eps >= 0:
        raise ValueError(f"add_layer_norm: eps is {eps}, expected eps >= 0")
    check_dropout("add_layer_norm", dropout_p, seed, stream, counter_offset, x)
    # Reshaping two dimensions would make a view, and autograd could give two leaves one tensor as their gradient.
    rows = (x, residual) if x.dim() == 2 else (x.reshape(-1, columns), residual.reshape(-1, columns))
    implementation = _AddLayerNorm.apply if use_fused("add_layer_norm", x) else add_layer_norm_reference
    weight, bias, input_bias = parameter(weight), parameter(bias), parameter(input_bias)
    y = implementation(*rows, weight, bias, input_bias, eps, dropout_p, seed, stream, counter_offset)
    return y.reshape(x.shape)


def add_layer_norm_reference(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_bias: Tensor | None,
    eps: float,
    dropout_p: float,
    seed: int,
    stream: int,
    counter_offset: Tensor | None = None,
) -> Tensor:
    """The formulas in plain PyTorch on (N, C) inputs."""
    dtype = random.compute_dtype(x)
    z = x.to(dtype)
    if input_bias is not None:
        z = z + input_bias.to(dtype)
    h = residual.to(dtype) + random.dropout(z, dropout_p, seed=seed, stream=stream, counter_offset=counter_offset)
    centred = h - h.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return (centred * torch.rsqrt(variance + eps) * weight.to(dtype) + bias.to(dtype)).to(x.dtype)


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        input_bias: Tensor | None,
        eps: float,
        dropout_p: float,
        seed: int,
        stream: int,
        counter_offset: Tensor | None,
    ) -> Tensor:
        y, h, mean, rstd = torch.ops.smartcs.add_layer_norm_fwd(
            x.contiguous(),
            None if input_bias is None else input_bias.contiguous(),
            residual.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            eps,
            dropout_p,
            seed,
            stream,
            counter_offset,
        )
        ctx.save_for_backward(h, mean, rstd, weight)
        ctx.dropout, ctx.counter_offset = (dropout_p, seed, stream), counter_offset
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        h, mean, rstd, weight = ctx.saved_tensors
        need_x, need_residual, need_weight, need_bias, need_input_bias = ctx.needs_input_grad[:5]
        dx, dresidual, dweight, dbias, dinput_bias = torch.ops.smartcs.add_layer_norm_bwd(
            grad_y.contiguous(),
            h,
            mean,
            rstd,
            weight.contiguous(),
            *ctx.dropout,
            need_weight or need_bias or need_input_bias,
            ctx.counter_offset,
        )
        if ctx.dropout[0] == 0 and need_x:
            # Equal, but not one tensor: both may become somebody's .grad and be accumulated into.
            dx = dresidual.clone() if need_residual else dresidual
        return (
            dx if need_x else None,
            dresidual if need_residual else None,
            dweight if need_weight else None,
            dbias if need_bias else None,
            dinput_bias if need_input_bias else None,
            *(None,) * 5,
        )


def register_fakes() -> None:
    """Shapes and dtypes of the raw ops' results, for torch.compile and opcheck."""

    @torch.library.register_fake("smartcs::add_layer_norm_fwd")
    def _(x, *rest):  # type: ignore[no-untyped-def]
        stats = x.new_empty(x.shape[:1], dtype=random.compute_dtype(x))
        return torch.empty_like(x), torch.empty_like(x), stats, torch.empty_like(stats)

    @torch.library.register_fake("smartcs::add_layer_norm_bwd")
    def _(grad_y, h, mean, rstd, weight, dropout_p, seed, stream, parameter_grads, counter_offset=None):  # type: ignore[no-untyped-def]
        dx = torch.empty_like(h) if dropout_p > 0 else h.new_empty(0)
        sums = [h.new_empty(h.shape[1] if parameter_grads else 0) for _ in range(3)]
        return dx, torch.empty_like(h), *sums
