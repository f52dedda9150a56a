"""attention: against torch's own attention, within the error budget, on ragged batches of every kind."""

import math

import pytest
import torch
import torch.nn.functional as F
from error_budget import check
from op_harness import (
    DTYPES,
    Problem,
    check_budget,
    check_compiled,
    check_equal,
    check_gradients,
    check_instruction_sets,
    check_mutant,
    check_raw,
    check_strided,
    check_threads,
    evaluate,
    normal,
    offsets,
)

from smartcs.ops import attention
from smartcs.ops.random import keep_factors

# lengths, heads, head size, settings. Every length class meets every head size class at least once.
CASES = [
    ([1], 1, 16, {}),
    ([0, 3, 0, 17, 1, 0], 3, 24, {"dropout_p": 0.1, "seed": 3, "stream": 5}),
    ([64, 65, 63], 2, 32, {"scale": 0.3}),
    ([128, 7], 2, 80, {"dropout_p": 0.1, "seed": 2**40 + 1, "stream": 2**33 + 2}),
    ([512], 1, 64, {}),
    ([33, 1, 20], 4, 100, {"scale": -0.2}),
    ([5, 5, 5, 5], 12, 32, {"dropout_p": 0.5, "seed": 9}),
    ([31, 2], 2, 128, {}),
    ([200, 12], 1, 48, {"dropout_p": 0.2, "seed": 1}),
    ([9, 16, 70], 1, 5, {"dropout_p": 0.1, "seed": 4}),
    ([0, 0], 2, 16, {}),
    ([], 2, 16, {"dropout_p": 0.1}),
]


def problem(lengths, heads=2, head_size=16, settings=None, *, spread=1.0) -> Problem:
    """Queries and keys are ``spread`` wide: a larger one makes the softmax sharper."""
    tokens = sum(lengths)
    qkv = normal(tokens, 3, heads, head_size, seed=heads)
    qkv[:, :2] *= spread
    tensors = {
        "qkv": qkv,
        "cu_seqlens": offsets(lengths),
        "grad_y": normal(tokens, heads, head_size, seed=heads + 1),
    }
    settings = {"max_seqlen": max(lengths, default=0)} | (settings or {})
    return Problem(attention, tensors, {"y": "forward", "qkv": "activation gradient"}, settings)


def formula(
    qkv,
    cu_seqlens,
    grad_y,
    max_seqlen,
    scale=None,
    dropout_p=0.0,
    seed=0,
    stream=0,
    mutation="",
):
    """The module's formulas, one sequence and head at a time; ``mutation`` names the mistake to make."""
    heads, head_size = qkv.shape[2:]
    scale = 1 / math.sqrt(head_size) if scale is None else scale
    if mutation == "scale missing":
        scale = 1.0
    y, grad_qkv = torch.empty_like(grad_y), torch.empty_like(qkv)
    bounds = cu_seqlens.tolist()
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        length = end - begin
        masks = torch.ones(length, heads, length, dtype=qkv.dtype)
        if dropout_p > 0 and mutation != "dropout missing":
            shift = int(mutation == "dropout mask shifted")
            name = {"seed": seed, "stream": stream, "dtype": qkv.dtype}
            rows = torch.arange(begin * heads, end * heads)
            masks = keep_factors(rows, length + shift, dropout_p, **name)[:, shift:].reshape(masks.shape)
        for h in range(heads):
            (q, k, v), do, m = qkv[begin:end, :, h].unbind(1), grad_y[begin:end, h], masks[:, h]
            s = scale * q @ k.T
            padding = torch.zeros(length, max_seqlen - length, dtype=s.dtype)
            lse = torch.cat([s, padding], dim=1).logsumexp(1) if mutation == "softmax over padding" else s.logsumexp(1)
            p = torch.exp(s - lse[:, None])
            out = (m * p) @ v
            if mutation == "lse off":
                p = torch.exp(s - lse[:, None] - 0.1)
            dp = do @ v.T if mutation == "dropout missing from dp" else m * (do @ v.T)
            mean = 0 if mutation == "mean of dp missing" else (p * dp).sum(1, keepdim=True)
            ds = p * (dp - mean)
            y[begin:end, h] = out
            grad_qkv[begin:end, 0, h] = scale * ds @ k
            grad_qkv[begin:end, 1, h] = scale * (ds if mutation == "dk not transposed" else ds.T) @ q
            grad_qkv[begin:end, 2, h] = (m * p).T @ do
    return {"y": y, "qkv": grad_qkv}


MUTATIONS = [
    "scale missing",
    "softmax over padding",
    "dropout missing",
    "dropout mask shifted",
    "dropout missing from dp",
    "lse off",
    "mean of dp missing",
    "dk not transposed",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(fused, case, dtype):
    check_budget(problem(*case), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sharp_softmax_within_budget(fused, dtype):
    """Scores up to about 100: most weights vanish, the shift by the row's maximum matters."""
    check_budget(problem([40, 3], 2, 64, spread=4.0), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_certain_softmax_has_no_score_gradient(fused, dtype):
    """A token alone gets weight 1 whatever its score is: queries and keys get exactly 0, not what rounding leaves."""
    p = problem([1] * 9, 3, 40, {"dropout_p": 0.1, "seed": 8}, spread=8.0)
    gradient = evaluate(p, p.rounded(dtype), "fused")["qkv"]
    assert not gradient[:, :2].any() and gradient[:, 2].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_budget_rejects(dtype, mutation):
    settings = {"dropout_p": 0.1, "seed": 11, "stream": 2}
    check_mutant(problem([6, 20, 11], 2, 24, settings), dtype, formula, mutation)


@pytest.mark.parametrize("case", CASES[:-2], ids=str)
def test_reference_equals_torch(reference, case):
    """One call of torch's attention per sequence, in float64; with dropout, the formulas written out."""
    p = problem(*case)
    result = evaluate(p, p.tensors, "reference")
    expected = formula(**p.tensors, **p.settings)
    if not p.settings.get("dropout_p"):
        qkv = p.tensors["qkv"].clone().requires_grad_()
        parts = []
        for part in qkv.split(p.tensors["cu_seqlens"].diff().tolist()):
            q, k, v = part.permute(1, 2, 0, 3)
            parts.append(F.scaled_dot_product_attention(q, k, v, scale=p.settings.get("scale")).transpose(0, 1))
        y = torch.cat(parts)
        expected = {"y": y, "qkv": torch.autograd.grad(y, qkv, p.tensors["grad_y"])[0]}
    for name, kind in p.kinds.items():
        check(result[name], expected[name], expected[name], kind, name=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_sum_exp(fused, dtype):
    qkv, lengths = problem([5, 70], 3, 24, spread=2.0).rounded(dtype)["qkv"], [5, 70]
    lse = torch.ops.smartcs.attention_fwd(qkv, offsets(lengths), 70, 0.2, 0.1, 1, 2)[1]
    compute = torch.float64 if dtype == torch.float64 else torch.float32

    def expected(x):
        parts = x.split(lengths)
        scores = [0.2 * torch.einsum("ihd,jhd->ihj", part[:, 0], part[:, 1]) for part in parts]
        return torch.cat([s.logsumexp(-1) for s in scores])

    check(lse, expected(qkv.double()), expected(qkv.to(compute)), "statistic")


@pytest.mark.parametrize("settings", [{}, {"dropout_p": 0.3, "seed": 2**35, "stream": 7}], ids=["plain", "dropout"])
def test_gradcheck(fused, settings):
    check_gradients(problem([3, 0, 5], 2, 3, settings))


def test_threads(fused):
    check_threads(problem([40, 70, 1, 25, 0, 130], 6, 32, {"dropout_p": 0.1, "seed": 3, "stream": 1}))


def test_instruction_sets(fused):
    check_instruction_sets(problem([70, 0, 9, 33], 2, 40, {"dropout_p": 0.1, "seed": 3, "stream": 1}))


def test_strided(fused):
    check_strided(problem([7, 12], 2, 24, {"dropout_p": 0.1}))


def test_batch_mates_do_not_matter(fused):
    """A sequence gives the same bits alone and packed after others (without dropout, whose rows are tokens)."""
    alone, packed = problem([33], 2, 24), problem([65, 4, 33, 8], 2, 24)
    for name in ("qkv", "grad_y"):
        packed.tensors[name][69:102] = alone.tensors[name]
    results = evaluate(packed, packed.rounded(torch.float32), "fused")
    picked = {name: value[69:102] for name, value in results.items()}
    check_equal(evaluate(alone, alone.rounded(torch.float32), "fused"), picked, "batch mates change it")


def test_max_seqlen_may_be_larger(either):
    exact, larger = (problem([3, 5], 2, 16, {"max_seqlen": n}) for n in (5, 64))
    expected, got = (evaluate(p, p.tensors, either) for p in (exact, larger))
    for name, kind in exact.kinds.items():
        check(got[name], expected[name], expected[name], kind)


def test_compiled(fused):
    batches = [[3, 5], [4, 0, 7], [9, 2], [11, 2, 1], [1, 30], [6, 6, 6, 6]]
    check_compiled(
        [
            problem(lengths, settings={"dropout_p": 0.1, "seed": 2**40 + 7 * i, "stream": i * 2**16 + 3})
            for i, lengths in enumerate(batches)
        ]
    )


QKV = torch.zeros(5, 3, 2, 4)
CU = torch.tensor([0, 2, 5], dtype=torch.int32)
BAD = [
    ({"qkv": [1.0]}, TypeError, "attention: qkv is list, expected a torch.Tensor"),
    ({"qkv": QKV.long()}, TypeError, "qkv has dtype torch.int64, expected a floating-point dtype"),
    ({"qkv": QKV[0]}, ValueError, r"qkv has shape \(3, 2, 4\), expected \(T, 3, H, D\)"),
    ({"qkv": QKV[:, :2]}, ValueError, r"qkv has shape \(5, 2, 2, 4\), expected \(T, 3, H, D\)"),
    ({"qkv": QKV[..., :0]}, ValueError, "with H, D > 0"),
    ({"cu_seqlens": [0, 5]}, TypeError, "cu_seqlens is list"),
    ({"cu_seqlens": CU.long()}, TypeError, "cu_seqlens has dtype torch.int64, expected torch.int32"),
    ({"cu_seqlens": CU[None]}, ValueError, r"cu_seqlens has shape \(1, 3\), expected \(B \+ 1,\)"),
    ({"cu_seqlens": CU[:0]}, ValueError, r"cu_seqlens has shape \(0,\), expected \(B \+ 1,\)"),
    ({"cu_seqlens": CU.to("meta")}, ValueError, "cu_seqlens is on meta, expected cpu like qkv"),
    ({"cu_seqlens": CU + 1}, ValueError, "cu_seqlens starts at 1, expected 0"),
    ({"cu_seqlens": CU - 2}, ValueError, "cu_seqlens starts at -2, expected 0"),
    ({"cu_seqlens": CU[[0, 2, 1]], "max_seqlen": 5}, ValueError, "cu_seqlens decreases at index 2"),
    ({"cu_seqlens": CU[:2]}, ValueError, "cu_seqlens ends at 2, but qkv has 5 tokens"),
    ({"cu_seqlens": CU[[0, 1, 2, 2]] + CU[[0, 0, 0, 1]], "max_seqlen": 9}, ValueError, "ends at 7, but qkv has 5"),
    ({"cu_seqlens": torch.tensor([0, 2**31 - 1, -(2**31), 5]).int(), "max_seqlen": 2**31}, ValueError, "decreases"),
    ({"max_seqlen": 2}, ValueError, "sequence 1 has 3 tokens, more than max_seqlen = 2"),
    ({"max_seqlen": -1}, ValueError, "sequence 0 has 2 tokens, more than max_seqlen = -1"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0, expected 0 <= dropout_p < 1"),
    ({"dropout_p": -0.1}, ValueError, "dropout_p is -0.1"),
    ({"dropout_p": math.nan}, ValueError, "dropout_p is nan"),
    ({"dropout_p": 0.1, "seed": -1}, ValueError, "seed is -1"),
    ({"dropout_p": 0.1, "stream": 2**63}, ValueError, f"stream {2**63}, expected both in"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_errors(either, change, error, message):
    with pytest.raises(error, match=message):
        attention(**({"qkv": QKV, "cu_seqlens": CU, "max_seqlen": 3} | change))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[3, 0, 4], [0], []], ids=str)
def test_raw_ops(fused, lengths, dtype):
    qkv = normal(sum(lengths), 3, 2, 8).to(dtype)
    settings = offsets(lengths), 4, 0.3, 0.1 if dtype == torch.float32 else 0.0, 2**40, 3
    out, lse = check_raw("attention_fwd", qkv, *settings)
    check_raw("attention_bwd", torch.ones_like(out), qkv, lse, *settings)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)], ids=str)
def test_raw_ops_without_heads_or_channels(fused, shape):
    qkv = torch.zeros(5, 3, *shape)
    out, lse = torch.ops.smartcs.attention_fwd(qkv, CU, 3, 1.0, 0.0, 0, 0)
    assert out.shape == (5, *shape)
    assert torch.ops.smartcs.attention_bwd(out, qkv, lse, CU, 3, 1.0, 0.0, 0, 0).shape == qkv.shape


RAW_BAD = [
    ({"qkv": QKV.transpose(0, 2)}, "qkv has shape|qkv must be contiguous"),
    ({"qkv": QKV[:, :, :, ::2]}, "qkv must be contiguous"),
    ({"qkv": QKV[0]}, r"qkv has shape \[3, 2, 4\], expected \(T, 3, H, D\)"),
    ({"qkv": QKV.half()}, "dtype Half has no CPU kernel"),
    ({"cu_seqlens": CU.long()}, r"cu_seqlens is Long of shape \[3\], expected int32"),
    ({"cu_seqlens": torch.stack([CU, CU], 1)[:, 0]}, "cu_seqlens must be contiguous"),
    ({"cu_seqlens": CU[:0]}, r"of shape \[0\]"),
    ({"cu_seqlens": CU - 2}, "starts at -2"),
    ({"cu_seqlens": CU[:2]}, "ends at 2, but qkv has 5 tokens"),
    ({"cu_seqlens": CU * 2}, "ends at 10, but qkv has 5 tokens"),
    ({"cu_seqlens": torch.tensor([0, 2**31 - 1, -(2**31), 5]).int()}, "decreases at index 2"),
    ({"max_seqlen": 1}, "sequence 0 has 2 tokens, more than max_seqlen = 1"),
    ({"dropout_p": 1.0}, "dropout_p is 1"),
    ({"grad_out": QKV[:4, 0]}, r"grad_out has shape \[4, 2, 4\], expected \[5, 2, 4\]|grad_out must be contiguous"),
    ({"grad_out": torch.zeros(5, 2, 4).double()}, "grad_out has dtype Double, expected Float"),
    ({"lse": torch.zeros(5, 1)}, r"lse has shape \[5, 1\], expected \[5, 2\]"),
    ({"lse": torch.zeros(5, 2).bfloat16()}, "lse has dtype BFloat16, expected Float"),
]


@pytest.mark.parametrize(("change", "message"), RAW_BAD, ids=[row[1] for row in RAW_BAD])
def test_raw_op_errors(fused, change, message):
    """The raw ops read no memory that is not theirs, whatever they are called with."""
    good = {
        "grad_out": torch.zeros(5, 2, 4),
        "qkv": QKV,
        "lse": torch.zeros(5, 2),
        "cu_seqlens": CU,
        "max_seqlen": 2**31,
        "scale": 1.0,
        "dropout_p": 0.1,
        "seed": -1,
        "stream": -1,
    }
    arguments = good | change
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.smartcs.attention_bwd(**arguments)
    if not {"grad_out", "lse"} & set(change):
        del arguments["grad_out"], arguments["lse"]
        with pytest.raises((RuntimeError, ValueError), match=message):
            torch.ops.smartcs.attention_fwd(**arguments)
