"""linear: torch's own product behind the same checks as the other ops."""

import pytest
import torch
from error_budget import check
from op_harness import DTYPES, Problem, check_budget, check_compiled, check_gradients, check_mutant, evaluate, normal

from smartcs.ops import linear

KINDS = {"y": "forward", "x": "activation gradient", "weight": "summed gradient", "bias": "summed gradient"}
# shape of x, output channels, whether there is a bias
CASES = [((5, 7), 3, True), ((3, 4, 100), 77, False), ((384,), 8, True), ((0, 16), 4, True)]


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
        "x": torch.einsum("no,oi->ni", grad_y, weight),
        "weight": torch.einsum("no,ni->oi", grad_y, x),
    }
    rows = grad_y[:-1] if mutation == "dbias misses a row" else grad_y
    return results if bias is None else results | {"bias": rows.sum(0)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(either, case, dtype):
    check_budget(problem(*case), dtype, either)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutation", ["bias missing", "dbias misses a row"])
def test_budget_rejects(dtype, mutation):
    check_mutant(problem((9, 7), 5), dtype, formula, mutation)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_formula(reference, case):
    p = problem(*case)
    result, expected = evaluate(p, p.tensors, "reference"), formula(**p.tensors)
    for name, kind in p.kinds.items():
        check(result[name], expected[name].reshape(result[name].shape), result[name], kind, name=name)


def test_gradcheck(either):
    check_gradients(problem((3, 5), 2), either)


def test_compiled(either):
    check_compiled([problem((5 + 3 * i, 12), 7) for i in range(6)], either)


X, WEIGHT, BIAS = torch.zeros(4, 6), torch.zeros(3, 6), torch.zeros(3)
BAD = [
    ({"x": 1}, TypeError, "linear: x is int, expected a torch.Tensor"),
    ({"x": X.long()}, TypeError, "x has dtype torch.int64, expected a floating-point dtype"),
    ({"weight": WEIGHT.long()}, TypeError, "weight has dtype torch.int64, expected a floating-point dtype"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\) and weight \(3, 6\), expected \(..., C_in\)"),
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
