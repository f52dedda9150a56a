"""Tiles of packed sentences: which rows a program owns, reading and writing those of one head, products of tiles.

Programs of a grid (B, H, blocks) work on one sentence, one head and one block of tokens each.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import interpreted

# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
_WIDEN = tl.constexpr(interpreted())


class Blocks(NamedTuple):
    """Queries and keys per block, and how a program runs on the chip."""

    BLOCK_Q: int
    BLOCK_K: int
    num_warps: int
    num_stages: int = 1


# By bytes of an element and padded head size. What spills no registers on sm_80, sm_90 and sm_100, chosen by that and
# for sentences, not timed on a GPU yet. IEEE float32 has no tensor cores: a thread holds its operands for all of D.
_BLOCKS = {
    2: {16: Blocks(16, 64, 4), 32: Blocks(16, 64, 4), 64: Blocks(32, 64, 4), 128: Blocks(16, 64, 8)},
    4: {16: Blocks(16, 32, 4), 32: Blocks(32, 32, 4), 64: Blocks(32, 32, 8), 128: Blocks(16, 32, 8)},
}
# The same of heads that are narrower than that, where the table's would spill.
_NARROWER = {4: {32: Blocks(32, 32, 8), 64: Blocks(32, 16, 8)}}


def blocks(dtype: torch.dtype, head_size: int, block_d: int) -> Blocks:
    """Nothing here depends on the batch, so that none compiles anew. float64 is for gradient checks."""
    size = min(dtype.itemsize, 4)
    usual = _BLOCKS[size][block_d]
    return _NARROWER.get(size, {}).get(block_d, usual) if head_size < block_d else usual


@triton.jit
def dot(a, b):
    """a b, summed in float32 (float64 for float64); float32 is not rounded to TF32."""
    if _WIDEN and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def sentence(cu_seqlens, tokens):
    """First token and length of the program's sentence, within the tokens there are whatever cu_seqlens says."""
    begin = tl.maximum(tl.load(cu_seqlens + tl.program_id(0)), 0)
    # Not before the first: a difference that overflows would be a length.
    end = tl.maximum(tl.minimum(tl.load(cu_seqlens + tl.program_id(0) + 1), tokens), begin)
    return begin.to(tl.int64), (end - begin).to(tl.int32)


@triton.jit
def elements(rows, stride, length, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Offsets (N, BLOCK_D) of a head's rows of a sentence, and which of their elements exist."""
    d = tl.arange(0, BLOCK_D)
    return rows.to(tl.int64)[:, None] * stride + d[None, :], (rows < length)[:, None] & (d < HEAD_SIZE)[None, :]


@triton.jit
def load(head, rows, stride, length, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows (N, BLOCK_D) of a head of a sentence, 0 where they do not exist."""
    at, exist = elements(rows, stride, length, HEAD_SIZE, BLOCK_D)
    return tl.load(head + at, mask=exist, other=0.0)


@triton.jit
def store(head, values, rows, stride, length, HEAD_SIZE: tl.constexpr):
    at, exist = elements(rows, stride, length, HEAD_SIZE, values.shape[1])
    tl.store(head + at, values.to(head.dtype.element_ty), mask=exist)
