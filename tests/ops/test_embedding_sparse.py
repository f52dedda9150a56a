"""embedding's sparse gradient of the word table."""

import pytest
import torch
from op_harness import DTYPES, Problem, check_raw, evaluate, integers, normal

from smartcs.ops import embedding

# tokens, channels, rows of the word table
CASES = [(5, 7, 30), (33, 77, 4), (150, 384, 500), (1, 3, 1), (0, 16, 5)]


def problem(tokens, columns, words) -> Problem:
    ids = {name: integers(n, tokens, seed=n) for name, n in (("input_ids", words), ("token_type_ids", 2))}
    tables = {"word": normal(words, columns, seed=4), "token_type": normal(2, columns, seed=5)}
    tables |= {"position": normal(12, columns, seed=6), "weight": normal(columns, seed=7), "bias": normal(columns)}
    tensors = {**ids, "position_ids": integers(12, tokens, seed=3), **tables, "grad_y": normal(tokens, columns, seed=9)}
    kinds = {"y": "forward", **dict.fromkeys(tables, "summed gradient")}
    return Problem(embedding, tensors, kinds, {"dropout_p": 0.1, "seed": 3})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sparse_gradient_equals_dense(fused, case, dtype):
    """To the last bit; coalesced, and nothing else changes."""
    p = problem(*case)
    values, settings = p.rounded(dtype), p.settings | {"sparse": True}
    dense = evaluate(p, values, "fused")
    sparse = evaluate(Problem(p.op, p.tensors, p.kinds, settings), values, "fused")
    word = sparse["word"]
    assert word.is_sparse and word.is_coalesced()
    assert torch.equal(word._indices()[0], p.tensors["input_ids"].unique())
    sparse["word"] = word.to_dense()
    for name, value in dense.items():
        assert torch.equal(value, sparse[name]), name


def test_raw_rows(fused):
    used, sums = check_raw("embedding_rows", normal(4, 3).float(), torch.tensor([5, 2, 5, 0]), 6)
    assert used.tolist() == [0, 2, 5] and sums.shape == (3, 3)
    with pytest.raises(IndexError, match=r"ids\[0\] is 5, but its table has 5 rows"):
        torch.ops.smartcs.embedding_rows(normal(1, 3), torch.tensor([5]), 5)
