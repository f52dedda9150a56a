"""LayerNorm of whole rows, its gradient and its dropout, for the kernels of add_layer_norm and embedding.

    y = (h - mean) rstd weight + bias,  mean and the biased variance over a row's C elements
    dh = rstd (g - mean(g) - xhat mean(g xhat)),  g = dy weight,  xhat = (h - mean) rstd

A tile (R, BLOCK) holds R whole rows, with zeros in the columns from C to BLOCK. The variance takes the differences from
the mean, which are in registers: E[h^2] - E[h]^2 would cancel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from smartcs.ops.random import drop_threshold

from .philox import random_words
from .rows import ROWS_PER_PARTIAL, warps, widened


def block_of(columns: int) -> int:
    """The columns of a tile that holds whole rows: a power of two, whole blocks of the random numbers' 64 columns."""
    return max(64, triton.next_power_of_2(columns))


def tile_of(columns: int, elements: int, per_thread: int) -> dict[str, int]:
    """Launch options of a kernel over tiles of whole rows, of about ``elements`` elements; they depend on C alone."""
    block = block_of(columns)
    rows = max(1, min(ROWS_PER_PARTIAL, elements // block))
    return {"ROWS": rows, "BLOCK": block, "num_warps": warps(rows * block, per_thread)}


def dropout_arguments(p: float, seed: int, stream: int) -> tuple[int, int, int, float]:
    """seed, stream, threshold and scale: bits below the threshold drop, the scale is for what stays."""
    return seed, stream, drop_threshold(p), 1.0 / (1.0 - p)


@triton.jit
def keep_factors(row, seed, stream, threshold, scale, like, BLOCK: tl.constexpr):
    """Dropout's factors, scale or 0, of rows (R,) and columns 0 to BLOCK - 1, in the dtype of ``like``.

    The generator yields columns 64 b + 16 w + l as words w of counter 16 b + l. They are brought into the columns'
    order as flags of a byte, because it is cheaper to move those between threads than to load rows out of order.
    """
    counter = tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = random_words(row[:, None], counter[None, :], seed, stream)
    threshold = threshold.to(tl.uint32)
    low = tl.join((w0 >= threshold).to(tl.int8), (w1 >= threshold).to(tl.int8))
    high = tl.join((w2 >= threshold).to(tl.int8), (w3 >= threshold).to(tl.int8))
    kept = tl.join(low, high).reshape(row.shape[0], BLOCK // 64, 16, 2, 2)  # row, b, l, w % 2, w // 2
    return kept.permute(0, 1, 4, 3, 2).reshape(row.shape[0], BLOCK).to(like.dtype) * scale


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
    if h.dtype == tl.float64:
        return mean, 1.0 / tl.sqrt(variance)
    return mean, tl.div_rn(variance * 0 + 1.0, tl.sqrt_rn(variance))


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


@triton.jit
def input_gradient(dy, h_ptr, mean_ptr, rstd_ptr, weight, offset, inside, row, rows, columns):
    """dh and xhat of a tile; both are zero beyond the last row and column, as dy and weight are."""
    h = widened(tl.load(h_ptr + offset, mask=inside, other=0))
    mean = tl.load(mean_ptr + row, mask=row < rows, other=0)
    rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0)
    xhat = tl.where(inside, (h - mean[:, None]) * rstd[:, None], 0.0)
    g = dy * weight[None, :]
    mean_g, mean_gx = mean_of(g, columns), mean_of(g * xhat, columns)
    return (g - mean_g[:, None] - xhat * mean_gx[:, None]) * rstd[:, None], xhat
