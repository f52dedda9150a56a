"""attention: packed variable-length self-attention from qkv.

For each sequence and head, with q, k, v of shape (L, D):

    s = scale * q k^T,  p = softmax(s) over keys,  z = m * p,  out = z v

m is the dropout factor (0 with probability p, else 1 / (1 - p)). Tokens of different sequences never meet and no padded
position exists. Backward, recomputing p = exp(s - lse) from the saved log-sum-exp of each row:

    dv = z^T do,  dp = m * (do v^T),  ds = p * (dp - sum over keys of p * dp),  dq = scale * ds k,  dk = scale * ds^T q

Source: Vaswani et al. 2017; the backward from the log-sum-exp is Dao et al. 2022 (FlashAttention), appendix B. The mask
is that of ``smartcs.ops.random``: row = token * H + head modulo 2**32, column = the key's position in its sequence;
counter_offset counts tokens.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import random
from .autograd import once_differentiable
from .backend import use_fused
from .checks import check_bounds, check_cu_seqlens, check_dropout, check_float, check_int, check_number


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    counter_offset: Tensor | None = None,
) -> Tensor:
    """Self-attention within each packed sequence.

    Args:
        qkv: (T, 3, H, D): queries, keys and values of all tokens, H heads of size D. float32, float64 or bfloat16
            (any floating dtype on the reference).
        cu_seqlens: (B + 1,) int32; sequence b owns tokens cu_seqlens[b] to cu_seqlens[b + 1] - 1. Starts at 0, ends at
            T, never decreases; empty sequences are allowed.
        max_seqlen: At least the length of the longest sequence.
        scale: Factor on the scores; default 1 / sqrt(D).
        dropout_p: Probability of dropping an attention weight, 0 <= dropout_p < 1.
        seed, stream, counter_offset: Name the dropout mask, see ``smartcs.ops.random``.

    Returns:
        (T, H, D), dtype of qkv.

    Raises:
        ValueError: a shape, device or dropout probability is wrong, or cu_seqlens is not as described.
        TypeError: qkv is not floating point, or cu_seqlens not int32.
    """
    check_float("attention", "qkv", qkv)
    if qkv.dim() != 4 or qkv.shape[1] != 3 or qkv.shape[2] == 0 or qkv.shape[3] == 0:
        raise ValueError(f"attention: qkv has shape {tuple(qkv.shape)}, expected (T, 3, H, D) with H, D > 0")
    check_cu_seqlens("attention", cu_seqlens, qkv, "qkv")
    check_int("attention", "max_seqlen", max_seqlen)
    check_dropout("attention", dropout_p, seed, stream, counter_offset, qkv)
    if scale is None:
        scale = 1.0 / math.sqrt(qkv.shape[-1])
    check_number("attention", "scale", scale)
    if not abs(scale) <= torch.finfo(torch.float32).max:
        raise ValueError(f"attention: scale is {scale}, expected a finite number of float32")
    implementation = _Attention.apply if use_fused("attention", qkv) else attention_reference
    return implementation(qkv, cu_seqlens, max_seqlen, scale, dropout_p, seed, stream, counter_offset)


def attention_reference(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    seed: int,
    stream: int,
    counter_offset: Tensor | None = None,
) -> Tensor:
    """The formulas in plain PyTorch, on a padded copy (B, H, S, ...) whose padding is masked."""
    tokens, _, heads, _ = qkv.shape
    if not torch.compiler.is_compiling():
        _check_lengths(cu_seqlens, max_seqlen, tokens)
        max_seqlen = min(max_seqlen, tokens)  # a larger one would only make the padded copy larger
    if tokens == 0:
        return qkv[:, 0]
    lengths = cu_seqlens.diff().long()
    batch = lengths.numel()
    position = torch.arange(max_seqlen, device=qkv.device)
    # Padded positions read some token of the batch; the mask and the final gather keep it out of the result.
    token = (cu_seqlens[:-1, None] + position).clamp(max=tokens - 1)
    q, k, v = qkv.to(random.compute_dtype(qkv))[token].permute(2, 0, 3, 1, 4)
    scores = scale * (q @ k.transpose(-1, -2))
    # The smallest finite number instead of -inf: a sequence without tokens stays finite, and so do its gradients.
    padding = (position >= lengths[:, None])[:, None, None, :]
    weights = scores.masked_fill(padding, torch.finfo(scores.dtype).min).softmax(dim=-1)
    if dropout_p > 0:
        rows = token[:, None, :] * heads + torch.arange(heads, device=qkv.device)[None, :, None]
        factors = random.keep_factors(
            rows.reshape(-1),
            max_seqlen,
            dropout_p,
            seed=seed,
            stream=stream,
            counter_offset=counter_offset,
            rows_each=heads,
            dtype=weights.dtype,
        )
        weights = weights * factors.reshape(weights.shape)
    context = (weights @ v).transpose(1, 2).flatten(0, 1)
    sequence = torch.repeat_interleave(torch.arange(batch, device=qkv.device), lengths, output_size=tokens)
    offset = torch.arange(tokens, device=qkv.device) - cu_seqlens.long()[sequence]
    return context[sequence * max_seqlen + offset].to(qkv.dtype)


def _check_lengths(cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> None:
    bounds = cu_seqlens.tolist()
    check_bounds("attention", bounds, tokens, "qkv")
    for b, (begin, end) in enumerate(pairwise(bounds)):
        if end - begin > max_seqlen:
            raise ValueError(f"attention: sequence {b} has {end - begin} tokens, more than max_seqlen = {max_seqlen}")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        scale: float,
        dropout_p: float,
        seed: int,
        stream: int,
        counter_offset: Tensor | None,
    ) -> Tensor:
        qkv, cu_seqlens = qkv.contiguous(), cu_seqlens.contiguous()
        out, lse = torch.ops.smartcs.attention_fwd(
            qkv, cu_seqlens, max_seqlen, scale, dropout_p, seed, stream, counter_offset
        )
        ctx.save_for_backward(qkv, lse, cu_seqlens)
        ctx.settings = (max_seqlen, scale, dropout_p, seed, stream, counter_offset)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, lse, cu_seqlens = ctx.saved_tensors
        grad_qkv = torch.ops.smartcs.attention_bwd(grad_out.contiguous(), qkv, lse, cu_seqlens, *ctx.settings)
        return grad_qkv, *(None,) * 7


def register_fakes() -> None:
    """Shapes and dtypes of the raw ops' results, for torch.compile and opcheck."""

    @torch.library.register_fake("smartcs::attention_fwd")
    def _(qkv, cu_seqlens, max_seqlen, scale, dropout_p, seed, stream, counter_offset=None):  # type: ignore[no-untyped-def]
        tokens, _, heads, head_size = qkv.shape
        out = qkv.new_empty((tokens, heads, head_size))
        return out, qkv.new_empty((tokens, heads), dtype=random.compute_dtype(qkv))

    @torch.library.register_fake("smartcs::attention_bwd")
    def _(grad_out, qkv, lse, *rest):  # type: ignore[no-untyped-def]
        return torch.empty_like(qkv)
