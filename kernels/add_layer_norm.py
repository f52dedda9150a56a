"""add_layer_norm in Triton: bias + dropout + residual + LayerNorm, one pass over memory in each direction.

    h = residual + m (x + input_bias),  y = (h - mean) rstd weight + bias

    dh = rstd (g - mean(g) - xhat mean(g xhat)),  g = dy weight,  xhat = (h - mean) rstd
    dresidual = dh,  dx = m dh,  dinput_bias = sum of dx,  dweight = sum of dy xhat,  dbias = sum of dy  (over rows)

m is dropout's factor. The forward pass keeps h, rounded to its dtype, and the statistics of h so rounded; the backward
pass draws m again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from smartcs.ops.checks import check_dropout
from smartcs.ops.random import compute_dtype

from .layer_norm_row import Tight, dropout_arguments, gradients, keep_factors, normalised, store_statistics, tile_of
from .philox import counted
from .rows import as_scalar, check_operand, check_whole_rows, on_device_of, widened

_OP = "add_layer_norm"
_TIGHT: Tight = frozenset({(512, 2, True), (512, 2, False)})


def add_layer_norm_fwd(
    x: Tensor,
    input_bias: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout_p: float,
    seed: int,
    stream: int,
    counter_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y and h (N, C), mean and rstd (N,) of x and residual (N, C) and parameters (C,)."""
    check_whole_rows(_OP, "x", x)
    rows, columns = x.shape
    check_operand(_OP, "residual", residual, x.shape, x, "x")
    check_operand(_OP, "weight", weight, (columns,), x, "x")
    check_operand(_OP, "bias", bias, (columns,), x, "x")
    if input_bias is not None:
        check_operand(_OP, "input_bias", input_bias, (columns,), x, "x")
    check_dropout(_OP, dropout_p, seed, stream, counter_offset, x)
    y, h = torch.empty_like(x), torch.empty_like(x)
    mean = torch.empty(rows, dtype=compute_dtype(x), device=x.device)
    rstd = torch.empty_like(mean)
    if rows > 0:
        options = tile_of(columns, x.dtype, 1024, _TIGHT)
        with on_device_of(x):
            _forward_kernel[(triton.cdiv(rows, options["ROWS"]),)](
                y,
                h,
                mean,
                rstd,
                x,
                x if input_bias is None else input_bias,
                residual,
                weight,
                bias,
                rows,
                columns,
                eps,
                *dropout_arguments(dropout_p, seed, stream, counter_offset),
                HAS_INPUT_BIAS=input_bias is not None,
                DROPOUT=dropout_p > 0,
                **options,
            )
    return y, h, mean, rstd


def add_layer_norm_bwd(
    grad_y: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    dropout_p: float,
    seed: int,
    stream: int,
    parameter_grads: bool,
    counter_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx (empty without dropout, where it is dresidual), dresidual, and dweight, dbias, dinput_bias if asked for."""
    dropout, sums = (dropout_p, seed, stream, counter_offset), 3 if parameter_grads else 0
    dresidual, dx, found = gradients(_OP, grad_y, h, mean, rstd, weight, dropout, of_output=False, sums=sums)
    dweight, dbias, dinput_bias = found or [h.new_empty(0) for _ in range(3)]
    return dx, dresidual, dweight, dbias, dinput_bias


@triton.jit(do_not_specialize=["rows", "seed", "stream", "threshold"])
def _forward_kernel(
    y_ptr,  # (N, C) written
    h_ptr,  # (N, C) written
    mean_ptr,  # (N,) written
    rstd_ptr,  # (N,) written
    x_ptr,  # (N, C)
    input_bias_ptr,  # (C,)
    residual_ptr,  # (N, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    rows,
    columns,
    eps: tl.float64,
    seed: tl.int64,
    stream: tl.int64,
    counter_offset_ptr,  # (2,) or None
    threshold: tl.int64,
    scale: tl.float64,
    HAS_INPUT_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    in_row = column < columns
    inside = (row < rows)[:, None] & in_row[None, :]
    offset = row[:, None] * columns + column[None, :]
    z = widened(tl.load(x_ptr + offset, mask=inside, other=0))
    if HAS_INPUT_BIAS:
        z += widened(tl.load(input_bias_ptr + column, mask=in_row, other=0))[None, :]
    if DROPOUT:
        stream, first_row = counted(stream, counter_offset_ptr, 1)
        z *= keep_factors(first_row + row.to(tl.uint32), seed, stream, threshold, as_scalar(scale, mean_ptr), BLOCK)
    rounded = (widened(tl.load(residual_ptr + offset, mask=inside, other=0)) + z).to(h_ptr.dtype.element_ty)
    tl.store(h_ptr + offset, rounded, mask=inside)
    h = widened(rounded)
    y, mean, rstd = normalised(h, inside, weight_ptr, bias_ptr, column, columns, as_scalar(eps, mean_ptr))
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)
    store_statistics(mean_ptr, rstd_ptr, mean, rstd, row, rows)
