"""add_layer_norm: against torch's layer_norm, within the error budget, for every shape and optional argument."""

import pytest
import torch
import torch.nn.functional as F
from error_budget import check
from op_harness import (
    DTYPES,
    Calls,
    Problem,
    check_budget,
    check_compiled,
    check_gradients,
    check_instruction_sets,
    check_mutant,
    check_raw,
    check_strided,
    check_threads,
    evaluate,
    normal,
)

from smartcs.ops import add_layer_norm
from smartcs.ops.random import keep_factors

DROPOUT = {"dropout_p": 0.1, "seed": 2**40 + 1, "stream": 2**33 + 2}
# shape of x, whether there is an input bias, settings
CASES = [
    ((5, 7), True, {}),
    ((33, 77), False, DROPOUT),
    ((70, 100), True, {"eps": 0.1}),
    ((3, 4, 384), True, DROPOUT),
    ((31, 768), True, {"dropout_p": 0.5, "seed": 3}),
    ((768,), False, {}),
    ((3,), True, DROPOUT),
    ((64, 2), True, {"eps": 0.5}),
    ((200, 24), False, {"dropout_p": 1e-11}),
    ((0, 16), True, DROPOUT),
    ((2, 0, 16), False, {}),
]
KINDS = {
    "y": "forward",
    "x": "activation gradient",
    "residual": "activation gradient",
    "weight": "summed gradient",
    "bias": "summed gradient",
    "input_bias": "summed gradient",
}


def problem(shape, input_bias=True, settings=None) -> Problem:
    columns = shape[-1]
    tensors = {
        "x": normal(*shape, seed=1),
        "residual": normal(*shape, seed=2) + 0.5,
        "weight": normal(columns, seed=3) + 1,
        "bias": normal(columns, seed=4),
        "input_bias": normal(columns, seed=5),
        "grad_y": normal(*shape, seed=6),
    }
    kinds = dict(KINDS)
    if not input_bias:
        del tensors["input_bias"], kinds["input_bias"]
    return Problem(add_layer_norm, tensors, kinds, settings or {})


def formula(
    x,
    residual,
    weight,
    bias,
    grad_y,
    input_bias=None,
    eps=1e-12,
    dropout_p=0.0,
    seed=0,
    stream=0,
    mutation="",
):
    """The module's formulas on (N, C) inputs; ``mutation`` names the mistake to make."""
    rows, columns = x.reshape(-1, x.shape[-1]).shape
    x, residual, dy = (t.reshape(rows, columns) for t in (x, residual, grad_y))
    m = torch.ones_like(x)
    if dropout_p > 0 and mutation != "dropout missing":
        shift = int(mutation == "dropout mask shifted")
        m = keep_factors(torch.arange(rows), columns + shift, dropout_p, seed=seed, stream=stream, dtype=x.dtype)[
            :, shift:
        ]
    z = x if input_bias is None or mutation == "input bias missing" else x + input_bias
    h = residual + (m * x + input_bias if mutation == "input bias outside dropout" else m * z)
    centred = h - h.mean(1, keepdim=True)
    squares = centred.square().sum(1, keepdim=True)
    variance = squares / (columns - (mutation == "unbiased variance"))
    rstd = 1 / (variance.sqrt() + eps) if mutation == "eps outside the root" else 1 / (variance + eps).sqrt()
    xhat = centred * rstd
    g = dy * weight
    mean_g, mean_gx = g.mean(1, keepdim=True), (g * xhat).mean(1, keepdim=True)
    if mutation == "dx without its projection":
        mean_gx = 0
    if mutation == "dx without its mean":
        mean_g = 0
    dh = rstd * (g - mean_g - xhat * mean_gx)
    dx = dh if mutation == "dropout missing from dx" else m * dh
    results = {
        "y": xhat * weight + bias,
        "x": dx,
        "residual": dx if mutation == "dresidual with dropout" else dh,
        "weight": (dy * (h if mutation == "dweight of h" else xhat)).sum(0),
        "bias": (dy[:-1] if mutation == "dbias misses a row" else dy).sum(0),
        "input_bias": (dh if mutation == "dinput_bias without dropout" else dx).sum(0),
    }
    if input_bias is None:
        del results["input_bias"]
    return results


MUTATIONS = [
    "dropout missing",
    "dropout mask shifted",
    "input bias missing",
    "input bias outside dropout",
    "unbiased variance",
    "eps outside the root",
    "dx without its projection",
    "dx without its mean",
    "dropout missing from dx",
    "dresidual with dropout",
    "dweight of h",
    "dbias misses a row",
    "dinput_bias without dropout",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(fused, case, dtype):
    check_budget(problem(*case), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_mean_within_budget(fused, dtype):
    """E[h^2] - E[h]^2 would lose every digit here. (bfloat16 loses them when it stores h, as torch does.)"""
    p = problem((9, 100))
    p.tensors["residual"] += 1000
    check_budget(p, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_budget_rejects(dtype, mutation):
    check_mutant(problem((9, 7), True, DROPOUT | {"eps": 0.1}), dtype, formula, mutation)


@pytest.mark.parametrize("case", CASES[:8], ids=str)
def test_reference_equals_torch(reference, case):
    """torch's layer_norm in float64; with dropout, the formulas written out."""
    p = problem(*case)
    result, expected = evaluate(p, p.tensors, "reference"), formula(**p.tensors, **p.settings)
    if not p.settings.get("dropout_p"):
        leaves = {name: p.tensors[name].clone().requires_grad_() for name in p.kinds if name != "y"}
        h = leaves["residual"] + leaves["x"] + leaves.get("input_bias", 0)
        y = F.layer_norm(h, h.shape[-1:], leaves["weight"], leaves["bias"], p.settings.get("eps", 1e-12))
        grads = torch.autograd.grad(y, list(leaves.values()), p.tensors["grad_y"])
        expected = {"y": y, **dict(zip(leaves, grads, strict=True))}
    for name, kind in p.kinds.items():
        check(result[name], expected[name].reshape(result[name].shape), result[name], kind, name=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics(fused, dtype):
    """The saved mean and 1 / standard deviation are those of the saved h, in float32 or float64."""
    values = problem((40, 100)).rounded(dtype)
    arguments = [values[name] for name in ("x", "input_bias", "residual", "weight", "bias")]
    _, h, mean, rstd = torch.ops.smartcs.add_layer_norm_fwd(*arguments, 1e-12, 0.1, 1, 2)
    wide, compute = h.double(), h.to(mean.dtype)
    check(mean, wide.mean(1), compute.mean(1), "statistic")
    check(rstd, wide.var(1, correction=0).rsqrt(), compute.var(1, correction=0).rsqrt(), "statistic")


@pytest.mark.parametrize("value", [0.0, 0.5, -4096.0])
def test_constant_rows(either, value):
    """No variance at all: y is the bias, not NaN."""
    bias = normal(77).float()
    x = torch.full((3, 77), value)
    y = add_layer_norm(x, torch.zeros_like(x), torch.ones(77), bias)
    assert torch.equal(y, bias.expand(3, -1))


def test_one_channel(fused):
    """A single channel is its own mean: y is the bias, and the gain has no influence."""
    p = problem((5, 1), True, DROPOUT)
    result = evaluate(p, p.rounded(torch.float32), "fused")
    assert torch.equal(result["y"], p.rounded(torch.float32)["bias"].expand(5, 1))
    assert not result["weight"].any()


@pytest.mark.parametrize(("input_bias", "settings"), [(True, DROPOUT), (False, {"eps": 0.3})], ids=["dropout", "plain"])
def test_gradcheck(fused, input_bias, settings):
    check_gradients(problem((3, 5), input_bias, settings))


def test_threads(fused):
    check_threads(problem((300, 384), True, DROPOUT))


def test_instruction_sets(fused):
    check_instruction_sets(problem((37, 101), True, DROPOUT))


@pytest.mark.parametrize("shape", [(9, 12), (3, 4, 5)], ids=str)
def test_strided(fused, shape):
    check_strided(problem(shape, True, DROPOUT))


@pytest.mark.parametrize(
    ("wanted", "parameter_grads"),
    [(("x",), False), (("residual",), False), (("x", "weight"), True), (("bias",), True), (("input_bias",), True)],
    ids=str,
)
@pytest.mark.parametrize("settings", [DROPOUT, {}], ids=["dropout", "plain"])
def test_only_what_is_asked_for(fused, wanted, parameter_grads, settings):
    p = problem((9, 12), True, settings)
    asked = Problem(p.op, p.tensors, {name: p.kinds[name] for name in ("y", *wanted)}, p.settings)
    with Calls() as calls:
        check_budget(asked, torch.float32)
    assert calls.arguments("add_layer_norm_bwd")[-1] is parameter_grads


def test_compiled(fused):
    check_compiled(
        [
            problem((5 + 3 * i, 12), True, {"dropout_p": 0.1, "seed": 2**40 + 7 * i, "stream": i * 2**16 + 3})
            for i in range(6)
        ]
    )


X, ROW = torch.zeros(4, 6), torch.zeros(6)
BAD = [
    ({"x": None}, TypeError, "add_layer_norm: x is NoneType, expected a torch.Tensor"),
    ({"x": X.int()}, TypeError, "x has dtype torch.int32, expected a floating-point dtype"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\), expected \(..., C\) with C > 0"),
    ({"x": X[:, :0]}, ValueError, r"x has shape \(4, 0\), expected \(..., C\) with C > 0"),
    ({"residual": 1.0}, TypeError, "residual is float"),
    ({"residual": X[:3]}, ValueError, r"residual has shape \(3, 6\), expected \(4, 6\) to match x"),
    ({"residual": X.double()}, TypeError, "residual has dtype torch.float64, expected torch.float32 like x"),
    ({"residual": X.to("meta")}, ValueError, "residual is on meta, expected cpu like x"),
    ({"weight": X}, ValueError, r"weight has shape \(4, 6\), expected \(6,\) to match x"),
    ({"weight": ROW.half()}, TypeError, "weight has dtype torch.float16, expected torch.float32 like x"),
    ({"bias": ROW[:5]}, ValueError, r"bias has shape \(5,\), expected \(6,\) to match x"),
    ({"bias": ROW.to("meta")}, ValueError, "bias is on meta"),
    ({"input_bias": ROW[:1]}, ValueError, r"input_bias has shape \(1,\), expected \(6,\) to match x"),
    ({"input_bias": ROW.bfloat16()}, TypeError, "input_bias has dtype torch.bfloat16"),
    ({"eps": -1e-5}, ValueError, "eps is -1e-05, expected eps >= 0"),
    ({"eps": float("nan")}, ValueError, "eps is nan, expected eps >= 0"),
    ({"dropout_p": 1}, ValueError, "dropout_p is 1, expected 0 <= dropout_p < 1"),
    ({"dropout_p": 0.5, "seed": 2**63}, ValueError, f"seed is {2**63}"),
    ({"dropout_p": 0.5, "stream": -1}, ValueError, "stream -1, expected both in"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_errors(either, change, error, message):
    with pytest.raises(error, match=message):
        add_layer_norm(**({"x": X, "residual": X, "weight": ROW, "bias": ROW} | change))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "input_bias", "dropout_p", "parameter_grads"),
    [(5, True, 0.1, False), (3, False, 0.0, True), (0, True, 0.1, True)],
)
def test_raw_ops(fused, rows, input_bias, dropout_p, parameter_grads, dtype):
    values = problem((rows, 12)).rounded(dtype)
    bias = values["input_bias"] if input_bias else None
    arguments = values["x"], bias, values["residual"], values["weight"], values["bias"]
    dropout = dropout_p, 2**40, 3
    y, h, mean, rstd = check_raw("add_layer_norm_fwd", *arguments, 1e-12, *dropout)
    check_raw("add_layer_norm_bwd", y, h, mean, rstd, values["weight"], *dropout, parameter_grads)


STATISTIC = torch.zeros(4)
RAW_BAD = [
    ({"h": X.T}, "h must be contiguous"),
    ({"h": X[0]}, r"h has shape \[6\], expected \(N, C\) with C > 0"),
    ({"h": X[:, :0].contiguous()}, r"h has shape \[4, 0\], expected \(N, C\) with C > 0"),
    ({"h": X.half()}, "dtype Half has no CPU kernel"),
    ({"grad_y": X[:3]}, r"grad_y has shape \[3, 6\], expected \[4, 6\]"),
    ({"grad_y": torch.zeros(6, 4).T}, "grad_y must be contiguous"),
    ({"mean": STATISTIC[:3]}, r"mean has shape \[3\], expected \[4\]"),
    ({"rstd": STATISTIC.double()}, "rstd has dtype Double, expected Float"),
    ({"weight": X}, r"weight has shape \[4, 6\], expected \[6\]"),
    ({"dropout_p": -0.5}, "dropout_p is -0.5"),
]


@pytest.mark.parametrize(("change", "message"), RAW_BAD, ids=[row[1] for row in RAW_BAD])
def test_raw_backward_errors(fused, change, message):
    good = {"grad_y": X, "h": X, "mean": STATISTIC, "rstd": STATISTIC, "weight": ROW, "dropout_p": 0.1}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.smartcs.add_layer_norm_bwd(**(good | change), seed=1, stream=1, parameter_grads=True)


RAW_FORWARD_BAD = [
    ({"x": X.T}, "x must be contiguous"),
    ({"x": X[0]}, r"x has shape \[6\], expected \(N, C\) with C > 0"),
    ({"x": X.half()}, "dtype Half has no CPU kernel"),
    ({"residual": X[:3]}, r"residual has shape \[3, 6\], expected \[4, 6\]"),
    ({"weight": ROW[:5]}, r"weight has shape \[5\], expected \[6\]"),
    ({"bias": ROW.double()}, "bias has dtype Double, expected Float"),
    ({"input_bias": X[0, :3]}, r"input_bias has shape \[3\], expected \[6\]"),
    ({"dropout_p": 1.0}, "dropout_p is 1"),
]


@pytest.mark.parametrize(("change", "message"), RAW_FORWARD_BAD, ids=[row[1] for row in RAW_FORWARD_BAD])
def test_raw_forward_errors(fused, change, message):
    good = {"x": X, "input_bias": ROW, "residual": X, "weight": ROW, "bias": ROW, "eps": 1e-12, "dropout_p": 0.1}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.smartcs.add_layer_norm_fwd(**(good | change), seed=1, stream=1)
