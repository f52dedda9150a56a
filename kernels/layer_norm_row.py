"""LayerNorm of whole rows, its gradients and its dropout, for add_layer_norm and embedding.

    y = (h - mean) rstd weight + bias,  mean and the biased variance over a row's C elements
    dh = rstd (g - mean(g) - xhat mean(g xhat)),  g = dy weight,  xhat = (h - mean) rstd

A tile (R, BLOCK) holds R whole rows, with zeros in the columns from C to BLOCK. The variance takes the differences from
the mean, which are in registers: E[h^2] - E[h]^2 would cancel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from smartcs.ops.checks import check_dropout
from smartcs.ops.random import drop_threshold

from .philox import counted, random_words
from .rows import (
    ROWS_PER_PARTIAL,
    as_scalar,
    check_operand,
    check_statistic,
    check_whole_rows,
    on_device_of,
    partials_of,
    sum_partials,
    warps,
    widened,
)


def block_of(columns: int) -> int:
    """The columns of a tile that holds whole rows: a power of two, whole blocks of the random numbers' 64 columns."""
    return max(64, triton.next_power_of_2(columns))


Tight = frozenset[tuple[int, int, bool]]
"""Blocks of columns, bytes of an element, and whether C is a multiple of 16: where a thread with 8 elements would spill
registers on some chip."""
_TIGHT: Tight = frozenset({(1024, 4, True), (1024, 8, True), (4096, 2, False), (4096, 4, False)})


def tile_of(columns: int, dtype: torch.dtype, elements: int, tight: Tight) -> dict[str, int]:
    """Launch options of a kernel over tiles of whole rows, of about ``elements`` elements; they depend on C and dtype.

    A thread has 8 of them; where that is too much, tiles and what a thread has are half as large.
    """
    block, per_thread = block_of(columns), 8
    if (block, dtype.itemsize, columns % 16 == 0) in tight:
        elements, per_thread = elements // 2, per_thread // 2
    rows = max(1, min(ROWS_PER_PARTIAL, elements // block))
    return {"ROWS": rows, "BLOCK": block, "num_warps": warps(rows * block, per_thread)}


Dropout = tuple[float, int, int, Tensor | None]  # p, seed, stream and counter_offset


def dropout_arguments(
    p: float, seed: int, stream: int, counter_offset: Tensor | None
) -> tuple[int, int, Tensor | None, int, float]:
    """seed, stream, its offset, threshold and scale: bits below the threshold drop, the scale is for what stays."""
    return seed, stream, counter_offset, drop_threshold(p), 1.0 / (1.0 - p)


def gradients(
    op: str,
    grad_y: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    dropout: Dropout,
    *,
    of_output: bool,
    sums: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """dh, dx and sums over rows, from what a forward pass over h (N, C) saved.

    Args:
        of_output: whether dropout is of y (embedding), not of the x that goes into h (add_layer_norm).
        sums: how many of dweight, dbias, and the sum of dx.

    Returns:
        dh, and dx: empty without dropout of x, where it is dh.
    """
    check_whole_rows(op, "h", h)
    rows, columns = h.shape
    check_operand(op, "grad_y", grad_y, h.shape, h, "h")
    check_operand(op, "weight", weight, (columns,), h, "h")
    for name, statistic in (("mean", mean), ("rstd", rstd)):
        check_statistic(op, name, statistic, h.shape[:1], h, "h")
    check_dropout(op, *dropout, h)
    drops = dropout[0] > 0
    grad_h = torch.empty_like(h)
    grad_x = torch.empty_like(h) if drops and not of_output else h.new_empty(0)
    with on_device_of(h):
        partials = partials_of(h, sums)
        if rows > 0:
            _backward_kernel[(triton.cdiv(rows, ROWS_PER_PARTIAL),)](
                grad_h,
                grad_x,
                partials,
                grad_y,
                h,
                mean,
                rstd,
                weight,
                rows,
                columns,
                *dropout_arguments(*dropout),
                DROPS_Y=drops and of_output,
                DROPS_X=drops and not of_output,
                SUMS=sums,
                GROUP=ROWS_PER_PARTIAL,
                **tile_of(columns, h.dtype, 4096, _TIGHT),
            )
        return grad_h, grad_x, sum_partials(partials, h.dtype) if sums else []


@triton.jit
def keep_factors(row, seed, stream, threshold, scale, BLOCK: tl.constexpr):
    """Dropout's factors, scale or 0, of rows (R,) and columns 0 to BLOCK - 1, in the dtype of scale.

    The generator yields columns 64 b + 16 w + l as words w of counter 16 b + l. They are brought into the columns'
    order as flags of a byte, because it is cheaper to move those between threads than to load rows out of order.
    """
    counter = tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = random_words(row[:, None], counter[None, :], seed, stream)
    threshold = threshold.to(tl.uint32)
    low = tl.join((w0 >= threshold).to(tl.int8), (w1 >= threshold).to(tl.int8))
    high = tl.join((w2 >= threshold).to(tl.int8), (w3 >= threshold).to(tl.int8))
    kept = tl.join(low, high).reshape(row.shape[0], BLOCK // 64, 16, 2, 2)  # row, b, l, w % 2, w // 2
    return kept.permute(0, 1, 4, 3, 2).reshape(row.shape[0], BLOCK).to(scale.dtype) * scale


@triton.jit
def mean_of(x, columns):
    """Means over the rows of a tile with zeros beyond the row, divided exactly: a constant row is its own mean."""
    total = tl.sum(x, axis=1)
    count = tl.zeros_like(total) + columns
    return total / count if x.dtype == tl.float64 else tl.div_rn(total, count)


@triton.jit
def statistics(h, inside, columns, eps):
    """Each row's mean and 1 / sqrt(variance + eps)."""
    mean = mean_of(h, columns)
    centred = tl.where(inside, h - mean[:, None], 0.0)
    variance = mean_of(centred * centred, columns) + eps
    # In one expression: a return before it would not keep Triton from compiling the rest, which float64 has not.
    rstd = 1.0 / tl.sqrt(variance) if h.dtype == tl.float64 else tl.div_rn(variance * 0 + 1.0, tl.sqrt_rn(variance))
    return mean, rstd


@triton.jit
def normalised(h, inside, weight_ptr, bias_ptr, column, columns, eps):
    """y of a tile, and each row's mean and rstd."""
    mean, rstd = statistics(h, inside, columns, eps)
    weight = widened(tl.load(weight_ptr + column, mask=column < columns, other=0))
    bias = widened(tl.load(bias_ptr + column, mask=column < columns, other=0))
    return (h - mean[:, None]) * rstd[:, None] * weight[None, :] + bias[None, :], mean, rstd


@triton.jit
def store_statistics(mean_ptr, rstd_ptr, mean, rstd, row, rows):
    tl.store(mean_ptr + row, mean, mask=row < rows)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "seed", "stream", "threshold"])
def _backward_kernel(
    grad_h_ptr,  # (N, C) written
    grad_x_ptr,  # (N, C) written if DROPS_X
    partials_ptr,  # (SUMS, groups, C) written: of weight, bias, dx
    grad_y_ptr,  # (N, C)
    h_ptr,  # (N, C)
    mean_ptr,  # (N,)
    rstd_ptr,  # (N,)
    weight_ptr,  # (C,)
    rows,
    columns,
    seed: tl.int64,
    stream: tl.int64,
    counter_offset_ptr,  # (2,) or None
    threshold: tl.int64,
    scale: tl.float64,
    DROPS_Y: tl.constexpr,
    DROPS_X: tl.constexpr,
    SUMS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program: the GROUP rows of one partial sum, ROWS at a time.
    group = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    in_row = column < columns
    if DROPS_X or DROPS_Y:
        stream, first_row = counted(stream, counter_offset_ptr, 1)
        scale = as_scalar(scale, mean_ptr)
    weight = widened(tl.load(weight_ptr + column, mask=in_row, other=0))
    sum_weight = tl.zeros([BLOCK], partials_ptr.dtype.element_ty)
    sum_bias = tl.zeros([BLOCK], partials_ptr.dtype.element_ty)
    sum_x = tl.zeros([BLOCK], partials_ptr.dtype.element_ty)
    for first in range(0, GROUP, ROWS):
        row = group * GROUP + first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & in_row[None, :]
        offset = row[:, None] * columns + column[None, :]
        # Zero beyond the last row and column, where means and sums must not change.
        dy = widened(tl.load(grad_y_ptr + offset, mask=inside, other=0))
        if DROPS_Y:
            dy *= keep_factors(first_row + row.to(tl.uint32), seed, stream, threshold, scale, BLOCK)
        h = widened(tl.load(h_ptr + offset, mask=inside, other=0))
        mean = tl.load(mean_ptr + row, mask=row < rows, other=0)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0)
        xhat = tl.where(inside, (h - mean[:, None]) * rstd[:, None], 0.0)
        g = dy * weight[None, :]
        mean_g, mean_gx = mean_of(g, columns), mean_of(g * xhat, columns)
        dh = (g - mean_g[:, None] - xhat * mean_gx[:, None]) * rstd[:, None]
        tl.store(grad_h_ptr + offset, dh.to(grad_h_ptr.dtype.element_ty), mask=inside)
        dx = dh
        if DROPS_X:
            dx *= keep_factors(first_row + row.to(tl.uint32), seed, stream, threshold, scale, BLOCK)
            tl.store(grad_x_ptr + offset, dx.to(grad_x_ptr.dtype.element_ty), mask=inside)
        if SUMS > 0:
            sum_weight += tl.sum(dy * xhat, axis=0)
            sum_bias += tl.sum(dy, axis=0)
        if SUMS > 2:
            sum_x += tl.sum(dx, axis=0)
    sums_ptr = partials_ptr + group * columns + column
    step = tl.num_programs(0).to(tl.int64) * columns
    if SUMS > 0:
        tl.store(sums_ptr, sum_weight, mask=in_row)
        tl.store(sums_ptr + step, sum_bias, mask=in_row)
    if SUMS > 2:
        tl.store(sums_ptr + 2 * step, sum_x, mask=in_row)
