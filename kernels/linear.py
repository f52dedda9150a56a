"""linear in bf16 mode on a GPU: the products are cuBLAS's, what comes before and after them is Triton's.

    z = x~ W~^T + bias,  y = z or GELU(z),  dz = dy or dy GELU'(z~)
    dx = dz~ W~,  dW = dz~^T x~,  dbias = sum over rows of dz            ~ is rounded to bfloat16, sums are float32

A product's result is float32 where a bias or GELU follows, so that it is rounded once, at the end. The packed form of a
weight is the weight in bfloat16, for both directions: cuBLAS reads it either way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bias_gelu import gelu, gelu_slope, tile_of
from .rows import ROWS_PER_PARTIAL, check_rows, check_typed, on_device_of, partials_of, sum_partials, warps, widened

_FORWARD, _BACKWARD = "linear_bf16_fwd", "linear_bf16_bwd"


def pack_weight(weight: Tensor, transposed: bool) -> Tensor:
    """weight (C_out, C_in) in bfloat16."""
    del transposed
    return weight.to(torch.bfloat16)


def linear_bf16_fwd(
    x: Tensor,
    packed: Tensor,
    outputs: int,
    bias: Tensor | None,
    gelu: bool,
    keep_x: bool,
    keep_z: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (N, C_out) of x (N, C_in); x~ and z~ for the backward pass, empty where not to be kept."""
    check_rows(_FORWARD, "x", x)
    check_typed(_FORWARD, "packed", packed, torch.bfloat16, (outputs, x.shape[1]), x, "x")
    if bias is not None:
        check_typed(_FORWARD, "bias", bias, torch.float32, (outputs,), x, "x")
    none = x.new_empty(0, dtype=torch.bfloat16)
    low = x.to(torch.bfloat16)
    kept_x = low if keep_x and low is not x else none
    if bias is None and not gelu:
        return _product(low, packed.t(), out_dtype), kept_x, none.clone()
    product = _product(low, packed.t(), torch.float32)
    y = torch.empty_like(product, dtype=out_dtype)
    z = torch.empty_like(product, dtype=torch.bfloat16) if gelu and keep_z else none.clone()
    rows, columns = product.shape
    if product.numel() > 0:
        block_rows, block_columns = tile_of(columns, 1024)
        grid = (triton.cdiv(rows, block_rows), triton.cdiv(columns, block_columns))
        with on_device_of(x):
            _epilogue_kernel[grid](
                y,
                z,
                product,
                product if bias is None else bias,
                rows,
                columns,
                HAS_BIAS=bias is not None,
                GELU=gelu,
                KEEP=gelu and keep_z,
                ROWS=block_rows,
                COLUMNS=block_columns,
                num_warps=4,
            )
    return y, kept_x, z


def linear_bf16_bwd(
    grad_y: Tensor,
    x_low: Tensor | None,
    z: Tensor | None,
    packed_t: Tensor | None,
    inputs: int,
    outputs: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    grad_x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (N, C_in), dW (C_out, C_in) and dbias (C_out,), empty where not asked for."""
    check_rows(_BACKWARD, "grad_y", grad_y)
    rows = grad_y.shape[0]
    for name, operand, shape in (
        ("x_low", x_low, (rows, inputs)),
        ("z", z, (rows, outputs)),
        ("packed_t", packed_t, (outputs, inputs)),
    ):
        if operand is not None:
            check_typed(_BACKWARD, name, operand, torch.bfloat16, shape, grad_y, "grad_y")
    dz, sums = _rounded_gradient(grad_y, z, need_bias)
    none = grad_y.new_empty(0, dtype=torch.float32)
    dx, dw = none.to(grad_x_dtype, copy=True), none.clone()
    if need_x:
        assert packed_t is not None
        dx = _product(dz, packed_t, grad_x_dtype)
    if need_weight:
        assert x_low is not None
        dw = _product(dz.t(), x_low, torch.float32)
    return dx, dw, sums if need_bias else none


def _rounded_gradient(grad_y: Tensor, z: Tensor | None, bias_grad: bool) -> tuple[Tensor, Tensor]:
    """dz~ (N, C), and the sums of dz over the rows, zeros unless asked for."""
    rows, columns = grad_y.shape
    if z is None and grad_y.dtype == torch.bfloat16 and not bias_grad:
        return grad_y, grad_y.new_empty(0, dtype=torch.float32)
    dz = torch.empty_like(grad_y, dtype=torch.bfloat16)
    with on_device_of(grad_y):
        partials = partials_of(grad_y, 1 if bias_grad else 0)
        if grad_y.numel() > 0:
            block_rows, block_columns = tile_of(columns, 2048)
            grid = (triton.cdiv(rows, ROWS_PER_PARTIAL), triton.cdiv(columns, block_columns))
            _gradient_kernel[grid](
                dz,
                partials,
                grad_y,
                grad_y if z is None else z,
                rows,
                columns,
                GELU=z is not None,
                BIAS_GRAD=bias_grad,
                GROUP=ROWS_PER_PARTIAL,
                ROWS=block_rows,
                COLUMNS=block_columns,
                num_warps=warps(block_rows * block_columns, 16),
            )
        return dz, sum_partials(partials, torch.float32)[0] if bias_grad else partials.new_empty(0)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b of bfloat16 matrices, summed in float32."""
    if not a.is_cuda:  # interpreted
        return (a.float() @ b.float()).to(dtype)
    # Into bfloat16, cuBLAS may also add parts of a sum in bfloat16.
    return torch.mm(a, b, out_dtype=torch.float32).to(dtype)


@triton.jit(do_not_specialize=["rows"])
def _epilogue_kernel(
    y_ptr,  # (N, C) written
    z_ptr,  # (N, C) bfloat16, written if KEEP
    product_ptr,  # (N, C) float32
    bias_ptr,  # (C,) float32
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
    z = tl.load(product_ptr + offset, mask=inside, other=0)
    if HAS_BIAS:
        z += tl.load(bias_ptr + column, mask=column < columns, other=0)[None, :]
    if KEEP:
        tl.store(z_ptr + offset, z.to(tl.bfloat16), mask=inside)
    if GELU:
        z = gelu(z)
    tl.store(y_ptr + offset, z.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _gradient_kernel(
    dz_ptr,  # (N, C) bfloat16, written
    partials_ptr,  # (groups, C) written if BIAS_GRAD
    grad_y_ptr,  # (N, C)
    z_ptr,  # (N, C) bfloat16, read if GELU
    rows,
    columns,
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
        dz = widened(tl.load(grad_y_ptr + offset, mask=inside, other=0))
        if GELU:
            dz *= gelu_slope(widened(tl.load(z_ptr + offset, mask=inside, other=0)))
        tl.store(dz_ptr + offset, dz.to(tl.bfloat16), mask=inside)
        if BIAS_GRAD:
            total += tl.sum(dz, axis=0)
    if BIAS_GRAD:
        tl.store(partials_ptr + group * columns + column, total, mask=column < columns)
