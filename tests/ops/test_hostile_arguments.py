"""Arguments that fuzzing found to hang, crash or overflow: an error each, or a result at once."""

import math
import re

import pytest
import torch

from smartcs import ops
from smartcs.ops.backend import backend

RAW = torch.ops.smartcs
OFFSETS = torch.tensor([0, 0, 0], dtype=torch.int32)
# No memory, and more rows than a loop could count through.
TALL = torch.empty(2**62, 0)


def freed(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def embedding_bwd(**sizes: int) -> tuple[torch.Tensor, ...]:
    tables = {"words": 3, "token_types": 3, "positions": 3} | sizes
    tokens = 0 if min(tables.values()) < 0 else 2
    rows, ids = torch.ones(tokens, 4), torch.full((tokens,), max(0, min(tables.values()) - 1))
    saved = (rows, ids, ids, ids, rows, rows[:, 0].contiguous(), rows[:, 0].contiguous(), torch.ones(4))
    return RAW.embedding_bwd(*saved, *tables.values(), 0.0, 0, 0, *(True,) * 5)


@pytest.mark.parametrize("table", ["words", "token_types", "positions"])
@pytest.mark.parametrize("rows", [2**62, 2**60 + 1, 2**46, -1])
def test_tables_of_impossible_sizes(fused, table, rows):
    """2^62 rows of 4 numbers of 4 bytes are 2^66 bytes: 0 in 64 bits, where the first row was written."""
    assert embedding_bwd()[0].shape == (3, 4)
    with pytest.raises(RuntimeError, match="larger than any memory|expected no negative number|out of memory"):
        embedding_bwd(**{table: rows})


def test_rows_without_columns(fused):
    assert RAW.bias_gelu_fwd(TALL, None).shape == TALL.shape
    assert [t.shape for t in RAW.bias_gelu_bwd(TALL, TALL, None, True)] == [TALL.shape, (0,)]
    assert RAW.perturb_noise(TALL, 1.0, 0, 0).shape == TALL.shape
    low, packed = TALL.bfloat16(), RAW.pack_weight(torch.empty(0, 0), False)
    for x in (TALL, low):
        results = RAW.linear_bf16_fwd(x, packed, 0, None, False, True, False, torch.float32)
        assert results[0].shape == TALL.shape
    results = RAW.linear_bf16_bwd(TALL, low, None, packed, 0, 0, True, True, True, torch.float32)
    assert [t.shape for t in results] == [TALL.shape, (0, 0), (0,)]


def test_heads_without_tokens(fused):
    qkv = torch.empty(0, 3, 2**60, 1)
    out, lse = RAW.attention_fwd(qkv, OFFSETS, 0, 1.0, 0.0, 0, 0)
    assert out.shape == (0, 2**60, 1) and lse.shape == (0, 2**60)
    assert RAW.attention_bwd(out, qkv, lse, OFFSETS, 0, 1.0, 0.0, 0, 0).shape == qkv.shape


@pytest.mark.parametrize("sizes", [(2**40, 3), (3, 2**40)])
def test_products_that_would_overflow(fused, sizes):
    rows, columns = sizes
    empty = torch.empty(0, columns, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="expected at most"):
        RAW.linear_bf16_fwd(empty, torch.empty(0, dtype=torch.bfloat16), rows, None, False, False, False, torch.float32)
    with pytest.raises(RuntimeError, match="pack_weight: weight has shape .* expected at most"):
        RAW.pack_weight(torch.empty(2**40, 0), False)


def test_counters_without_memory(fused):
    offset = freed(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="counter_offset has no memory behind it"):
        RAW.perturb_noise(torch.ones(2, 3), 1.0, 0, 0, offset)


@pytest.mark.parametrize("scale", [math.inf, -math.inf, math.nan, 1e300])
def test_scale_that_is_not_finite(either, scale):
    with pytest.raises(ValueError, match=re.escape(f"attention: scale is {scale}, expected a finite number")):
        ops.attention(torch.ones(2, 3, 1, 2), torch.tensor([0, 2], dtype=torch.int32), 2, scale=scale)


def test_longest_length_far_above_the_tokens(either):
    """What no sentence has costs nothing: the reference pads to the longest that may be there."""
    qkv = torch.randn(5, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([0, 2, 5], dtype=torch.int32)
    for p in (0.0, 0.5):
        with backend("reference"):
            expected = ops.attention(qkv, lengths, 3, dropout_p=p, seed=1)
        torch.testing.assert_close(ops.attention(qkv, lengths, 2**40, dropout_p=p, seed=1), expected)
