"""bias_gelu in Triton: bias + exact GELU, one pass over memory in each direction.

    y = z Phi(z),  z = x + bias,  dx = dy (Phi(z) + z phi(z)),  dbias = sum over rows of dx

As on the CPU (csrc/cpu/gelu.h), Phi comes from its tail: with u = |z| / sqrt 2,

    Phi(-|z|) = erfc(u) / 2 = exp(-u^2) t P(t),  t = 1 / (1 + u / 2),

where P is a polynomial fitted for this project (relative error 4.3e-8 for 0 <= u <= 10). The tail keeps its digits for
large negative z, where 1 + erf(z / sqrt 2) would cancel, and the exponential serves the derivative too.

The same kernels are what linear puts around its products, there without GELU too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows import ROWS_PER_PARTIAL, check_operand, check_rows, on_device_of, partials_of, sum_partials, warps, widened

_OP = "bias_gelu"


def bias_gelu_fwd(x: Tensor, bias: Tensor | None) -> Tensor:
    """y of x (N, C) and bias (C,)."""
    _check(x, bias)
    y = torch.empty_like(x)
    forward(y, None, x, bias, gelu=True)
    return y


def bias_gelu_bwd(grad_y: Tensor, x: Tensor, bias: Tensor | None, bias_grad: bool) -> tuple[Tensor, Tensor]:
    """dx (N, C) and dbias (C,), which is empty unless it is asked for."""
    _check(x, bias)
    check_operand(_OP, "grad_y", grad_y, x.shape, x, "x")
    grad_x = torch.empty_like(x)
    return grad_x, backward(grad_x, grad_y, x, bias, bias_grad, x.dtype)


def forward(y: Tensor, z: Tensor | None, x: Tensor, bias: Tensor | None, *, gelu: bool) -> None:
    """Writes x + bias, or its GELU, to y (N, C), and x + bias to z (N, C), each rounded to its dtype."""
    rows, columns = x.shape
    if x.numel() == 0:
        return
    block_rows, block_columns = tile_of(columns, 1024)
    with on_device_of(x):
        _forward_kernel[(triton.cdiv(rows, block_rows), triton.cdiv(columns, block_columns))](
            y,
            y if z is None else z,
            x,
            x if bias is None else bias,
            rows,
            columns,
            HAS_BIAS=bias is not None,
            GELU=gelu,
            KEEP=z is not None,
            ROWS=block_rows,
            COLUMNS=block_columns,
            num_warps=4,
        )


def backward(
    grad_x: Tensor, grad_y: Tensor, x: Tensor | None, bias: Tensor | None, bias_grad: bool, bias_dtype: torch.dtype
) -> Tensor:
    """Writes grad_y times the slope of GELU at x + bias, or without x grad_y, to grad_x (N, C), rounded to its dtype.

    Returns:
        The sums over its rows, before they are rounded, (C,); empty unless asked for.
    """
    rows, columns = grad_y.shape
    with on_device_of(grad_y):
        partials = partials_of(grad_y, 1 if bias_grad else 0)
        if grad_y.numel() > 0:
            block_rows, block_columns = tile_of(columns, 2048)
            _backward_kernel[(triton.cdiv(rows, ROWS_PER_PARTIAL), triton.cdiv(columns, block_columns))](
                grad_x,
                partials,
                grad_y,
                grad_y if x is None else x,
                grad_y if bias is None else bias,
                rows,
                columns,
                HAS_BIAS=bias is not None,
                GELU=x is not None,
                BIAS_GRAD=bias_grad,
                GROUP=ROWS_PER_PARTIAL,
                ROWS=block_rows,
                COLUMNS=block_columns,
                # In float64 16 spill registers.
                num_warps=warps(block_rows * block_columns, 8 if grad_y.dtype == torch.float64 else 16),
            )
        return sum_partials(partials, bias_dtype)[0] if bias_grad else grad_y.new_empty(0, dtype=bias_dtype)


def _check(x: Tensor, bias: Tensor | None) -> None:
    check_rows(_OP, "x", x)
    if bias is not None:
        check_operand(_OP, "bias", bias, (x.shape[1],), x, "x")


def tile_of(columns: int, elements: int) -> tuple[int, int]:
    """Rows and columns of a tile: 512 columns divide those of BERT's intermediate layers (1536, 3072) exactly."""
    block_columns = max(16, min(512, triton.next_power_of_2(columns)))
    return min(ROWS_PER_PARTIAL, elements // block_columns), block_columns


@triton.jit
def _normal(z):
    """Phi(z) and exp(-z^2 / 2)."""
    x = z * z * -0.5
    if z.dtype == tl.float64:  # for gradcheck: the interpreter has no erfc, and so no digits in the tail
        return 0.5 + 0.5 * tl.erf(z * 0.70710678118654752440), tl.exp(x)
    # exp(x) as 2^n exp(r) with |r| <= ln 2 / 2: the GPU's exponential rounds x log2 e, so its relative error grows with
    # |x|. n ln 2 is taken off in two parts, of which the first product is exact. Zero below the smallest normal number;
    # n must be a number for NaN and infinity too, which go their way through r.
    normal = x >= -87.3365448
    n = tl.where(normal, tl.floor(x * 1.44269504 + 0.5), 0.0)
    scale = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    bell = tl.where(x < -87.3365448, 0.0, tl.exp(x - n * 0.693359375 + n * 2.12194440e-4) * scale)
    a = tl.abs(z)
    t = 1.0 / (a * 0.353553391 + 1.0)
    p = t * -0.0295346078 + 0.142288084
    p = p * t - 0.24360115
    p = p * t + 0.139034894
    p = p * t - 0.0133136924
    p = p * t + 0.101343777
    p = p * t + 0.121551801
    p = p * t + 0.141187665
    p = p * t + 0.141043208
    tail = bell * t * p
    return tl.where(z < 0, tail, 1.0 - tail), bell


@triton.jit
def _gelu(z):
    cdf, _ = _normal(z)
    return tl.where(cdf == 0, 0.0, z * cdf)  # -inf * 0 is NaN; the limit is 0


@triton.jit
def _gelu_slope(z):
    cdf, bell = _normal(z)
    return tl.where(bell == 0, cdf, cdf + z * bell * 0.39894228040143267794)


@triton.jit
def _biased(x_ptr, bias_ptr, offset, inside, column, columns, HAS_BIAS: tl.constexpr):
    z = widened(tl.load(x_ptr + offset, mask=inside, other=0))
    if HAS_BIAS:
        z += widened(tl.load(bias_ptr + column, mask=column < columns, other=0))[None, :]
    return z


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    y_ptr,  # (N, C) written
    z_ptr,  # (N, C) written if KEEP
    x_ptr,  # (N, C)
    bias_ptr,  # (C,)
    rows,
    columns,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row[:, None] * columns + column[None, :]
    z = _biased(x_ptr, bias_ptr, offset, inside, column, columns, HAS_BIAS)
    if KEEP:
        tl.store(z_ptr + offset, z.to(z_ptr.dtype.element_ty), mask=inside)
    if GELU:
        z = _gelu(z)
    tl.store(y_ptr + offset, z.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad_x_ptr,  # (N, C) written
    partials_ptr,  # (groups, C) written if BIAS_GRAD
    grad_y_ptr,  # (N, C)
    x_ptr,  # (N, C), read if GELU
    bias_ptr,  # (C,), read if GELU
    rows,
    columns,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    BIAS_GRAD: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], partials_ptr.dtype.element_ty)
    for first in range(0, GROUP, ROWS):
        row = group * GROUP + first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        offset = row[:, None] * columns + column[None, :]
        # Zero beyond the last row, where the sum must not change.
        grad_x = widened(tl.load(grad_y_ptr + offset, mask=inside, other=0))
        if GELU:
            grad_x *= _gelu_slope(_biased(x_ptr, bias_ptr, offset, inside, column, columns, HAS_BIAS))
        tl.store(grad_x_ptr + offset, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
        if BIAS_GRAD:
            total += tl.sum(grad_x, axis=0)
    if BIAS_GRAD:
        tl.store(partials_ptr + group * columns + column, total, mask=column < columns)
