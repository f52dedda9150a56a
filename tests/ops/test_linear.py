"""linear: against the product written out, within the error budget, whichever library computes it."""

import pytest
import torch
from error_budget import check
from op_harness import (
    DTYPES,
    Calls,
    Problem,
    check_budget,
    check_compiled,
    check_equal,
    check_gradients,
    check_mutant,
    check_raw,
    check_strided,
    check_threads,
    evaluate,
    normal,
)

from smartcs.ops import linear

KINDS = {"y": "forward", "x": "activation gradient", "weight": "summed gradient", "bias": "summed gradient"}
# shape of x, output channels, whether there is a bias
CASES = [
    ((5, 7), 3, True),
    ((3, 4, 100), 77, False),
    ((384,), 8, True),
    ((150, 96), 384, True),
    ((64, 768), 768, True),
    ((77, 100), 33, True),
    ((40, 1), 1, True),
    ((0, 16), 4, True),
    ((2, 0, 16), 4, False),
    ((3, 16), 0, True),
]


def problem(shape, columns, bias=True) -> Problem:
    tensors = {
        "x": normal(*shape, seed=1),
        "weight": normal(columns, shape[-1], seed=2),
        "bias": normal(columns, seed=3),
        "grad_y": normal(*shape[:-1], columns, seed=4),
    }
    kinds = dict(KINDS)
    if not bias:
        del tensors["bias"], kinds["bias"]
    return Problem(linear, tensors, kinds)


def formula(x, weight, grad_y, bias=None, mutation=""):
    """The product and its gradients on (N, C) inputs; ``mutation`` names the mistake to make."""
    x, grad_y = (t.reshape(-1, t.shape[-1]) for t in (x, grad_y))
    y = torch.einsum("ni,oi->no", x, weight)
    results = {
        "y": y if bias is None or mutation == "bias missing" else y + bias,
        "x": torch.einsum("no,oi->ni", grad_y, weight.flip(0) if mutation == "dx of other rows" else weight),
        "weight": torch.einsum("no,ni->oi", grad_y, x.flip(0) if mutation == "dW of other rows" else x),
    }
    rows = grad_y[:-1] if mutation == "dbias misses a row" else grad_y
    return results if bias is None else results | {"bias": rows.sum(0)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(either, case, dtype):
    check_budget(problem(*case), dtype, either)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutation", ["bias missing", "dbias misses a row", "dx of other rows", "dW of other rows"])
def test_budget_rejects(dtype, mutation):
    check_mutant(problem((9, 7), 5), dtype, formula, mutation)


@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_formula(reference, case):
    p = problem(*case)
    result, expected = evaluate(p, p.tensors, "reference"), formula(**p.tensors)
    for name, kind in p.kinds.items():
        check(result[name], expected[name].reshape(result[name].shape), result[name], kind, name=name)


def test_gradcheck(either):
    check_gradients(problem((3, 5), 2), either)


def test_threads(fused):
    check_threads(problem((300, 96), 128))


def test_strided(fused):
    check_strided(problem((9, 12), 5))
    check_strided(problem((3, 4, 5), 6))


def test_repeatable(fused):
    p = problem((150, 96), 384)
    values = p.rounded(torch.float32)
    check_equal(evaluate(p, values, "fused"), evaluate(p, values, "fused"), "two calls differ")


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("x", "bias")], ids=str)
def test_only_what_is_asked_for(fused, wanted):
    p = problem((9, 12), 5)
    with Calls() as calls:
        check_budget(Problem(p.op, p.tensors, {name: KINDS[name] for name in ("y", *wanted)}), torch.float32)
    assert calls.arguments("linear_bwd")[-3:] == tuple(name in wanted for name in ("x", "weight", "bias"))


def test_compiled(either):
    check_compiled([problem((5 + 3 * i, 12), 7) for i in range(6)], either)


X, WEIGHT, BIAS = torch.zeros(4, 6), torch.zeros(3, 6), torch.zeros(3)
BAD = [
    ({"x": 1}, TypeError, "linear: x is int, expected a torch.Tensor"),
    ({"x": X.long()}, TypeError, "x has dtype torch.int64, expected a floating-point dtype"),
    ({"weight": WEIGHT.long()}, TypeError, "weight has dtype torch.int64, expected a floating-point dtype"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\) and weight \(3, 6\), expected \(..., C_in\)"),
    ({"x": X[:, :0], "weight": WEIGHT[:, :0]}, ValueError, r"x has shape \(4, 0\) .* with C_in > 0"),
    ({"weight": WEIGHT[0]}, ValueError, r"weight \(6,\), expected \(..., C_in\) and \(C_out, C_in\)"),
    ({"weight": WEIGHT.T}, ValueError, r"weight has shape \(6, 3\), expected \(6, 6\) to match x"),
    ({"weight": WEIGHT.half()}, TypeError, "weight has dtype torch.float16, expected torch.float32 like x"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta, expected cpu like x"),
    ({"bias": BIAS[:2]}, ValueError, r"bias has shape \(2,\), expected \(3,\) to match weight"),
    ({"bias": BIAS.double()}, TypeError, "bias has dtype torch.float64, expected torch.float32"),
    ({"bias": BIAS.to("meta")}, ValueError, "bias is on meta, expected cpu"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_errors(either, change, error, message):
    with pytest.raises(error, match=message):
        linear(**({"x": X, "weight": WEIGHT, "bias": BIAS} | change))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("rows", "bias", "needed"),
    [(5, True, (True, True, True)), (3, False, (True, False, False)), (0, True, (False, True, True))],
)
def test_raw_ops(fused, rows, bias, needed, dtype):
    values = problem((rows, 12), 7).rounded(dtype)
    check_raw("linear_fwd", values["x"], values["weight"], values["bias"] if bias else None)
    check_raw("linear_bwd", values["grad_y"], values["x"], values["weight"], *needed)
    # Only what a wanted gradient needs has to be given.
    need_x, need_weight, _ = needed
    x, weight = values["x"] if need_weight else None, values["weight"] if need_x else None
    check_raw("linear_bwd", values["grad_y"], x, weight, *needed)
    check_raw("linear_bwd", values["grad_y"], None, None, False, False, True)


RAW_BAD = [
    ({"x": torch.zeros(6, 4).T}, "x must be contiguous"),
    ({"x": X[0]}, r"x has shape \[6\] and weight \[3, 6\], expected \(N, C_in\) and \(C_out, C_in\)"),
    ({"x": X.bfloat16(), "weight": WEIGHT.bfloat16()}, "x has dtype BFloat16, expected float32 or float64"),
    ({"weight": WEIGHT[:, :5].contiguous()}, r"weight has shape \[3, 5\], expected \[3, 6\]"),
    ({"weight": WEIGHT.double()}, "weight has dtype Double, expected Float"),
    ({"weight": torch.zeros(6, 3).T}, "weight must be contiguous"),
    ({"bias": BIAS[:2]}, r"bias has shape \[2\], expected \[3\]"),
    ({"grad_y": torch.zeros(4, 2)}, r"grad_y has shape \[4, 2\], expected \[4, 3\]"),
    ({"grad_y": torch.zeros(4, 3).double()}, "grad_y has dtype Double, expected Float"),
]


PARTS_BAD = [
    ((None, WEIGHT, True, True), "x is None, expected a tensor for the gradient of weight"),
    ((X, None, True, False), "weight is None, expected a tensor for the gradient of x"),
    ((X[:3], None, False, True), r"grad_y has shape \[4, 3\], expected \[3, 3\]"),
    ((None, WEIGHT[:2], True, False), r"grad_y has shape \[4, 3\], expected \[4, 2\]"),
    ((X[0], None, False, True), r"x has shape \[6\], expected two dimensions"),
    ((None, WEIGHT[0], True, False), r"weight has shape \[6\], expected two dimensions"),
    ((None, WEIGHT.half(), True, False), "weight has dtype Half, expected float32 or float64"),
    ((None, WEIGHT.double(), True, False), "grad_y has dtype Float, expected Double"),
]


@pytest.mark.parametrize(("arguments", "message"), PARTS_BAD, ids=[row[1] for row in PARTS_BAD])
def test_raw_op_errors_without_x_or_weight(fused, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.smartcs.linear_bwd(torch.zeros(4, 3), *arguments, True)


def test_raw_op_errors_of_grad_y(fused):
    with pytest.raises(RuntimeError, match=r"grad_y has shape \[3\], expected two dimensions"):
        torch.ops.smartcs.linear_bwd(torch.zeros(3), None, None, False, False, True)
    with pytest.raises(RuntimeError, match="grad_y has dtype Half, expected float32 or float64"):
        torch.ops.smartcs.linear_bwd(torch.zeros(4, 3).half(), None, None, False, False, True)


@pytest.mark.parametrize(("change", "message"), RAW_BAD, ids=[row[1] for row in RAW_BAD])
def test_raw_op_errors(fused, change, message):
    arguments = {"grad_y": torch.zeros(4, 3), "x": X, "weight": WEIGHT, "bias": BIAS} | change
    if "bias" not in change:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.smartcs.linear_bwd(*(arguments[name] for name in ("grad_y", "x", "weight")), True, True, True)
    if "grad_y" not in change:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.smartcs.linear_fwd(*(arguments[name] for name in ("x", "weight", "bias")))
