"""attention's Triton kernels under the interpreter: within the error budget at every edge of a block, and with teeth.

Blocks of 16 make small inputs cross blocks; the real sizes are tested too.
"""

import inspect
from importlib import import_module

import pytest
import torch
from error_budget import check
from op_harness import (
    DTYPES,
    Problem,
    check_budget,
    check_equal,
    check_gradients,
    check_raw,
    check_strided,
    evaluate,
    normal,
    offsets,
)

from smartcs import kernels
from smartcs.ops import attention
from smartcs.ops.random import keep_factors

pytest.importorskip("triton", reason="Triton is not installed")

from smartcs.kernels import attention as triton_attention  # noqa: E402
from smartcs.kernels.tiles import Blocks  # noqa: E402

# tests/gpu takes its cases from here where nothing is interpreted.
pytestmark = pytest.mark.skipif(not kernels.interpreted(), reason="TRITON_INTERPRET is not 1")

OP = "attention"
HALF = (torch.bfloat16, torch.float16)
KERNELS = ("_forward", "_gradients_of_queries", "_gradients_of_keys")
DROPOUT = {"dropout_p": 0.2, "seed": 2**40 + 1, "stream": 2**33 + 2}


@pytest.fixture
def small(monkeypatch):
    """Blocks of 16 queries and 16 keys: 64 keys of a sentence are four blocks, taken in the generator's order."""
    monkeypatch.setattr(triton_attention, "blocks", lambda *_: Blocks(16, 16, 1))


@pytest.fixture
def whole(monkeypatch):
    """Blocks of 16 queries and 64 keys: sentences of up to 64 tokens are whole."""
    monkeypatch.setattr(triton_attention, "blocks", lambda *_: Blocks(16, 64, 1))


def problem(lengths, heads=1, head_size=16, settings=None, *, spread=1.0) -> Problem:
    """Queries and keys are ``spread`` wide: a larger one makes the softmax sharper."""
    tokens = sum(lengths)
    qkv = normal(tokens, 3, heads, head_size, seed=heads)
    qkv[:, :2] *= spread
    tensors = {"qkv": qkv, "cu_seqlens": offsets(lengths), "grad_y": normal(tokens, heads, head_size, seed=heads + 1)}
    settings = {"max_seqlen": max(lengths, default=0)} | (settings or {})
    return Problem(attention, tensors, {"y": "forward", "qkv": "activation gradient"}, settings)


# Lengths below, at and above a block of 16.
EDGES = [
    ([15, 16, 17, 0, 1], 1, 16, DROPOUT),
    ([33, 0, 20], 1, 5, {"scale": -0.2}),
    ([5, 31], 1, 32, {"scale": 0.3, "max_seqlen": 200}),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", EDGES, ids=str)
def test_small_blocks(triton_op, small, case, dtype):
    check_budget(problem(*case), dtype)


def test_small_blocks_where_the_generators_order_starts_again(triton_op, small):
    check_budget(problem([63, 64, 65], 1, 24, DROPOUT), torch.float32)


def test_small_blocks_in_float16(triton_op, small):
    check_budget(problem(*EDGES[0]), torch.float16)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float16), ids=str)
def test_whole_sentences(triton_op, whole, dtype):
    check_budget(problem([64, 63, 17, 0, 1], 1, 24, DROPOUT), dtype)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float16), ids=str)
def test_whole_sentences_beside_longer_ones(triton_op, whole, dtype):
    check_budget(problem([65, 64, 0, 17, 130], 1, 24, DROPOUT), dtype)


# The blocks that a GPU gets: 32 queries at D = 64, else mostly 16; 32 keys for float32 (16 at D = 48), 64 for bfloat16.
REAL_BLOCKS = [
    (([8, 9, 0, 3], 2, 32, DROPOUT), torch.float32),
    (([31, 32, 33], 1, 64, DROPOUT), torch.float32),
    (([15, 17], 1, 48, DROPOUT), torch.float32),
    (([129, 7], 1, 80, {}), torch.float32),
    (([31, 33, 64], 2, 64, DROPOUT), torch.bfloat16),
    (([65, 0, 129], 1, 64, DROPOUT), torch.bfloat16),
    (([17, 65], 1, 128, {}), torch.bfloat16),
]


@pytest.mark.parametrize(("case", "dtype"), REAL_BLOCKS, ids=str)
def test_real_blocks(triton_op, case, dtype):
    check_budget(problem(*case), dtype)


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
@pytest.mark.parametrize("blocks", ["small", "whole"])
def test_sharp_softmax(triton_op, request, blocks, dtype):
    """Scores up to about 100: most weights vanish, the shift by the row's maximum matters, and that mean is of dp."""
    request.getfixturevalue(blocks)
    check_budget(problem([40, 3], 1, 64, spread=4.0), dtype)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float16), ids=str)
@pytest.mark.parametrize("blocks", ["small", "whole"])
def test_token_alone_has_no_score_gradient(triton_op, request, blocks, dtype):
    """Its weight is 1 whatever its score is: queries and keys get exactly 0, not what rounding leaves."""
    request.getfixturevalue(blocks)
    p = problem([1] * 3, 2, 16, DROPOUT | {"max_seqlen": 65}, spread=8.0)
    gradient = evaluate(p, p.rounded(dtype), "fused")["qkv"]
    assert not gradient[:, :2].any() and gradient[:, 2].any()


@pytest.mark.parametrize("blocks", ["small", "whole"])
def test_dropout_masks_are_the_references(triton_op, request, blocks):
    """With unit vectors as values, out is the weights themselves; with unit vectors from behind, so is dv."""
    request.getfixturevalue(blocks)
    lengths, heads, head_size = [2, 33], 2, 64
    cu_seqlens, factors = (
        offsets(lengths),
        keep_factors(torch.arange(70), head_size, 0.2, seed=5, stream=2**32, dtype=torch.float32),
    )
    unit = torch.cat([torch.eye(head_size)[:length] for length in lengths])[:, None].expand(-1, heads, -1)
    qkv = normal(sum(lengths), 3, heads, head_size).float()
    qkv[:, 2] = unit
    settings = cu_seqlens, max(lengths), 0.1, 0.2, 5, 2**32
    out, lse = torch.ops.smartcs.attention_fwd(qkv, *settings)
    grad_v = torch.ops.smartcs.attention_bwd(unit.contiguous(), qkv, lse, *settings)[:, 2]
    begin = 0
    for length in lengths:
        kept = factors.reshape(35, heads, head_size)[begin : begin + length, :, :length] > 0
        assert torch.equal(out[begin : begin + length, :, :length] > 0, kept)
        assert torch.equal(grad_v[begin : begin + length, :, :length].transpose(0, 2) > 0, kept)
        begin += length


@pytest.mark.parametrize("blocks", ["small", "whole"])
def test_gradcheck(triton_op, request, blocks):
    request.getfixturevalue(blocks)
    check_gradients(problem([2, 0, 1], 1, 2, {"dropout_p": 0.3, "seed": 2**35, "stream": 7, "max_seqlen": 65}))


def test_strided(triton_op, small):
    check_strided(problem([3, 5], 2, 8, DROPOUT))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_same_bits_whatever_the_batch(triton_op, small):
    """A sentence gives the same bits alone and packed after others (without dropout, whose rows are tokens)."""
    alone, packed = problem([19], 2, 8), problem([33, 2, 19, 8], 2, 8)
    for name in ("qkv", "grad_y"):
        packed.tensors[name][35:54] = alone.tensors[name]
        # Not even a neighbour's NaN is seen.
        packed.tensors[name][:35] = torch.nan
    results = evaluate(packed, packed.rounded(torch.float32), "fused")
    picked = {name: value[35:54] for name, value in results.items()}
    check_equal(evaluate(alone, alone.rounded(torch.float32), "fused"), picked, "batch mates change it")


@pytest.mark.parametrize("bounds", [[0, 3, 99], [-4, 3, 5], [0, 4, 2, 5], [7, 9], [2**31 - 1, -(2**31), 5]], ids=str)
def test_wrong_bounds_stay_within_the_tokens(triton_op, bounds):
    """They cannot be checked without waiting for the GPU. One by one: programs of overlapping sentences would race."""
    qkv = normal(5, 3, 1, 8).float()
    for pair in zip(bounds, bounds[1:], strict=False):
        settings = torch.tensor(pair, dtype=torch.int32), 5, 0.3, 0.0, 0, 0
        out, lse = triton_attention.attention_fwd(qkv, *settings)
        triton_attention.attention_bwd(out, qkv, lse, *settings)


MUTATIONS = {
    "a key beyond the sentence": ("(keys < length)[", "(keys < length + 1)[", 2),
    "scale missing": (" * scale, float", ", float", 2),
    "earlier keys not rescaled": ("context * shrink[:, None]", "context"),
    "dropout scale missing": ("[:, None] * keep_scale", "[:, None]"),
    "dropout scale missing from dp": ("dp * keep_scale", "dp"),
    "dropout of another head": ("queries) * heads + head", "queries) * heads", 3),
    "dropout missing from dv": ("dv += dot((z /", "dv += dot((e /"),
    "mean of dp missing": ("(dp - mean[None, :])", "dp"),
    "dk not transposed": ("dk += dot(ds, q)", "dk += dot(tl.trans(ds), q)"),
    "keys in ascending order": ("column_at(start + tl.arange(0, BLOCK_K))", "start + tl.arange(0, BLOCK_K)"),
}
MUTATIONS_OF_WHOLE_SENTENCES = {
    "whole beyond a block": ("positions(length) <= BLOCK_K", "positions(length) <= 2 * BLOCK_K"),
    "sums of another launch": ("        if whole:\n            total", "        if False:\n            total"),
    "dq missing": ("        if whole:\n            store", "        if False:\n            store"),
    "dq not scaled": ("dot(tl.trans(ds), k) * scale", "dot(tl.trans(ds), k)"),
}


@pytest.mark.mistake
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mutation", MUTATIONS | MUTATIONS_OF_WHOLE_SENTENCES)
def test_mutants_are_rejected(interpreter, mutation, dtype):
    """By the error budget, or by what watches the memory."""
    from interpreted import mutant

    change, blocks, lengths = MUTATIONS.get(mutation), Blocks(32, 32, 1), [2, 17]
    if change is None:
        change, blocks, lengths = MUTATIONS_OF_WHOLE_SENTENCES[mutation], Blocks(16, 64, 1), [65, 17]
    found = "error budget|write the same element|not finite"
    with mutant(OP, OP, *change), pytest.raises(AssertionError, match=found):
        import_module("smartcs.kernels.attention").blocks = lambda *_: blocks
        check_budget(problem(lengths, 2, 16, DROPOUT), dtype)


@pytest.mark.parametrize("lengths", [[3, 0, 4], [0], []], ids=str)
def test_raw_ops(triton_op, lengths):
    qkv = normal(sum(lengths), 3, 1, 4).float()
    settings = offsets(lengths), 4, 0.3, 0.1, 2**40, 3
    out, lse = check_raw("attention_fwd", qkv, *settings)
    check_raw("attention_bwd", torch.ones_like(out), qkv, lse, *settings)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)], ids=str)
def test_raw_ops_without_heads_or_channels(triton_op, shape):
    qkv = torch.zeros(5, 3, *shape)
    out, lse = torch.ops.smartcs.attention_fwd(qkv, CU, 3, 1.0, 0.0, 0, 0)
    assert out.shape == (5, *shape)
    assert torch.ops.smartcs.attention_bwd(out, qkv, lse, CU, 3, 1.0, 0.0, 0, 0).shape == qkv.shape


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float16), ids=str)
def test_log_sum_exp(triton_op, small, dtype):
    """A statistic: float32 for data of 16 bits."""
    q, k = normal(20, 3, 1, 8).to(dtype)[:, :2, 0].double().unbind(1)
    qkv = torch.stack([q, k, q], 1)[:, :, None].to(dtype)
    lse = triton_attention.attention_fwd(qkv, offsets([20]), 20, 0.2, 0.1, 1, 2)[1]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    expected, fallback = ((0.2 * q.to(t) @ k.to(t).T).logsumexp(1)[:, None] for t in (torch.float64, compute))
    check(lse, expected, fallback, "statistic")


def test_host_reads_nothing_from_the_device(monkeypatch):
    """Not for checks, grids or constants: with the launch itself left out, on tensors that forbid it."""
    launches = []
    monkeypatch.setattr(triton_attention._Launch, "__call__", lambda self, kernel, *_, **__: launches.append(kernel))

    def wait(*_, **__):
        raise AssertionError("the host asked for a value that is on the device")

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    for max_seqlen, backward in ((64, 1), (65, 2)):
        launches.clear()
        qkv = torch.ones(100, 3, 2, 16, dtype=torch.bfloat16)
        arguments = torch.tensor([0, 100]).int(), max_seqlen, 0.3, 0.1, 1, 2
        out, lse = triton_attention.attention_fwd(qkv, *arguments)
        triton_attention.attention_bwd(out, qkv, lse, *arguments)
        assert len(launches) == 1 + backward


def test_nothing_of_the_batch_is_compiled_in():
    constants = {"DROPOUT", "HEAD_SIZE", "BLOCK_D", "BLOCK_Q", "BLOCK_K"}
    for name in KERNELS:
        parameters = inspect.signature(getattr(triton_attention, name).fn).parameters
        assert {n for n, p in parameters.items() if "constexpr" in str(p.annotation)} <= constants
        assert set(triton_attention._CHANGING) <= set(parameters)


QKV = torch.zeros(5, 3, 2, 4)
CU = torch.tensor([0, 2, 5], dtype=torch.int32)
BAD = [
    ({"qkv": QKV[:, :, :, ::2]}, "qkv has strides"),
    ({"qkv": QKV[0]}, r"qkv has shape \(3, 2, 4\), expected \(T, 3, H, D\)"),
    ({"qkv": torch.zeros(5, 3, 2, 129)}, "D of at most 128"),
    ({"qkv": QKV.long()}, "qkv has dtype torch.int64, expected a floating-point dtype"),
    ({"cu_seqlens": CU.long()}, "cu_seqlens has dtype torch.int64, expected torch.int32"),
    ({"cu_seqlens": torch.stack([CU, CU], 1)[:, 0]}, "cu_seqlens has strides"),
    ({"cu_seqlens": CU[:0]}, r"cu_seqlens has shape \(0,\)"),
    ({"cu_seqlens": CU.to("meta")}, "cu_seqlens is on meta"),
    ({"dropout_p": 1.0}, "dropout_p is 1"),
    ({"grad_out": QKV[:4, 0]}, r"grad_out has shape \(4, 2, 4\), expected \(5, 2, 4\)"),
    ({"grad_out": torch.zeros(5, 2, 4).double()}, "grad_out has dtype torch.float64, expected torch.float32 like qkv"),
    ({"lse": torch.zeros(5, 1)}, r"lse has shape \(5, 1\), expected \(5, 2\)"),
    ({"lse": torch.zeros(5, 2).bfloat16()}, "lse has dtype torch.bfloat16, expected torch.float32 for qkv"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[row[1] for row in BAD])
def test_errors(change, message):
    good = {"grad_out": torch.zeros(5, 2, 4), "qkv": QKV, "lse": torch.zeros(5, 2), "cu_seqlens": CU, "max_seqlen": 3}
    good |= {"scale": 1.0, "dropout_p": 0.1, "seed": 0, "stream": 0}
    with pytest.raises((TypeError, ValueError), match=message):
        triton_attention.attention_bwd(**(good | change))
