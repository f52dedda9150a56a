"""add_layer_norm on its Triton kernels, interpreted: the C++ kernels' error budget and their own edges."""

import pytest
import torch
from error_budget import check
from op_harness import Problem, check_budget, check_equal, check_gradients, check_raw, evaluate
from ops.test_add_layer_norm import DROPOUT, problem

from smartcs.ops import add_layer_norm
from smartcs.ops.random import keep_factors

OP = "add_layer_norm"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows around a partial sum's 8, columns around a block's 64, the encoders' 384 and 768.
CASES = [
    ((7, 63), True, DROPOUT),
    ((8, 64), False, {}),
    ((9, 65), True, {"eps": 0.1}),
    ((17, 3), False, DROPOUT),
    ((2, 3, 129), True, {"dropout_p": 0.5, "seed": 3}),
    ((3, 384), True, DROPOUT),
    ((5, 768), True, DROPOUT),
    ((768,), False, {}),
    ((1, 1), True, {}),
    ((0, 16), True, DROPOUT),
    ((2, 0, 16), False, {}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(triton_op, case, dtype):
    check_budget(problem(*case), dtype)


def test_large_mean_within_budget(triton_op):
    p = problem((9, 100))
    p.tensors["residual"] += 1000
    check_budget(p, torch.float32)


@pytest.mark.parametrize("case", [((2, 5), True, DROPOUT), ((2, 5), False, {"eps": 0.3})], ids=["dropout", "plain"])
def test_gradcheck(triton_op, case):
    check_gradients(problem(*case))
    check_budget(problem(*case), torch.float64)


MUTANTS = [
    ("layer_norm_row", "- xhat * mean_gx[:, None]", ""),
    ("layer_norm_row", "mean_of(centred * centred, columns) + eps", "mean_of(centred * centred, columns - 7) + eps"),
    ("layer_norm_row", "permute(0, 1, 4, 3, 2)", "permute(0, 1, 3, 4, 2)"),
    ("layer_norm_row", "sum_x += tl.sum(dx, axis=0)", "sum_x += tl.sum(dh, axis=0)"),
    ("rows", "(group < groups)", "(group < groups - 1)"),
    ("layer_norm_row", "sum_weight += tl.sum(dy * xhat, axis=0)", "sum_weight += tl.sum(dy * h, axis=0)"),
]


@pytest.mark.mistake
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mistake", MUTANTS, ids=[wrong for *_, wrong in MUTANTS])
def test_budget_rejects(interpreter, mistake, dtype):
    from interpreted import mutant

    with mutant(OP, *mistake), pytest.raises(AssertionError, match="error budget"):
        check_budget(problem((9, 70), True, DROPOUT), dtype)


UNSAFE = [
    ("a store without its mask", "tl.store(h_ptr + offset, rounded, mask=inside)", "tl.store(h_ptr + offset, rounded)"),
    ("two programs with one row", "row = tl.program_id(0)", "row = 0 * tl.program_id(0)"),
]


@pytest.mark.mistake
@pytest.mark.parametrize(("right", "wrong"), [row[1:] for row in UNSAFE], ids=[row[0] for row in UNSAFE])
def test_memory_is_watched(interpreter, right, wrong):
    from interpreted import mutant
    from triton.runtime.errors import InterpreterError

    p = problem((17, 63))
    with mutant(OP, OP, right, wrong), pytest.raises((InterpreterError, AssertionError), match="outside|two programs"):
        evaluate(p, p.rounded(torch.float32), "fused")


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics(triton_op, dtype):
    """The saved mean and 1 / standard deviation are those of the saved h, in float32."""
    values = problem((5, 100)).rounded(dtype)
    arguments = [values[name] for name in ("x", "input_bias", "residual", "weight", "bias")]
    _, h, mean, rstd = torch.ops.smartcs.add_layer_norm_fwd(*arguments, 1e-12, 0.1, 1, 2)
    wide, compute = h.double(), h.float()
    check(mean, wide.mean(1), compute.mean(1), "statistic")
    check(rstd, wide.var(1, correction=0).rsqrt(), compute.var(1, correction=0).rsqrt(), "statistic")


@pytest.mark.parametrize("value", [0.0, 0.5, -4096.0])
def test_constant_rows(triton_op, value):
    """No variance at all: y is the bias, not NaN."""
    bias, x = torch.linspace(-1, 1, 77), torch.full((3, 77), value)
    assert torch.equal(add_layer_norm(x, torch.zeros_like(x), torch.ones(77), bias), bias.expand(3, -1))


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (2**31, 2**31 - 1), (2**63 - 1, 2**63 - 1), (2**40, 2**32)])
@pytest.mark.parametrize("p", [0.1, 0.9, 1e-11])
def test_mask(triton_op, seed, stream, p):
    """Bit-equal to the reference's, forward and backward."""
    x, zero = torch.ones(5, 200), torch.zeros(5, 200)
    expected = keep_factors(torch.arange(5), 200, p, seed=seed, stream=stream, dtype=torch.float32)
    row = torch.ones(200)
    _, h, mean, rstd = torch.ops.smartcs.add_layer_norm_fwd(x, None, zero, row, row, 1.0, p, seed, stream)
    assert torch.equal(h, expected)
    arguments = torch.rand(5, 200) + 0.5, h, mean, rstd, row, p, seed, stream, False
    dx, dresidual, *_ = torch.ops.smartcs.add_layer_norm_bwd(*arguments)
    assert torch.equal(dx, dresidual * expected) and dresidual.all()


def test_deterministic(triton_op):
    p = problem((17, 70), True, DROPOUT)
    values = p.rounded(torch.float32)
    check_equal(evaluate(p, values, "fused"), evaluate(p, values, "fused"), "a second run differs")


@pytest.mark.parametrize("settings", [DROPOUT, {}], ids=["dropout", "plain"])
def test_only_what_is_asked_for(triton_op, settings):
    p = problem((9, 12), True, settings)
    for wanted in ("x", "residual", "input_bias"):
        check_budget(
            Problem(p.op, p.tensors, {name: p.kinds[name] for name in ("y", wanted)}, p.settings), torch.float32
        )


@pytest.mark.parametrize(("rows", "dropout_p"), [(3, 0.1), (0, 0.0)])
def test_raw_ops(triton_op, rows, dropout_p):
    values = problem((rows, 12)).rounded(torch.float32)
    arguments = [values[name] for name in ("x", "input_bias", "residual", "weight", "bias")]
    y, h, mean, rstd = check_raw("add_layer_norm_fwd", *arguments, 1e-12, dropout_p, 2**40, 3)
    check_raw("add_layer_norm_bwd", y, h, mean, rstd, values["weight"], dropout_p, 2**40, 3, True)


X, ROW, STATISTIC = torch.zeros(4, 6), torch.zeros(6), torch.zeros(4)
BAD = [
    ({"h": X.T}, r"h has strides \(1, 6\) for shape \(6, 4\), expected a contiguous tensor"),
    ({"h": X[0]}, r"h has shape \(6,\), expected \(N, C\)"),
    ({"h": X[:, :0].contiguous()}, r"h has shape \(4, 0\), expected \(N, C\) with 0 < C <= 4096 on Triton"),
    ({"h": torch.zeros(1, 4097)}, r"h has shape \(1, 4097\)"),
    ({"grad_y": X[:3]}, r"grad_y has shape \(3, 6\), expected \(4, 6\) to match h"),
    ({"mean": STATISTIC[:3]}, r"mean has shape \(3,\), expected \(4,\)"),
    ({"rstd": STATISTIC.double()}, "rstd has dtype torch.float64, expected torch.float32"),
    ({"weight": ROW.half()}, "weight has dtype torch.float16, expected torch.float32 like h"),
    ({"dropout_p": 1.0}, "dropout_p is 1.0"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[row[1] for row in BAD])
def test_raw_backward_errors(triton_op, change, message):
    good = {"grad_y": X, "h": X, "mean": STATISTIC, "rstd": STATISTIC, "weight": ROW, "dropout_p": 0.1}
    with pytest.raises((ValueError, TypeError), match=message):
        torch.ops.smartcs.add_layer_norm_bwd(**(good | change), seed=1, stream=1, parameter_grads=True)
