"""attention in Triton: packed variable-length self-attention, straight from qkv.

Per sentence and head, with q, k, v of shape (L, D), m the dropout factors (1 / (1 - p) where kept, else 0) and lse the
log-sum-exp of each row of s:

    s = scale * q k^T,  p = exp(s - lse),  z = m * p,  out = z v
    dv = z^T do,  dp = m * (do v^T),  mean = sum over keys of p * dp,  ds = p * (dp - mean)
    dq = scale * ds k,  dk = scale * ds^T q

Forward is one launch: a program owns a block of queries and walks over the keys of its sentence, with the maximum and
the sum of each row so far. Backward is deterministic, since every gradient is written by the one program that owns it:

    _gradients_of_keys     dk and dv of a block of keys, walking over the queries
    _gradients_of_queries  dq of a block of queries, walking over the keys. It runs first and leaves for the other what
                           that must know of whole rows: mean, and the sum of exp(s - lse)

A sentence whose keys one block holds (in 16 bits up to 64) is `_whole`: its rows are whole, and the first does it all.

mean is taken from dp, not as sum(do * out): that is equal but rounded apart from dp, and where the softmax is sharp the
difference is all that ds should be. For the same reason both kernels take s and dp from `_tile`. p is divided by its
sum, which is 1 but for the rounding of lse, which grows with the scores.

The dropout mask is that of ``smartcs.ops.random``, row = token * H + head, column = the key's position in its sentence;
counter_offset counts tokens. Keys are taken in the order in which the generator gives their bits (philox.py): softmax
and sums do not mind.

Sources: Vaswani et al. 2017; Dao et al. 2022 (FlashAttention) and Dao 2023 (FlashAttention-2); for the sum kept along
with the maximum, Milakov and Gimelshein 2018.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from smartcs.ops.backend import GPU_WIDTHS
from smartcs.ops.checks import check_cu_seqlens, check_dropout, check_float
from smartcs.ops.random import compute_dtype, drop_threshold

from .layer_norm_row import Dropout
from .philox import bits_in_order, column_at, counted, positions
from .rows import as_scalar, check_contiguous, check_operand, check_statistic, on_device_of
from .tiles import blocks, dot, load, sentence, store

_OP = "attention"
MAX_HEAD_SIZE = GPU_WIDTHS[_OP]  # a tile holds all of it

# Batches differ in these, and Triton would compile anew for a 1 and for a multiple of 16. Their types are fixed below.
_CHANGING = ["tokens", "seed", "stream", "threshold"]


@triton.jit
def _kept(row, first, seed, stream, threshold, BLOCK_K: tl.constexpr):
    """Whether dropout keeps the weights (N, BLOCK_K) of the mask's rows for the keys at positions from `first` on."""
    return bits_in_order(row, first, seed, stream, BLOCK_K) >= threshold.to(tl.uint32)


@triton.jit
def _tile(
    q, k, v, do, lse, row, keys, first, length, scale, keep_scale, seed, stream, threshold, DROPOUT: tl.constexpr
):
    """exp(s - lse), the same where dropout keeps it and else 0, and dp: of (keys, queries), so transposed.

    z and ds then are what dv and dk multiply from the left, without a detour through shared memory. Queries beyond the
    sentence are 0, and so is their do: whatever their weights, they add nothing to any gradient.
    """
    s = tl.where((keys < length)[:, None], dot(k, tl.trans(q)) * scale, float("-inf"))
    e = tl.exp(s - lse[None, :])
    z, dp = e, dot(v, tl.trans(do))
    if DROPOUT:
        kept = tl.trans(_kept(row, first, seed, stream, threshold, keys.shape[0]))
        z, dp = tl.where(kept, e, 0.0), tl.where(kept, dp * keep_scale, 0.0)
    return e, z, dp


@triton.jit
def _whole(length, BLOCK_K: tl.constexpr):
    """Whether a block holds all keys. Smaller blocks hold those of 8 tokens at most: not worth the code."""
    return (BLOCK_K >= 64) & (positions(length) <= BLOCK_K)


@triton.jit
def _score_gradient(e, total, dp, mean, length):
    """ds (keys, queries). A token alone has weight 1 whatever its score: exactly 0, not what rounding leaves."""
    return tl.where(length > 1, e / total[None, :] * (dp - mean[None, :]), 0.0)


@triton.jit(do_not_specialize=_CHANGING)
def _forward(
    out,  # (T, H, D), written
    lse,  # (T, H) float32, float64 for float64, written
    qkv,  # (T, 3, H, D)
    cu_seqlens,  # (B + 1,) int32
    tokens: tl.int32,
    heads: tl.int32,
    scale: tl.float64,
    keep_scale: tl.float64,
    seed: tl.int64,
    stream: tl.int64,
    counter_offset,  # (2,) or None
    threshold: tl.int64,
    DROPOUT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    begin, length = sentence(cu_seqlens, tokens)
    queries = tl.program_id(2) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    if tl.program_id(2) * BLOCK_Q >= length:
        return
    scale, keep_scale = as_scalar(scale, lse), as_scalar(keep_scale, lse)
    stream, first_row = counted(stream, counter_offset, heads)
    head, width = tl.program_id(1), heads * HEAD_SIZE
    row = (begin + queries) * heads + head
    drawn = first_row + row.to(tl.uint32)
    qkv += (begin * 3 * heads + head) * HEAD_SIZE
    q = load(qkv, queries, 3 * width, length, HEAD_SIZE, BLOCK_D)
    context = tl.zeros([BLOCK_Q, BLOCK_D], lse.dtype.element_ty)
    total = tl.zeros([BLOCK_Q], lse.dtype.element_ty)
    best = total - float("inf")
    for first in range(0, positions(length), BLOCK_K):
        keys = column_at(first + tl.arange(0, BLOCK_K))
        k = load(qkv + width, keys, 3 * width, length, HEAD_SIZE, BLOCK_D)
        s = tl.where((keys < length)[None, :], dot(q, tl.trans(k)) * scale, float("-inf"))
        # Finite from the first block on, which has key 0: a later block without keys gives e = 0, not NaN.
        higher = tl.maximum(best, tl.max(s, 1))
        e, shrink = tl.exp(s - higher[:, None]), tl.exp(best - higher)
        total = total * shrink + tl.sum(e, 1)
        if DROPOUT:
            e = tl.where(_kept(drawn, first, seed, stream, threshold, BLOCK_K), e, 0.0)
        v = load(qkv + 2 * width, keys, 3 * width, length, HEAD_SIZE, BLOCK_D)
        context = context * shrink[:, None] + dot(e.to(v.dtype), v)
        best = higher
    tl.store(lse + row, best + tl.log(total), mask=queries < length)
    out += (begin * heads + head) * HEAD_SIZE
    store(out, context / total[:, None] * keep_scale, queries, width, length, HEAD_SIZE)


@triton.jit(do_not_specialize=_CHANGING)
def _gradients_of_queries(
    grad_qkv,  # (T, 3, H, D), the queries' part written
    means,  # (T, H) as lse, written
    sums,  # (T, H) as lse, written
    grad_out,  # (T, H, D)
    qkv,
    lse,
    cu_seqlens,
    tokens: tl.int32,
    heads: tl.int32,
    scale: tl.float64,
    keep_scale: tl.float64,
    seed: tl.int64,
    stream: tl.int64,
    counter_offset,  # (2,) or None
    threshold: tl.int64,
    DROPOUT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    begin, length = sentence(cu_seqlens, tokens)
    queries = tl.program_id(2) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    if (tl.program_id(2) * BLOCK_Q >= length) | _whole(length, BLOCK_K):
        return
    scale, keep_scale = as_scalar(scale, lse), as_scalar(keep_scale, lse)
    stream, first_row = counted(stream, counter_offset, heads)
    head, width = tl.program_id(1), heads * HEAD_SIZE
    row = (begin + queries) * heads + head
    drawn = first_row + row.to(tl.uint32)
    grad_out += (begin * heads + head) * HEAD_SIZE
    qkv += (begin * 3 * heads + head) * HEAD_SIZE
    grad_qkv += (begin * 3 * heads + head) * HEAD_SIZE
    q = load(qkv, queries, 3 * width, length, HEAD_SIZE, BLOCK_D)
    do = load(grad_out, queries, width, length, HEAD_SIZE, BLOCK_D)
    log_sum = tl.load(lse + row, mask=queries < length, other=0.0)
    dq = tl.zeros([BLOCK_Q, BLOCK_D], log_sum.dtype)
    total = tl.zeros([BLOCK_Q], log_sum.dtype)
    mean = tl.zeros([BLOCK_Q], log_sum.dtype)
    # Twice over the keys: what ds takes from whole rows, then ds.
    for turn in tl.static_range(2):
        for first in range(0, positions(length), BLOCK_K):
            keys = column_at(first + tl.arange(0, BLOCK_K))
            k = load(qkv + width, keys, 3 * width, length, HEAD_SIZE, BLOCK_D)
            v = load(qkv + 2 * width, keys, 3 * width, length, HEAD_SIZE, BLOCK_D)
            e, _, dp = _tile(
                q, k, v, do, log_sum, drawn, keys, first, length, scale, keep_scale, seed, stream, threshold, DROPOUT
            )
            if turn == 0:
                total += tl.sum(e, 0)
                mean += tl.sum(e * dp, 0)
            else:
                ds = _score_gradient(e, total, dp, mean, length)
                dq += dot(tl.trans(ds.to(k.dtype)), k)
        if turn == 0:
            mean = mean / total
            tl.store(means + row, mean, mask=queries < length)
            tl.store(sums + row, total, mask=queries < length)
    store(grad_qkv, dq * scale, queries, 3 * width, length, HEAD_SIZE)


@triton.jit(do_not_specialize=_CHANGING)
def _gradients_of_keys(
    grad_qkv,  # (T, 3, H, D), the keys' and values' parts written, of whole sentences the queries' too
    means,  # (T, H), not read of whole sentences, nor is the next
    sums,
    grad_out,
    qkv,
    lse,
    cu_seqlens,
    tokens: tl.int32,
    heads: tl.int32,
    scale: tl.float64,
    keep_scale: tl.float64,
    seed: tl.int64,
    stream: tl.int64,
    counter_offset,  # (2,) or None
    threshold: tl.int64,
    DROPOUT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    begin, length = sentence(cu_seqlens, tokens)
    start = tl.program_id(2) * BLOCK_K
    if start >= positions(length):
        return
    scale, keep_scale = as_scalar(scale, lse), as_scalar(keep_scale, lse)
    stream, first_row = counted(stream, counter_offset, heads)
    head, width = tl.program_id(1), heads * HEAD_SIZE
    grad_out += (begin * heads + head) * HEAD_SIZE
    qkv += (begin * 3 * heads + head) * HEAD_SIZE
    grad_qkv += (begin * 3 * heads + head) * HEAD_SIZE
    keys = column_at(start + tl.arange(0, BLOCK_K))
    k = load(qkv + width, keys, 3 * width, length, HEAD_SIZE, BLOCK_D)
    v = load(qkv + 2 * width, keys, 3 * width, length, HEAD_SIZE, BLOCK_D)
    dk = tl.zeros([BLOCK_K, BLOCK_D], lse.dtype.element_ty)
    dv = tl.zeros([BLOCK_K, BLOCK_D], lse.dtype.element_ty)
    whole = _whole(length, BLOCK_K)
    for first in range(0, length, BLOCK_Q):
        queries = first + tl.arange(0, BLOCK_Q)
        row = (begin + queries) * heads + head
        drawn = first_row + row.to(tl.uint32)
        q = load(qkv, queries, 3 * width, length, HEAD_SIZE, BLOCK_D)
        do = load(grad_out, queries, width, length, HEAD_SIZE, BLOCK_D)
        log_sum = tl.load(lse + row, mask=queries < length, other=0.0)
        e, z, dp = _tile(
            q, k, v, do, log_sum, drawn, keys, start, length, scale, keep_scale, seed, stream, threshold, DROPOUT
        )
        total = tl.load(sums + row, mask=(queries < length) & (not whole), other=1.0)
        mean = tl.load(means + row, mask=(queries < length) & (not whole), other=0.0)
        if whole:
            total = tl.sum(e, 0)
            mean = tl.sum(e * dp, 0) / total
        ds = _score_gradient(e, total, dp, mean, length).to(k.dtype)
        dv += dot((z / total[None, :]).to(do.dtype), do)
        dk += dot(ds, q)
        if whole:
            store(grad_qkv, dot(tl.trans(ds), k) * scale, queries, 3 * width, length, HEAD_SIZE)
    store(grad_qkv + width, dk * scale, keys, 3 * width, length, HEAD_SIZE)
    store(grad_qkv + 2 * width, dv * keep_scale, keys, 3 * width, length, HEAD_SIZE)


def attention_fwd(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    seed: int,
    stream: int,
    counter_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) and the log-sum-exp of the scaled scores (T, H)."""
    launch = _Launch(qkv, cu_seqlens, max_seqlen, scale, (dropout_p, seed, stream, counter_offset))
    out = torch.empty(launch.shape, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(launch.shape[:2], dtype=compute_dtype(qkv), device=qkv.device)
    launch(_forward, (out, lse, qkv), launch.query_blocks)
    return out, lse


def attention_bwd(
    grad_out: Tensor,
    qkv: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    seed: int,
    stream: int,
    counter_offset: Tensor | None = None,
) -> Tensor:
    """grad_qkv (T, 3, H, D)."""
    launch = _Launch(qkv, cu_seqlens, max_seqlen, scale, (dropout_p, seed, stream, counter_offset))
    check_operand(_OP, "grad_out", grad_out, launch.shape, qkv, "qkv")
    check_statistic(_OP, "lse", lse, launch.shape[:2], qkv, "qkv")
    grad_qkv = torch.empty_like(qkv)
    tensors = (grad_qkv, torch.empty_like(lse), torch.empty_like(lse), grad_out, qkv, lse)
    if not launch.all_whole:
        launch(_gradients_of_queries, tensors, launch.query_blocks)
    launch(_gradients_of_keys, tensors, launch.key_blocks)
    return grad_qkv


class _Launch:
    """Runs kernels on one batch, over grids from shapes and max_seqlen: nothing is read from the device.

    So cu_seqlens is checked for its type alone, and the kernels stay within the tokens there are.
    """

    def __init__(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, dropout: Dropout) -> None:
        check_float(_OP, "qkv", qkv)
        if qkv.dim() != 4 or qkv.shape[1] != 3 or qkv.shape[3] > MAX_HEAD_SIZE:
            wanted = f"(T, 3, H, D) with D of at most {MAX_HEAD_SIZE} on Triton"
            raise ValueError(f"{_OP}: qkv has shape {tuple(qkv.shape)}, expected {wanted}")
        check_contiguous(_OP, "qkv", qkv)
        tokens, _, self.heads, head_size = qkv.shape
        self.qkv, self.batch, self.shape = qkv, cu_seqlens.numel() - 1, (tokens, self.heads, head_size)
        check_cu_seqlens(_OP, cu_seqlens, qkv, "qkv")
        check_contiguous(_OP, "cu_seqlens", cu_seqlens)
        check_dropout(_OP, *dropout, qkv)
        block_d = max(16, triton.next_power_of_2(head_size))
        tile = blocks(qkv.dtype, head_size, block_d)
        # A sentence is no longer than the batch; who passes more, for one grid that fits many batches, need not pay.
        longest = min(max_seqlen, tokens)
        self.query_blocks = triton.cdiv(longest, tile.BLOCK_Q)
        # As philox.positions: what its keys take up in the generator's order.
        self.key_blocks = triton.cdiv(longest // 64 * 64 + min(longest % 64 * 4, 64), tile.BLOCK_K)
        # As _whole.
        self.all_whole = self.key_blocks <= 1 and tile.BLOCK_K >= 64
        p, *name = dropout
        self.arguments = (cu_seqlens, tokens, self.heads, scale, 1 / (1 - p), *name, drop_threshold(p))
        self.constants = {"DROPOUT": p > 0, "HEAD_SIZE": head_size, "BLOCK_D": block_d, **tile._asdict()}

    def __call__(self, kernel: Any, tensors: tuple[Tensor, ...], blocks: int) -> None:
        if self.qkv.numel() == 0 or self.batch == 0 or blocks <= 0:
            return
        with on_device_of(self.qkv):
            grid = (self.batch, self.heads, blocks)
            # Without fusion s is rounded alike in all kernels, so that p and lse belong to the same scores.
            kernel[grid](*tensors, *self.arguments, **self.constants, enable_fp_fusion=False)
